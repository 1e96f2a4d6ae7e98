"""What is done channel by channel: adding a bias, batch normalisation; with gradients that are fast on CPU.

XLA's CPU backend takes many times longer to sum over all axes but the last than a matrix product with ones does.
Other platforms sum in their own way.
"""

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

# A product adds one row after another. Parts of this size are exact to 1e-6, and what is summed stays in the cache.
CHUNK_BYTES = 2**20


@jax.custom_vjp
def add_bias(x: Images, bias: PerChannel) -> Images:
    """x plus a number per channel. Differentiable once, in reverse mode only."""
    return x + _per_channel(bias)


def _add_bias_forward(x: Images, bias: PerChannel) -> tuple[Images, None]:
    return add_bias(x, bias), None


def _add_bias_backward(_: None, grad: Images) -> tuple[Images, PerChannel]:
    return grad, _channel_sum(lambda g: g, grad).astype(grad.dtype)


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
    mean = _channel_sum(lambda x: x.astype(wide), x) / count
    # Two passes: the mean of squares less the square of the mean would lose digits.
    var = _channel_sum(lambda x, mean: jnp.square(_centred(x, mean)), x, mean=mean) / count
    inverse = lax.rsqrt(var + epsilon)
    y = _centred(x, mean) * _per_channel(scale * inverse) + _per_channel(bias)
    return (y, mean, var), (x, scale, mean, inverse)


def _batch_norm_backward(epsilon: float, saved: tuple[Array, ...], grads: tuple[Images, PerChannel, PerChannel]):
    x, scale, mean, inverse = saved
    grad, count = grads[0], x.size // x.shape[-1]
    bias_grad = _channel_sum(lambda g: g, grad)
    scale_grad = _channel_sum(lambda g, x, mean: g * _centred(x, mean), grad, x, mean=mean) * inverse
    normalised = _centred(x, mean) * _per_channel(inverse * scale_grad / count)
    x_grad = _per_channel(scale * inverse) * (grad - _per_channel(bias_grad / count) - normalised)
    return x_grad.astype(x.dtype), scale_grad, bias_grad


_batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


def _channel_sum(function: Callable[..., Images], *arrays: Images, **constants: PerChannel) -> PerChannel:
    """Sum over batch, height and width of an elementwise function of images, in float32 at least."""

    def stock(arrays: tuple[Images, ...], constants: dict[str, PerChannel]) -> PerChannel:
        values = function(*arrays, **constants)
        return jnp.sum(values, (0, 1, 2), dtype=_at_least_float32(values.dtype))

    def in_parts(arrays: tuple[Images, ...], constants: dict[str, PerChannel]) -> PerChannel:
        def product(*parts: Images) -> PerChannel:
            values = function(*parts, **constants)
            values = values.reshape(-1, values.shape[-1]).astype(_at_least_float32(values.dtype))
            return jnp.matmul(jnp.ones((1, len(values)), values.dtype), values)[0]

        return sum_chunks(product, arrays, max(1, CHUNK_BYTES // arrays[0][0].nbytes))

    return lax.platform_dependent(arrays, constants, cpu=in_parts, default=stock)


def _at_least_float32(dtype: jnp.dtype) -> DTypeLike:
    return dtype if dtype.itemsize >= 4 else jnp.float32


def _centred(x: Images, mean: PerChannel) -> Images:
    return x.astype(mean.dtype) - _per_channel(mean)


def _per_channel(vector: PerChannel) -> Float[Array, "1 1 1 channel"]:
    return vector.reshape(1, 1, 1, -1)
