"""Strict arithmetic for every test: no silent dtype promotion, no silent rank promotion."""

import jax
import pytest
import strictness  # noqa: F401


@pytest.fixture
def quick_compile():
    """For what does not run long enough to be worth optimising."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
