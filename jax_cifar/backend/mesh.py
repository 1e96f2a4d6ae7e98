"""One mesh over the devices: the state and the training images on each of them, every batch spread over all.

Under `jit` the compiler adds the collectives, so gradients and BatchNorm statistics are those of the whole batch,
whatever the number of devices.
"""

import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from jax_cifar.backend.hosts import several
from jax_cifar.config import Config
from jax_cifar.errors import ConfigError

SETTINGS = ("JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES")  # what decides which devices JAX looks for


def find_devices() -> Sequence[Any]:
    """The devices that JAX uses here; raises `ConfigError` where the environment asks for some that are not here."""
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:
        # JAX asserts, without a word, where CUDA is asked for and there is none.
        told = str(error).partition(" (")[0].rstrip(".") or "they are not here"
        asked = [f"{name}={os.environ[name]}" for name in SETTINGS if os.environ.get(name)] or ["default settings"]
        raise ConfigError(
            f"JAX finds no devices with {' '.join(asked)}: {told}. Unset it to take what there is; a GPU needs"
            " pip install -e '.[cuda13]' (or cuda12)."
        ) from error


def make_mesh(config: Config) -> Mesh:
    """A one-dimensional mesh named `data`; `ConfigError` where devices are missing or the batch does not divide."""
    devices = find_devices()
    count = config.distributed.devices or len(devices)
    if count > len(devices):
        raise ConfigError(f"distributed.devices = {count}, but only {len(devices)} are here: {devices}.")
    if several() and count < len(devices):
        raise ConfigError(f"distributed.devices = {count}: {jax.process_count()} processes use all {len(devices)}.")
    parts = count * config.optim.accumulate
    if config.train.batch_size % parts:
        raise ConfigError(
            f"train.batch_size = {config.train.batch_size} does not divide over {count} devices"
            f" times optim.accumulate = {config.optim.accumulate}: choose a multiple of {parts},"
            " or fewer devices with --distributed.devices."
        )
    return jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=devices[:count])


def place(tree: Any, sharding: Sharding | None) -> Any:
    """A pytree on the devices of a sharding; with several processes each gives the whole, and keeps its share."""
    if sharding is None or not several():
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda leaf: _place(leaf, sharding), tree)


def _place(leaf: Any, sharding: Sharding) -> jax.Array:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_place(jax.random.key_data(leaf), sharding), impl=jax.random.key_impl(leaf))
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, whole.__getitem__)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole: state, data set, order."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its first axis spread over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))
