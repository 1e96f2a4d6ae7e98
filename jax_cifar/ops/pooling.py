"""Max and average pooling with PyTorch's window arithmetic: floor division, explicit padding."""

from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Images = Float[Array, "_ _ _ _"]  # batch, height, width, channel, each of its own size

# Windows that tile the image are unrolled up to this size; a larger one has too many terms.
MAX_TILE = 4


def max_pool(
    x: Float[Array, "batch height width channel"], window: int, stride: int | None = None, padding: int = 0
) -> Float[Array, "batch out_height out_width channel"]:
    """Maximum over square windows, as `torch.nn.functional.max_pool2d`; stride defaults to window, padding is -inf.

    The gradient of a window goes to its first maximum in row-major order.
    """
    stride = window if stride is None else stride
    if stride == window <= MAX_TILE and padding == 0:
        return _tiled_max(x, window)
    edges = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, window, window, 1), (1, stride, stride, 1), edges)


def avg_pool(
    x: Float[Array, "batch height width channel"], window: int, stride: int | None = None
) -> Float[Array, "batch out_height out_width channel"]:
    """Mean over square windows, as `torch.nn.functional.avg_pool2d` without padding; stride defaults to window."""
    stride = window if stride is None else stride
    if stride == window:
        batch, height, width, channel = x.shape
        rows, columns = height // window, width // window
        tiles = x[:, : rows * window, : columns * window].reshape(batch, rows, window, columns, window, channel)
        return tiles.mean((2, 4))
    total = lax.reduce_window(x, 0.0, lax.add, (1, window, window, 1), (1, stride, stride, 1), "VALID")
    return total / (window * window)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _tiled_max(x: Images, window: int) -> Images:
    return reduce(lax.max, _positions(x, window))


def _forward(x: Images, window: int) -> tuple[Images, tuple[Images, Images]]:
    pooled = reduce(lax.max, _positions(x, window))
    return pooled, (x, pooled)


def _backward(window: int, saved: tuple[Images, Images], grad: Images) -> tuple[Images]:
    x, pooled = saved
    taken = jnp.zeros(pooled.shape, bool)
    parts = []
    for values in _positions(x, window):
        chosen = (values == pooled) & ~taken
        parts.append(jnp.where(chosen, grad, jnp.zeros_like(grad)))
        taken = taken | chosen
    batch, rows, columns, channel = pooled.shape
    tiles = jnp.stack(parts, 3).reshape(batch, rows, columns, window, window, channel)
    full = tiles.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * window, columns * window, channel)
    unread = [(0, x.shape[axis] - full.shape[axis], 0) for axis in range(4)]
    return (lax.pad(full, jnp.zeros((), full.dtype), unread),)


_tiled_max.defvjp(_forward, _backward)


def _positions(x: Images, window: int) -> list[Images]:
    """The values at each position of the whole windows, row-major."""
    height, width = (size // window * window for size in x.shape[1:3])
    return [x[:, i:height:window, j:width:window] for i in range(window) for j in range(window)]
