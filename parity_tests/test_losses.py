"""Cross-entropy against `torch.nn.functional.cross_entropy`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tolerances import agree, assert_close

from jax_cifar.training.losses import cross_entropy

BATCH, CLASSES = 12, 7
SMOOTHING = (0.0, 0.1, 1.0)


def problem(soft: bool, scale: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    logits = scale * rng.standard_normal((BATCH, CLASSES))
    if soft:
        return logits, rng.dirichlet(np.ones(CLASSES), BATCH)
    return logits, rng.integers(0, CLASSES, BATCH)


def of_torch(logits: np.ndarray, targets: np.ndarray, smoothing: float) -> np.ndarray:
    loss = F.cross_entropy(torch.tensor(logits), torch.tensor(targets), reduction="none", label_smoothing=smoothing)
    return loss.numpy()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("smoothing", SMOOTHING)
@pytest.mark.parametrize("soft", [False, True])
def test_value_and_gradient_in_float64(soft, smoothing):
    logits, targets = problem(soft)
    ours = cross_entropy(jnp.asarray(logits), jnp.asarray(targets), smoothing)
    assert ours.dtype == jnp.float64
    assert_close(ours, of_torch(logits, targets, smoothing), "float64 operation", "losses")

    leaf = torch.tensor(logits, requires_grad=True)
    F.cross_entropy(leaf, torch.tensor(targets), label_smoothing=smoothing).backward()
    gradient = jax.grad(lambda x: jnp.mean(cross_entropy(x, jnp.asarray(targets), smoothing)))(jnp.asarray(logits))
    assert leaf.grad is not None
    assert_close(gradient, leaf.grad.numpy(), "float64 operation", "gradient")


@pytest.mark.parametrize("smoothing", SMOOTHING)
@pytest.mark.parametrize(("soft", "scale"), [(False, 3.0), (True, 3.0), (False, 1e4)])
def test_value_in_float32(soft, scale, smoothing):
    logits, targets = problem(soft, scale)
    logits = logits.astype(np.float32)
    targets = targets.astype(np.float32 if soft else np.int64)
    ours = cross_entropy(jnp.asarray(logits), jnp.asarray(targets.astype(np.float32 if soft else np.uint8)), smoothing)
    assert_close(ours, of_torch(logits, targets, smoothing), "float32 operation", "losses")


def test_bfloat16_logits_are_raised_to_float32_first():
    logits, targets = problem(soft=False)
    half = jnp.asarray(logits, jnp.bfloat16)
    ours = cross_entropy(half, jnp.asarray(targets, jnp.int32))
    judge = of_torch(np.asarray(half.astype(jnp.float32)), targets, 0.0)
    in_half = -jnp.take_along_axis(jax.nn.log_softmax(half), jnp.asarray(targets, jnp.int32)[:, None], axis=1)[:, 0]
    assert ours.dtype == jnp.float32
    assert_close(ours, judge, "float32 operation", "losses")
    assert not agree(in_half.astype(jnp.float32), judge, "float32 operation")


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("soft", [False, True])
def test_masked_classes(soft, smoothing):
    """Their logits are -inf: as PyTorch's class numbers have it, also where the targets are distributions."""
    logits, labels = problem(soft=False)
    logits[np.arange(BATCH), (labels + 1) % CLASSES] = -np.inf
    logits[0, labels[0]] = -np.inf  # the right class itself
    targets = jnp.asarray(np.eye(CLASSES)[labels] if soft else labels)
    ours = cross_entropy(jnp.asarray(logits), targets, smoothing)
    np.testing.assert_allclose(ours, of_torch(logits, labels, smoothing), rtol=1e-12)
    assert np.isinf(ours).tolist() == [True, *[smoothing > 0] * (BATCH - 1)]

    leaf = torch.tensor(logits, requires_grad=True)
    F.cross_entropy(leaf, torch.tensor(labels), label_smoothing=smoothing).backward()
    gradient = jax.grad(lambda x: jnp.mean(cross_entropy(x, targets, smoothing)))(jnp.asarray(logits))
    assert leaf.grad is not None
    assert_close(gradient, leaf.grad.numpy(), "float64 operation", "gradient")


def test_smoothing_over_the_other_classes_only_is_told_apart():
    logits, targets = problem(soft=False)
    eps = 0.1
    biased = np.full((BATCH, CLASSES), eps / (CLASSES - 1))
    biased[np.arange(BATCH), targets] = 1 - eps
    wrong = cross_entropy(jnp.asarray(logits, jnp.float32), jnp.asarray(biased, jnp.float32))
    assert np.max(np.abs(np.asarray(wrong) - of_torch(logits, targets, eps))) > 1e-2
