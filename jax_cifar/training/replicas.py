"""How many runs are trained by one compiled call: one, several in the same operations, or one on every device."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jax_cifar.backend.mesh import find_devices, make_mesh, place, replicated
from jax_cifar.config import Config
from jax_cifar.errors import check

How = Literal["sequential", "vmap", "devices"]
# Of state, sums, data, order, tables and key, all but the data have an axis of replicas.
AXES = (0, 0, None, 0, 0, 0)


class Replicas(NamedTuple):
    """The runs that one compiled call trains; stacked, every array of theirs has a leading axis of replicas."""

    size: int
    mesh: Mesh
    stacked: bool
    sharding: NamedSharding  # of what each replica has of its own
    transform: Callable[[Callable[..., Any]], Callable[..., Any]]  # from one run's train_steps to those of all

    def stack(self, trees: Sequence[Any]) -> Any:
        """One pytree on the devices, of one for each replica; the last stands in where there are too few."""
        trees = [*trees, *[trees[-1]] * (self.size - len(trees))]
        tree = jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees) if self.stacked else trees[0]
        return place(tree, self.sharding)

    def unstack(self, tree: Any) -> Iterator[Any]:
        """The pytree of every replica, on the host."""
        tree = jax.device_get(tree)
        if not self.stacked:
            yield tree
            return
        for i in range(self.size):
            yield jax.tree.map(lambda leaf, i=i: leaf[i], tree)

    def values(self, scalar: Any) -> np.ndarray:
        """A number of every replica, on the host: [size]."""
        return np.atleast_1d(jax.device_get(scalar))

    def each(self, function: Callable[..., Any], *axes: int | None) -> Callable[..., Any]:
        """`function` of one replica for all of them, compiled; `axes` says which arguments have their axis."""
        return jax.jit(jax.vmap(function, axes) if self.stacked else function, out_shardings=self.sharding)


def one_run(config: Config) -> Replicas:
    """A single run, each batch spread over all devices."""
    mesh = make_mesh(config)
    return Replicas(1, mesh, False, replicated(mesh), lambda train_steps: train_steps)


def make_replicas(config: Config, how: How, count: int) -> Replicas:
    """So many runs: one after another ("sequential"), in one call ("vmap"), or one on each device ("devices")."""
    if how == "sequential":
        return one_run(config)
    if how == "vmap":
        mesh = make_mesh(config)
        return Replicas(count, mesh, True, replicated(mesh), _in_one)
    check(how == "devices", "how", how, "it must be auto, sequential, vmap or devices")
    devices = find_devices()
    wanted = config.distributed.devices or len(devices)
    check(wanted <= len(devices), "distributed.devices", wanted, f"only {len(devices)} are here")
    devices = devices[: min(wanted, count)]
    # The step asks for its batch to be spread over "data": here one device.
    mesh = jax.make_mesh((len(devices), 1), ("member", "data"), axis_types=(AxisType.Auto,) * 2, devices=devices)
    sharding = NamedSharding(mesh, PartitionSpec("member"))
    return Replicas(len(devices), mesh, True, sharding, partial(_on_own_device, mesh))


def _in_one(train_steps: Callable[..., Any]) -> Callable[..., Any]:
    """All replicas in the same operations."""

    def all_steps(*own: Any, count: int | jax.Array) -> Any:
        return jax.vmap(partial(train_steps, count=count), in_axes=AXES)(*own)

    return all_steps


def _on_own_device(mesh: Mesh, train_steps: Callable[..., Any]) -> Callable[..., Any]:
    """One replica per device, in the operations that it would have alone."""
    specs = tuple(PartitionSpec() if axis is None else PartitionSpec("member") for axis in AXES)

    def all_steps(*own: Any, count: int | jax.Array) -> Any:
        def alone(*parts: Any) -> Any:
            own = [p if axis is None else jax.tree.map(lambda x: x[0], p) for p, axis in zip(parts, AXES, strict=True)]
            return jax.tree.map(lambda x: x[None], train_steps(*own, count=count))

        # check_vma=False: the convolution's own gradients do not say what differs between the devices.
        options = {"axis_names": {"member"}, "check_vma": False}
        return jax.shard_map(alone, mesh=mesh, in_specs=specs, out_specs=specs[0], **options)(*own)

    return all_steps
