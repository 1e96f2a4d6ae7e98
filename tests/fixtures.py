"""How JAX computes while a test runs; for both folders of tests."""

import jax
import pytest


@pytest.fixture
def x64():
    """Float64 is there, and the default."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def quick_compile():
    """For what does not run long enough to be worth optimising."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
