"""Losses, one number per example; the caller takes the mean, so that padded examples can be left out."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer


def cross_entropy(
    logits: Float[Array, "batch classes"],
    targets: Integer[Array, " batch"] | Float[Array, "batch classes"],
    label_smoothing: float = 0.0,
) -> Float[Array, " batch"]:
    """Cross-entropy in nats, equal to `torch.nn.functional.cross_entropy(..., reduction="none")`.

    `targets` are class numbers, or a distribution over the classes (mixed or soft labels). `label_smoothing` = eps
    moves a share of the target to the uniform distribution over all K classes, the true one included:
    (1 - eps) * target + eps / K (Szegedy et al. 2016, section 7). The result is float32, whatever the compute dtype
    of the logits; float64 logits give float64.

    A class whose logit is -inf, as of a network that masks classes, counts nothing where its share of the target is 0,
    and gives a loss of inf where it has one; PyTorch has NaN for the first if targets are distributions.
    """
    logits = logits if logits.dtype == jnp.float64 else logits.astype(jnp.float32)
    classes = logits.shape[-1]
    if jnp.issubdtype(targets.dtype, jnp.integer):
        distribution = jax.nn.one_hot(targets, classes, dtype=logits.dtype)
    else:
        distribution = targets.astype(logits.dtype)
    smoothed = (1 - label_smoothing) * distribution + label_smoothing / classes
    # A share of 0 times a log-probability of -inf would be NaN, also in the gradient.
    counted = jnp.where(smoothed == 0, 0, jax.nn.log_softmax(logits))
    return -jnp.sum(smoothed * counted, axis=-1)
