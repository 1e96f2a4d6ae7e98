"""Float64 where it is wanted, and nowhere else."""

from contextlib import AbstractContextManager
from typing import Any

import jax


def float64() -> AbstractContextManager[Any]:
    """Inside, arrays may be float64, and are unless a type is given; outside, JAX has none."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64  # pyright: ignore[reportAttributeAccessIssue]  # its name in jax 0.7

    return enable_x64(True)
