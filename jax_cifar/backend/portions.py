"""Work on a batch in parts, so that what is made on the way stays in a CPU's cache."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array


def on_one_cpu() -> bool:
    """Whether one CPU computes: parts pay there, and no batch is spread over devices, from which they would gather."""
    return jax.default_backend() == "cpu" and jax.device_count() == 1


def map_chunks(function: Callable[[Array], Array], x: Array, limit: int) -> Array:
    """`function` of a batch, which treats every row alike, about `limit` rows at a time."""
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


def sum_chunks(function: Callable[..., Array], arrays: Sequence[Array], limit: int) -> Array:
    """Sum of `function` over the parts of batches, about `limit` rows at a time."""
    batch = len(arrays[0])
    count, size = _split(batch, limit)
    if count == 1:
        return function(*arrays)
    like = jax.eval_shape(function, *arrays)

    def body(index: Array, total: Array) -> Array:
        return total + function(*(lax.dynamic_slice_in_dim(a, index * size, size) for a in arrays))

    total = lax.fori_loop(0, count, body, jnp.zeros(like.shape, like.dtype))
    done = count * size
    return total if done == batch else total + function(*(a[done:] for a in arrays))


def _split(batch: int, limit: int) -> tuple[int, int]:
    """How many chunks of which size; fewer rows than there are chunks are left over."""
    count = -(-batch // limit)
    return count, batch // count
