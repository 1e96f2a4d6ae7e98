"""One mesh over the devices: the state and the training images on each of them, every batch spread over all.

Under `jit` the compiler adds the collectives, so gradients and BatchNorm statistics are those of the whole batch,
whatever the number of devices.
"""

import os

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jax_cifar.config import Config
from jax_cifar.errors import ConfigError


def make_mesh(config: Config) -> Mesh:
    """A one-dimensional mesh named `data`; `ConfigError` where devices are missing or the batch does not divide."""
    devices = jax.devices()
    count = config.distributed.devices or len(devices)
    if count > len(devices):
        raise ConfigError(f"distributed.devices = {count}, but only {len(devices)} are here: {devices}.")
    parts = count * config.optim.accumulate
    if config.train.batch_size % parts:
        raise ConfigError(
            f"train.batch_size = {config.train.batch_size} does not divide over {count} devices"
            f" times optim.accumulate = {config.optim.accumulate}: choose a multiple of {parts},"
            " or fewer devices with --distributed.devices."
        )
    return jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=devices[:count])


def device_memory() -> int:
    """Bytes of memory of a device; of the machine where that is its CPU."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole: state, data set, order."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its first axis spread over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))
