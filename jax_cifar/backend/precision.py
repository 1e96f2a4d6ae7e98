"""Float64 where it is wanted, and nowhere else."""

from contextlib import AbstractContextManager
from typing import Any

import jax


def float64(wanted: bool = True) -> AbstractContextManager[Any]:
    """Inside, arrays may be float64, and are unless a type is given; not where it is not wanted."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(wanted)
    from jax.experimental import enable_x64  # pyright: ignore[reportAttributeAccessIssue]  # its name in jax 0.7

    return enable_x64(wanted)
