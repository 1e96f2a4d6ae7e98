"""Max and average pooling with PyTorch's window arithmetic: floor division, explicit padding."""

from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Shaped

Images = Shaped[Array, "_ _ _ _"]  # batch, height, width, channel, each of its own size

# Windows that tile the image are unrolled up to this size; a larger one has too many terms.
MAX_TILE = 4


def max_pool(
    x: Float[Array, "batch height width channel"], window: int, stride: int | None = None, padding: int = 0
) -> Float[Array, "batch out_height out_width channel"]:
    """Maximum over square windows, as `torch.nn.functional.max_pool2d`; stride defaults to window, padding is -inf.

    The gradient of a window goes to its first maximum in row-major order.
    """
    stride = window if stride is None else stride
    if stride == window <= MAX_TILE and padding == 0 and _counted(x):
        height, width = (size // window * window for size in x.shape[1:3])
        return _tiled_max(x[:, :height, :width], window)
    edges = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, window, window, 1), (1, stride, stride, 1), edges)


def average_pool(
    x: Float[Array, "batch height width channel"], window: int
) -> Float[Array, "batch out_height out_width channel"]:
    """Mean over square windows that lie side by side, as `torch.nn.functional.avg_pool2d`."""
    if _counted(x):
        height, width = (size // window * window for size in x.shape[1:3])
        total = reduce(lax.add, _positions(x[:, :height, :width], window))
    else:
        total = lax.reduce_window(x, 0.0, lax.add, (1, window, window, 1), (1, window, window, 1), "VALID")
    return total / window**2


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _tiled_max(x: Images, window: int) -> Images:
    return reduce(lax.max, _positions(x, window))


def _forward(x: Images, window: int) -> tuple[Images, Images]:
    """The maxima, and for the gradient where each window has its first one: a byte instead of the whole window."""
    positions = _positions(x, window)
    pooled = reduce(lax.max, positions)
    first = jnp.full(pooled.shape, len(positions) - 1, jnp.uint8)
    for number, values in reversed(list(enumerate(positions[:-1]))):
        first = jnp.where(values == pooled, jnp.uint8(number), first)
    return pooled, first


def _backward(window: int, first: Images, grad: Images) -> tuple[Images]:
    batch, rows, columns, channel = grad.shape
    numbers = jnp.arange(window**2, dtype=jnp.uint8).reshape(1, 1, window, 1, window, 1)
    chosen = first[:, :, None, :, None] == numbers
    full = jnp.where(chosen, grad[:, :, None, :, None], jnp.zeros((), grad.dtype))
    return (full.reshape(batch, rows * window, columns * window, channel),)


_tiled_max.defvjp(_forward, _backward)


def _counted(x: Images) -> bool:
    """Whether the number of images is known: of any number, as a program may be exported for, slices become gathers."""
    return isinstance(x.shape[0], int)


def _positions(x: Images, window: int) -> list[Images]:
    """The values at each position of the windows, row-major."""
    return [x[:, i::window, j::window] for i in range(window) for j in range(window)]
