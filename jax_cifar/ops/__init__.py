"""Convolution and pooling with forms that are fast on every backend."""

from jax_cifar.ops.conv import conv2d
from jax_cifar.ops.pooling import avg_pool, max_pool

__all__ = ["avg_pool", "conv2d", "max_pool"]
