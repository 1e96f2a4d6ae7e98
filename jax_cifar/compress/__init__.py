"""Smaller and faster networks from trained ones: pure functions on parameter trees."""

from jax_cifar.compress.fold import fold_batch_norm

__all__ = ["fold_batch_norm"]
