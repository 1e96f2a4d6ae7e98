"""Work on a batch in parts, so that what is made on the way stays in a CPU's cache.

Of a batch that is spread over devices each works on the rows that it has: parts cut without regard to where they lie
would have to be gathered first. Over which devices it is spread, a program is told where it is traced (`by_shares`).
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array

from jax_cifar.backend.mesh import AnyMesh

# Chunks of all powers of two, and of most other batches, come this near to any limit.
MOST_OFF = 1.5

Given = ParamSpec("Given")
Made = TypeVar("Made")
Value = TypeVar("Value", bound=Array)


def on_one_cpu() -> bool:
    """Whether one CPU computes: parts pay there, and no batch is spread over devices, from which they would gather."""
    return jax.default_backend() == "cpu" and jax.device_count() == 1


def materialize(value: Value, sign: Array | None = None) -> Value:
    """`value`, which XLA for CPUs then works out once however often it is read.

    An optimization barrier alone is taken away before XLA decides what to fuse. Nothing is fused through a conditional,
    and which of its branches is taken, both of which return the value, is left open until it runs: the sign of a number
    decides, the first of `value` itself or of another array. A value that comes straight from a gather needs another:
    two readers, of which this is one, would keep XLA from fusing the gather with what follows it.
    """
    if not on_one_cpu():
        return value
    sign = value if sign is None else sign
    return jax.lax.cond(sign[(0,) * sign.ndim] > 0, lambda same: same, jax.lax.optimization_barrier, value)


def by_shares(function: Callable[Given, Made], mesh: AnyMesh) -> Callable[Given, Made]:
    """`function`, to be traced for batches that are spread over the devices of a mesh."""
    if mesh.size == 1:
        return function

    @functools.wraps(function)
    def told(*args: Given.args, **kwargs: Given.kwargs) -> Made:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args, **kwargs)

    return told


def map_chunks(function: Callable[[Array], Array], x: Array, limit: int) -> Array:
    """`function` of a batch, which treats every row alike, about `limit` rows at a time on all devices of a CPU."""
    axes = _axes_of(x)
    if not axes:
        return _map_chunks(function, x, limit)
    share = max(1, limit // devices_of(x))

    def of_share(rows: Array) -> Array:
        return _map_chunks(function, rows, share)

    spread = PartitionSpec(axes)
    return jax.shard_map(of_share, in_specs=spread, out_specs=spread, check_vma=False)(x)


def sum_chunks(function: Callable[..., Made], arrays: Sequence[Array], limit: int) -> Made:
    """Sum of `function`, one array or several, over parts of batches, about `limit` rows at a time on all devices."""
    axes = _axes_of(arrays[0])
    if not axes:
        return _sum_chunks(function, arrays, limit)
    share = max(1, limit // devices_of(arrays[0]))

    def of_share(*rows: Array) -> Made:
        return lax.psum(_sum_chunks(function, rows, share), axes)

    return jax.shard_map(of_share, in_specs=PartitionSpec(axes), out_specs=PartitionSpec(), check_vma=False)(*arrays)


def devices_of(x: Array) -> int:
    """Over how many devices of this process a batch is spread: those of a CPU have its cores and caches together."""
    mesh = jax.sharding.get_abstract_mesh()
    return min(math.prod(mesh.shape[name] for name in _axes_of(x)), jax.local_device_count())


def _axes_of(x: Array) -> tuple[str, ...]:
    """The axes of the mesh that a batch is spread over; none on one device, or where they do not divide it."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    # Along an axis that `shard_map` has taken, a device sees nothing but its own rows already.
    axes = tuple(name for name, kind in kinds if kind == AxisType.Auto)
    devices = math.prod(mesh.shape[name] for name in axes)
    return axes if devices > 1 and len(x) % devices == 0 else ()


def _map_chunks(function: Callable[[Array], Array], x: Array, limit: int) -> Array:
    count, size = _split(len(x), limit)
    if count == 1:
        return function(x)
    like = jax.eval_shape(function, x)

    def body(index: Array, result: Array) -> Array:
        part = lax.dynamic_slice_in_dim(x, index * size, size)
        return lax.dynamic_update_slice_in_dim(result, function(part), index * size, 0)

    result = lax.fori_loop(0, count, body, jnp.zeros(like.shape, like.dtype))
    done = count * size
    return result if done == len(x) else lax.dynamic_update_slice_in_dim(result, function(x[done:]), done, 0)


def _sum_chunks(function: Callable[..., Made], arrays: Sequence[Array], limit: int) -> Made:
    batch = len(arrays[0])
    count, size = _split(batch, limit)
    if count == 1:  # Of several parts the loop would see to it that nothing is worked out anew for every reader.
        return function(*map(materialize, arrays))
    zeros = jax.tree.map(lambda like: jnp.zeros(like.shape, like.dtype), jax.eval_shape(function, *arrays))

    def add(total: Made, rows: Iterable[Array]) -> Made:
        return jax.tree.map(jnp.add, total, function(*rows))

    def body(index: Array, total: Made) -> Made:
        return add(total, (lax.dynamic_slice_in_dim(a, index * size, size) for a in arrays))

    total = lax.fori_loop(0, count, body, zeros)
    done = count * size
    return total if done == batch else add(total, (a[done:] for a in arrays))


def _split(batch: int, limit: int) -> tuple[int, int]:
    """How many chunks of which size; what is left over is fewer rows than a chunk.

    Nothing is left over where a chunk near the limit divides the batch: the rest is one more program in the program.
    """

    def off(size: int) -> float:
        return max(size / limit, limit / size)

    if batch <= limit:
        return 1, batch
    even = min((size for size in range(1, batch + 1) if batch % size == 0), key=off)
    size = even if off(even) <= MOST_OFF else limit
    return batch // size, size
