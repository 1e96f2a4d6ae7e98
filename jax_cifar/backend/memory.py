"""Memory: how much there is, how much a compiled program needs of it, and how large a batch would fit."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax

from jax_cifar.allocator import machine_memory
from jax_cifar.backend.mesh import find_devices
from jax_cifar.errors import ConfigError, is_out_of_memory

FINDS_IT = "scripts/find_batch_size.py finds the largest"


def device_memory() -> float:
    """Bytes of memory of a device; of the machine where that is its CPU."""
    find_devices()
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit") or machine_memory()


def program_memory(compiled: Any) -> tuple[float, float]:
    """Bytes that a device needs at the same time for a compiled program, and those of them that are handed to it."""
    found = compiled.memory_analysis()
    new = found.output_size_in_bytes + found.temp_size_in_bytes - found.alias_size_in_bytes
    return float(found.argument_size_in_bytes + new), float(found.argument_size_in_bytes)


def batch_that_fits(batch: int, needed: float, fixed: float, there: float) -> int:
    """About how many images fit, where a batch needs so much, of which `fixed` bytes stay whatever its size.

    With a tenth to spare; at most half of a batch that should have fitted, and did not.
    """
    per_image = max(needed - fixed, 1.0) / batch
    return max(min(int(0.9 * (there - fixed) / per_image), batch if needed > there else batch // 2), 0)


def out_of_memory(batch: int, needed: float, fixed: float, there: float) -> ConfigError:
    """The message where so many images an update are too many."""
    about = batch_that_fits(batch, needed, fixed, there)
    way_out = f"about {about:,} should fit, and {FINDS_IT}" if about else f"not even one would fit; {FINDS_IT}"
    return ConfigError(
        f"train.batch_size = {batch:,} is too large: an update takes about {needed / 1e9:,.1f} GB, of which"
        f" {fixed / 1e9:,.1f} whatever the batch, and there are {there / 1e9:,.1f}: {way_out}."
    )


@contextlib.contextmanager
def naming_the_batch(batch: int, needed: float, fixed: float) -> Iterator[None]:
    """Inside, out of memory ends in the message that names a batch that would fit."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(batch, needed, fixed, device_memory()) from error
