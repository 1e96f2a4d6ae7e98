"""Layers and initialisers: distributions, statistics, types. What they compute is judged by PyTorch in parity_tests."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_cifar.errors import ConfigError
from jax_cifar.models.layers import (
    BatchNorm,
    Conv,
    Dense,
    GroupNorm,
    dirac_kernel_init,
    group_count,
    resnet_kernel_init,
    torch_kernel_init,
)
from jax_cifar.models.speedrun import whitening_kernel

KEY = jax.random.key(0)


def apply(layer, *inputs, **options) -> Any:
    """`layer.apply`, whose declared result fits no test."""
    return layer.apply(*inputs, **options)


def kurtosis(values):
    centred = values - values.mean()
    return float((centred**4).mean() / (centred**2).mean() ** 2)


def correlated_images(count, size=8, seed=0):
    """Neighbouring pixels and channels share most of their value, and the mean is far from zero."""
    draws = np.random.default_rng(seed)
    noise = draws.normal(size=(count, size, size, 3))
    smooth = noise + np.roll(noise, 1, axis=1) + np.roll(noise, 1, axis=2) + noise.mean(axis=-1, keepdims=True) + 1.5
    return jnp.asarray(smooth, jnp.float32)


@pytest.mark.parametrize(("shape", "fan_in"), [((3, 3, 64, 128), 576), ((1, 1, 256, 512), 256), ((512, 200), 512)])
def test_default_kernels_are_uniform_within_one_over_root_fan_in(shape, fan_in):
    kernel = np.asarray(torch_kernel_init(KEY, shape), np.float64)
    bound = 1 / math.sqrt(fan_in)
    assert kernel.std() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert 0.99 * bound < np.abs(kernel).max() <= bound * (1 + 1e-6)


@pytest.mark.parametrize(
    ("layer", "sample", "fan_in"),
    [(Conv(4000, 3), jnp.zeros((1, 3, 3, 5)), 45), (Dense(4000), jnp.zeros((1, 20)), 20)],
    ids=["conv", "dense"],
)
def test_default_biases_are_uniform_within_one_over_root_fan_in(layer, sample, fan_in):
    bias = np.asarray(layer.init(KEY, sample)["params"]["bias"], np.float64)
    bound = 1 / math.sqrt(fan_in)
    assert bias.std() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert 0.98 * bound < np.abs(bias).max() <= bound * (1 + 1e-6)


def test_resnet_kernels_are_normal_by_fan_out_and_not_truncated():
    kernel = np.asarray(resnet_kernel_init(KEY, (3, 3, 64, 128)), np.float64)
    assert kernel.std() == pytest.approx(math.sqrt(2 / (9 * 128)), rel=0.02)
    assert kurtosis(kernel) == pytest.approx(3, abs=0.1)  # truncated at two sigma: 2.4; uniform: 1.8
    assert np.abs(kernel).max() > 3.5 * kernel.std()


@pytest.mark.parametrize("features", [3, 16])
def test_a_dirac_convolution_passes_its_inputs_through(features):
    images = jax.random.normal(KEY, (2, 6, 6, 5))
    layer = Conv(features, 3, padding=1, use_bias=False, kernel_init=dirac_kernel_init)
    out = apply(layer, layer.init(KEY, images), images)
    passed = min(features, 5)
    np.testing.assert_allclose(out[..., :passed], images[..., :passed], atol=1e-6)
    if features > 5:
        kernel = np.asarray(dirac_kernel_init(KEY, (3, 3, 5, features)))[..., 5:]
        assert kernel.std() == pytest.approx(1 / math.sqrt(3 * 45), rel=0.15)


def test_batch_norm_uses_and_keeps_the_statistics_it_should():
    images = 3 + 2 * jax.random.normal(KEY, (8, 4, 4, 5))
    training, evaluating = BatchNorm(), BatchNorm(use_running_average=True)
    variables = training.init(KEY, images)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], np.zeros(5))
    np.testing.assert_array_equal(variables["batch_stats"]["var"], np.ones(5))
    out, updated = apply(training, variables, images, mutable=["batch_stats"])
    np.testing.assert_allclose(np.mean(out, axis=(0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(np.var(out, axis=(0, 1, 2)), 1, atol=1e-4)
    mean, var = np.mean(images, axis=(0, 1, 2)), np.var(images, axis=(0, 1, 2), ddof=1)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(updated["batch_stats"]["var"], 0.9 + 0.1 * var, rtol=1e-5)
    out, unchanged = apply(evaluating, variables, images, mutable=["batch_stats"])
    np.testing.assert_allclose(out, images, rtol=1e-4)
    np.testing.assert_array_equal(unchanged["batch_stats"]["mean"], np.zeros(5))


def test_batch_norm_refuses_one_value_per_channel():
    with pytest.raises(ConfigError, match=r"one value per channel.*\(1, 1, 1, 5\).*norm group"):
        BatchNorm().init(KEY, jnp.zeros((1, 1, 1, 5)))


@pytest.mark.parametrize("layer", [BatchNorm(dtype=jnp.bfloat16), GroupNorm(dtype=jnp.bfloat16)])
def test_norms_take_statistics_in_float32_and_return_bfloat16(layer):
    # Summed in bfloat16, 8192 values near 100 would be off by whole units.
    images = (100 + jax.random.normal(KEY, (2, 64, 64, 2))).astype(jnp.bfloat16)
    variables = layer.init(KEY, images)
    out, updated = apply(layer, variables, images, mutable=["batch_stats"])
    assert out.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, updated))} == {jnp.dtype(jnp.float32)}
    assert abs(float(np.mean(np.asarray(out, np.float32)))) < 0.02


@pytest.mark.parametrize(
    ("channels", "groups"), [(1, 1), (2, 1), (3, 1), (8, 4), (24, 12), (48, 24), (64, 32), (96, 32), (512, 32)]
)
def test_group_count(channels, groups):
    assert group_count(channels) == groups


def test_whitening_makes_patches_uncorrelated_with_variance_one():
    images = correlated_images(300)
    layer = Conv(24, 2, use_bias=False)
    out = apply(layer, {"params": {"kernel": whitening_kernel(images, epsilon=0.0)}}, images).reshape(-1, 24)
    np.testing.assert_allclose(np.cov(np.asarray(out[:, :12], np.float64).T), np.eye(12), atol=2e-3)
    np.testing.assert_allclose(out[:, 12:], -out[:, :12], atol=1e-4)


def test_whitening_filters_match_float64_and_hold_back_constant_directions():
    # The bright left edge gives the four places in a patch different means, which the covariance must not count.
    images = correlated_images(50).at[:, :, 0].add(5.0).at[..., 2].set(0.25)
    kernel = np.asarray(whitening_kernel(images), np.float64).reshape(12, 24)[:, :12]
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(images, np.float64), (2, 2), axis=(1, 2))
    patches = windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, 12)
    values, vectors = np.linalg.eigh(np.cov(patches.T, ddof=0))
    expected = (vectors / (values.clip(0) + 5e-4)) @ vectors.T  # sign and order of the eigenvectors drop out
    varying = np.ix_(np.arange(12) % 3 != 2, np.arange(12) % 3 != 2)
    scale = np.abs(expected[varying]).max()
    np.testing.assert_allclose((kernel @ kernel.T)[varying], expected[varying], rtol=0, atol=1e-3 * scale)
    norms = np.linalg.norm(kernel, axis=0)
    assert np.all(np.diff(norms) >= -1e-3 * norms[1:])
    assert norms[-1] == pytest.approx(5e-4**-0.5, rel=1e-3)
    np.testing.assert_array_equal(kernel[np.abs(kernel).argmax(axis=0), np.arange(12)] > 0, True)
