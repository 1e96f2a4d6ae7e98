"""What is done channel by channel: adding a bias, batch normalisation; with gradients that are fast on CPU.

XLA's CPU backend takes many times longer to sum over all axes but the last than a matrix product with ones does.
Other platforms sum in their own way.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jax_cifar.backend.portions import sum_chunks

Images = Float[Array, "batch height width channel"]
PerChannel = Float[Array, " channel"]

# What is summed stays in the cache.
CHUNK_BYTES = 2**20
# A product adds one row after another, and is the more exact the fewer they are: about a thousand of so many numbers.
ROW_NUMBERS = 256


@jax.custom_vjp
def add_bias(x: Images, bias: PerChannel) -> Images:
    """x plus a number per channel. Differentiable once, in reverse mode only."""
    return x + _per_channel(bias)


def _add_bias_forward(x: Images, bias: PerChannel) -> tuple[Images, None]:
    return add_bias(x, bias), None


def _add_bias_backward(_: None, grad: Images) -> tuple[Images, PerChannel]:
    (total,) = _channel_sums(lambda g: (g,), grad)
    return grad, total.astype(grad.dtype)


add_bias.defvjp(_add_bias_forward, _add_bias_backward)


def batch_norm(x: Images, scale: PerChannel, bias: PerChannel, epsilon: float) -> tuple[Images, PerChannel, PerChannel]:
    """Images normalised by their own mean and biased variance per channel, scaled and shifted; and mean and variance.

    Computes and returns in the dtype of `scale`. Differentiable once, in reverse mode only; mean and variance are for
    running statistics and have no gradient (Ioffe and Szegedy, arXiv 1502.03167).
    """
    normalised: Any = _batch_norm(x, scale, bias, epsilon)
    return normalised


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _batch_norm(x: Images, scale: PerChannel, bias: PerChannel, epsilon: float) -> Any:
    return _batch_norm_forward(x, scale, bias, epsilon)[0]


def _batch_norm_forward(x: Images, scale: PerChannel, bias: PerChannel, epsilon: float):
    wide, count = scale.dtype, x.size // x.shape[-1]
    (total,) = _channel_sums(lambda x: (x.astype(wide),), x)
    # Two passes: the mean of squares less the square of the mean would lose digits. The second makes up for what the
    # first rounded away, which a channel that hardly varies would be divided by.
    about = total / count
    off, squares = _channel_sums(_centred_and_squared, x, mean=about) / count
    mean, var = about + off, jnp.maximum(squares - jnp.square(off), 0)
    inverse = lax.rsqrt(var + epsilon)
    y = _centred(x, mean) * _per_channel(scale * inverse) + _per_channel(bias)
    return (y, mean, var), (x, scale, mean, inverse)


def _batch_norm_backward(epsilon: float, saved: tuple[Array, ...], grads: tuple[Images, PerChannel, PerChannel]):
    x, scale, mean, inverse = saved
    grad, count = grads[0], x.size // x.shape[-1]
    bias_grad, products = _channel_sums(lambda g, x, mean: (g, g * _centred(x, mean)), grad, x, mean=mean)
    scale_grad = products * inverse
    normalised = _centred(x, mean) * _per_channel(inverse * scale_grad / count)
    x_grad = _per_channel(scale * inverse) * (grad - _per_channel(bias_grad / count) - normalised)
    return x_grad.astype(x.dtype), scale_grad, bias_grad


_batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


def _channel_sums(
    function: Callable[..., tuple[Images, ...]], *arrays: Images, **constants: PerChannel
) -> Float[Array, "values channel"]:
    """Sums over batch, height and width of elementwise functions of images, in float32 at least."""

    def stock(arrays: tuple[Images, ...], constants: dict[str, PerChannel]) -> Array:
        values = function(*arrays, **constants)
        return jnp.stack([jnp.sum(v, (0, 1, 2), dtype=_at_least_float32(v.dtype)) for v in values])

    def in_parts(arrays: tuple[Images, ...], constants: dict[str, PerChannel]) -> Array:
        def products(*parts: Images) -> Array:
            return jnp.stack([_sum_by_product(v) for v in function(*parts, **constants)])

        return sum_chunks(products, arrays, max(1, CHUNK_BYTES // arrays[0][0].nbytes))

    return lax.platform_dependent(arrays, constants, cpu=in_parts, default=stock)


def _sum_by_product(values: Images) -> PerChannel:
    """By a product with ones; where channels are few, of rows that hold several pixels."""
    (_, height, width, channels), dtype = values.shape, _at_least_float32(values.dtype)
    divisors = (n for n in range(1, height * width + 1) if height * width % n == 0)
    pixels = min(divisors, key=lambda n: abs(math.log(n * channels / ROW_NUMBERS)))
    rows = values.reshape(-1, pixels * channels).astype(dtype)
    total = jnp.matmul(jnp.ones((1, len(rows)), dtype), rows)
    return jnp.sum(total.reshape(pixels, channels), 0)


def _at_least_float32(dtype: jnp.dtype) -> DTypeLike:
    return dtype if dtype.itemsize >= 4 else jnp.float32


def _centred_and_squared(x: Images, mean: PerChannel) -> tuple[Images, Images]:
    centred = _centred(x, mean)
    return centred, jnp.square(centred)


def _centred(x: Images, mean: PerChannel) -> Images:
    return x.astype(mean.dtype) - _per_channel(mean)


def _per_channel(vector: PerChannel) -> Float[Array, "1 1 1 channel"]:
    return vector.reshape(1, 1, 1, -1)
