"""What decides the bits of a run beside its configuration: kept with every checkpoint, compared by who resumes it."""

from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp

from jax_cifar.backend.compiler import xla_flags
from jax_cifar.errors import CheckpointError

# JAX's settings that change every number of a run: to go on with others is to train another run.
SETTINGS = (
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_random_seed_offset",
    "jax_enable_x64",
    "jax_default_matmul_precision",
)

CODE = "code of "  # the name of a user's own file, behind this


def arithmetic(dtype: jnp.dtype, devices: int, code: Mapping[str, str]) -> dict[str, Any]:
    """Settings of this process, and what changes the last bits only: JSON values by name.

    `dtype` is what the network computes in, `devices` how many compute, `code` the SHA-256 of every file of the user's
    own that has a part in it. XLA_FLAGS is among what changes the last bits, as most of them change no number at all.
    """
    return {
        **{name: getattr(jax.config, name, None) for name in SETTINGS},
        **{f"{CODE}{name}": sha256[:12] for name, sha256 in code.items()},
        "dtype": str(dtype),
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "devices": devices,
        "jax": jax.__version__,
        "jaxlib": version("jaxlib"),
        "XLA_FLAGS": xla_flags(),
    }


def require_same_numbers(
    there: dict[str, Any], here: dict[str, Any], allow_different: bool, say: Callable[[str], None]
) -> None:
    """Compare what a checkpoint was made with and what it is resumed with; says in one line what changes bits only.

    A record of an earlier version may lack names, or all: nothing is said of those. On another backend train.dtype
    "auto" is another dtype, which is no reason to refuse.

    Raises:
        CheckpointError: a setting or the code differs, unless that is allowed.
    """
    differing = [name for name in there if name in here and there[name] != here[name]]
    told = [f"{name} {there[name]!r} there, {here[name]!r} here" for name in differing]
    refused = [*SETTINGS, "dtype"] if there.get("backend") == here["backend"] else SETTINGS
    wrong = {}
    if any(name.startswith(CODE) for name in differing):
        wrong["code"] = "put back what the run's folder source/ has"
    if any(name in refused for name in differing):
        wrong["arithmetic"] = "set it as it was (JAX's settings are environment variables too, in capitals)"
    if wrong and not allow_different:
        raise CheckpointError(
            f"This run was begun with other {' and '.join(wrong)}: {'; '.join(told)}. To go on"
            f" {' and '.join(wrong.values())}, or say --allow-different-numbers (in Python"
            " allow_different_numbers=True)."
        )
    if told:
        say(f"the numbers will differ from those of a run never stopped: {'; '.join(told)}")
