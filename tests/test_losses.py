"""Cross-entropy by its definition; parity_tests/test_losses.py has PyTorch as the judge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_cifar.training.losses import cross_entropy


def test_uniform_logits_cost_log_k_whatever_the_target():
    logits = jnp.zeros((3, 10))
    for smoothing in (0.0, 0.1):
        loss = cross_entropy(logits, jnp.array([0, 4, 9]), smoothing)
        np.testing.assert_allclose(loss, np.full(3, np.log(10)), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int32])
def test_class_numbers_equal_their_one_hot_targets(dtype):
    logits = jax.random.normal(jax.random.key(0), (6, 5))
    labels = jnp.array([0, 1, 2, 3, 4, 0], dtype)
    hard = cross_entropy(logits, labels, 0.2)
    soft = cross_entropy(logits, jax.nn.one_hot(labels, 5), 0.2)
    np.testing.assert_array_equal(hard, soft)
    assert not np.allclose(hard, cross_entropy(logits, labels, 0.0))


def test_mixed_labels_cost_the_mixture_of_the_losses():
    logits = jax.random.normal(jax.random.key(1), (4, 5))
    first, second = jnp.array([0, 1, 2, 3]), jnp.array([4, 1, 0, 2])
    targets = 0.3 * jax.nn.one_hot(first, 5) + 0.7 * jax.nn.one_hot(second, 5)
    expected = 0.3 * cross_entropy(logits, first) + 0.7 * cross_entropy(logits, second)
    np.testing.assert_allclose(cross_entropy(logits, targets), expected, rtol=1e-6)


def test_half_precision_in_single_precision_out_and_huge_logits_stay_finite():
    logits = jnp.array([[3e4, -3e4], [-3e4, 3e4]], jnp.bfloat16)
    loss = cross_entropy(logits, jnp.array([0, 0]), 0.0)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, [0.0, 6e4], rtol=1e-2)
