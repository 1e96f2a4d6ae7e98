"""Whether an exported file computes what the network computes, as far as float32 can say.

Two right float32 programs of one network differ, since they sum in different orders. How far each may lie from the
exact logits is not one number for all networks, so it is measured: JAX's own float32 program is compared with the
network in float64, and what another runtime computes may be a few times as far from it, no further. Of the networks
that ship the other runtimes were 0.6 to 1.6 times as far.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int

from jax_cifar.errors import ExportError

SAMPLE = 64  # images that are computed in float64, evenly spread over all
ROOT_MEAN_SQUARE, LARGEST = 4, 16  # times JAX's own error: the mean is steady, the largest of many is not
# Where JAX's own error is less, it is taken for this much of the largest logit: 4 or 16 units in float32's last place.
LEAST = (2.0**-24, 2.0**-24)
# Of the largest logit, for INT8: with other batches an activation may fall to the other side of a step.
QUANTIZED = 0.1
UNKNOWN = 1e-5  # of the largest logit, for a network that has no float64: how far JAX and another runtime may be apart

Logits = Float32[np.ndarray, "images classes"]


class Expected(NamedTuple):
    """What a network gives for some images."""

    logits: Logits  # of all of them, by JAX in float32
    exact: Float64[np.ndarray, "sample classes"] | None  # of the images `sample_of`; None: it has no float64
    allowed: float = UNKNOWN  # how far logits may lie from these without float64, of the largest


class Agreement(NamedTuple):
    """How far an exported network was seen from the original; differences in units of the largest logit."""

    images: int
    same: int  # images of the same class
    gap: float  # the largest difference between the two in float32
    error: float | None  # of the exported one: its largest difference from float64
    jax_error: float | None  # of JAX's float32

    def __str__(self) -> str:
        told = f"logits within {self.gap:.1e} of the largest; {self.same:,} of {self.images:,} classes the same"
        if self.error is None:
            return f"{told} (no float64 to compare with)"
        return f"{told}; from float64 {self.error:.1e}, JAX in float32 {self.jax_error:.1e}"


def sample_of(count: int) -> Int[np.ndarray, " sample"]:
    """The images, of so many, whose logits are computed in float64."""
    return np.unique(np.linspace(0, count - 1, SAMPLE).astype(int))


def require_agreement(logits: Logits, expected: Expected, how: str = "") -> Agreement:
    """Compare the logits of what was written, read back, with what they have to be.

    Args:
        logits: of the first images of `expected`, or of all.
        expected: what the network gives.
        how: how they were computed, for the message: " at batch size 2".

    Raises:
        ExportError: they are further apart than float32 explains, or not finite.
    """
    scale = float(np.abs(expected.logits).max()) or 1.0
    ours = expected.logits[: len(logits)]
    gap = float(np.abs(logits - ours).max()) / scale
    same = int((logits.argmax(1) == ours.argmax(1)).sum())
    if expected.exact is None:
        _require(gap, expected.allowed, how, scale)
        return Agreement(len(logits), same, gap, None, None)
    sample = sample_of(len(expected.logits))
    there = sample < len(logits)
    errors = (logits[sample[there]] - expected.exact[there]) / scale
    own = (expected.logits[sample] - expected.exact) / scale
    _require(_mean(errors), ROOT_MEAN_SQUARE * max(LEAST[0], _mean(own)), f"{how}, in the mean,", scale)
    largest = LARGEST * max(LEAST[1], float(np.abs(own).max()))
    _require(float(np.abs(errors).max()), largest, how, scale)
    _require(gap, largest, how, scale)
    return Agreement(len(logits), same, gap, float(np.abs(errors).max()), float(np.abs(own).max()))


def _mean(errors: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(errors))))


def _require(gap: float, limit: float, how: str, scale: float) -> None:
    if not gap <= limit:  # a NaN is no agreement
        raise ExportError(
            f"What was written does not give the network's logits:{how} they differ by {gap * scale:.2g} at a scale of"
            f" {scale:.2g}, where rounding explains {limit * scale:.2g}. Please report this, with the configuration."
        )
