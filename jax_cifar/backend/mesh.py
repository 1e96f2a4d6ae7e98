"""One mesh over the devices: the state on each of them, every batch spread over all.

Under `jit` the compiler adds the collectives, so gradients and BatchNorm statistics are those of the whole batch,
whatever the number of devices.
"""

import os
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from jax_cifar.backend.hosts import several
from jax_cifar.backend.threads import leave_threads_free
from jax_cifar.config import Config
from jax_cifar.errors import ConfigError, check

AnyMesh = Mesh | AbstractMesh  # programs are traced for devices, and may be for some that are not here

SETTINGS = ("JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES")  # what decides which devices JAX looks for
# What a user can do, by the first sign that is found in what JAX says.
WAYS_OUT = {
    # A cell of a notebook that has asked for devices is such a process.
    r"TPU is already in use": (
        "End that process; in a notebook restart the session and start this before any cell uses JAX, or call"
        " jax_cifar.train in the cell itself. JAX_PLATFORMS=cpu does without the TPU."
    ),
    r"lockfile": (
        "A process that was killed has left that file. Remove it when no other process has the TPU any more, which"
        " sudo lsof -w /dev/accel* /dev/vfio/* tells."
    ),
    r"no supported devices|busy or unavailable": (
        "Another process may have the GPU, or all of its memory: nvidia-smi names it. Wait for its end, choose another"
        " GPU by CUDA_VISIBLE_DEVICES, or do without: JAX_PLATFORMS=cpu."
    ),
    r"(?i)driver|visible GPU|Outdated|Unable to (load|use)|Mismatched|DNN library": (
        "Where nvidia-smi shows a GPU, its driver, CUDA's libraries and JAX do not fit one another: for drivers from"
        " 580 on pip install -e '.[cuda13]', for older ones '.[cuda12]', and nothing of CUDA in LD_LIBRARY_PATH."
        " JAX_PLATFORMS=cpu does without the GPU."
    ),
}
INSTALL = "; a GPU needs pip install -e '.[cuda13]' (or cuda12), a TPU pip install -e '.[tpu]'"


def find_devices() -> Sequence[Any]:
    """The devices that JAX uses here; raises `ConfigError` where the environment asks for some that are not here."""
    count = getattr(jax.config, "jax_num_cpu_devices")  # noqa: B009
    leave_threads_free(count)
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:
        told = " ".join(re.split(r" \((?:set JAX_|you may need)", str(error))[0].split()).rstrip(".")
        check(count != 0, "JAX_NUM_CPU_DEVICES", count, "it must be at least 1; unset, a CPU is one device")
        asked = [f"{name}={os.environ[name]}" for name in SETTINGS if os.environ.get(name)] or ["default settings"]
        install = INSTALL if re.search("(?i)gpu|cuda|rocm|tpu", os.environ.get("JAX_PLATFORMS", "")) else ""
        take_what_there_is = f"Unset it to take what there is{install}."
        way_out = next((way for sign, way in WAYS_OUT.items() if re.search(sign, told)), take_what_there_is)
        # JAX asserts, without a word, where CUDA is asked for and there is none.
        told = told or "they are not here"
        raise ConfigError(f"JAX finds no devices with {' '.join(asked)}: {told}. {way_out}") from error


def make_mesh(config: Config) -> Mesh:
    """A one-dimensional mesh named `data`; `ConfigError` where devices are missing or the batch does not divide."""
    devices = find_devices()
    count = config.distributed.devices or len(devices)
    if count > len(devices):
        raise ConfigError(f"distributed.devices = {count}, but only {len(devices)} are here: {devices}.")
    if (hosts := len({device.process_index for device in devices})) > 1 and not several():
        raise ConfigError(
            f"These {len(devices)} devices belong to {hosts} processes, which have not joined one another: start the"
            " same command in each, with --distributed.coordinator, --distributed.num-processes and"
            " --distributed.process-id (docs/scaling.md)."
        )
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
    with jax.transfer_guard("allow"):  # on purpose, as by `device_put`
        return jax.tree.map(lambda leaf: _place(leaf, sharding), tree)


def _place(leaf: Any, sharding: Sharding) -> jax.Array:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_place(jax.random.key_data(leaf), sharding), impl=jax.random.key_impl(leaf))
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, whole.__getitem__)


def replicated(mesh: AnyMesh) -> NamedSharding:
    """The sharding of what every device holds whole: state, labels, order."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: AnyMesh) -> NamedSharding:
    """The sharding of a batch: its first axis spread over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))
