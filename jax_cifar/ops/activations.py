"""The exact GELU (Hendrycks and Gimpel, arXiv 1606.08415), with a gradient that is fast on CPU.

JAX's own is written with erfc and costs ten times as much on a CPU as everything around it.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


@jax.custom_vjp
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x times the share of a standard normal distribution below x, as `torch.nn.functional.gelu`.

    Computed in float32 at least. Differentiable once, in reverse mode only.
    """
    wide = _widened(x)
    return (wide * _share_below(wide)).astype(x.dtype)


def _forward(x: Array) -> tuple[Array, Array]:
    """The result, and its derivative at x: both come from one pass over x, which then need not be kept."""
    wide = _widened(x)
    share, density = _share_below(wide), jnp.exp(-0.5 * jnp.square(wide)) * (1 / math.sqrt(2 * math.pi))
    return (wide * share).astype(x.dtype), (share + wide * density).astype(x.dtype)


def _backward(derivative: Array, grad: Array) -> tuple[Array]:
    return (derivative * grad,)


gelu.defvjp(_forward, _backward)


def _widened(x: Array) -> Array:
    return x if x.dtype.itemsize >= 4 else x.astype(jnp.float32)


def _share_below(x: Array) -> Array:
    # The erf of jaxlib 0.7 ends at -0.9999998, not at -1, and a large x would magnify it; less than 1e-23 is lost.
    return jnp.where(x < -10, 0, 0.5 * (1 + lax.erf(x * math.sqrt(0.5))))
