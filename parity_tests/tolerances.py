"""How far JAX and PyTorch may be apart: every tolerance of the parity tests, each with its reason.

The differences meant are `max |ours - theirs|`, and the limit is a share of the largest expected value, or of `floor`
where the values are smaller than that. A tolerance is never widened to let a test pass: a test that misses it has found
something.
"""

from typing import Any, NamedTuple

import numpy as np


class Tolerance(NamedTuple):
    """The largest difference allowed is `limit * max(floor, largest expected value)`."""

    limit: float
    floor: float
    reason: str


TOLERANCES = {
    "exact": Tolerance(0.0, 0.0, "the same operations in the same order: every bit agrees"),
    "float64 operation": Tolerance(1e-12, 1.0, "one operation; sums of a few thousand terms leave some 1e-14"),
    "float64 network": Tolerance(1e-10, 1e-3, "tens of layers, each rounding; the smallest fault planted leaves 1e-6"),
    "float64 eigenvectors": Tolerance(1e-9, 0.0, "rounding over the gap between neighbouring eigenvalues"),
    "float64 training, loss": Tolerance(1e-8, 1.0, "20 steps amplify rounding to 1e-12, any fault beyond 1e-3"),
    "float64 training, parameters": Tolerance(1e-8, 1.0, "as the loss"),
    "float64 training, statistics": Tolerance(1e-7, 1.0, "as the loss; activations are larger than parameters"),
    "float64 training, logits": Tolerance(1e-7, 1.0, "as the statistics, which they depend on"),
    "float32 operation": Tolerance(1e-6, 1.0, "one operation: 8 units in the last place"),
    "float32 far from zero": Tolerance(
        2e-3, 1.0, "inputs of 1000 carry an error of 6e-5 each; one-pass variance leaves 0.5"
    ),
    "float32 network": Tolerance(2e-5, 1.0, "tens of layers; sums are taken in another order"),
    "bfloat16 logits": Tolerance(2e-2, 0.0, "8 bits of mantissa; either framework is 1 % away from its own float32"),
    "bfloat16 loss": Tolerance(1e-3, 0.0, "a mean over the batch, in which the roundings of the logits cancel"),
    "schedule": Tolerance(1e-10, 0.0, "of the peak rate; PyTorch's recursive cosine loses digits"),
    "onnxruntime": Tolerance(1e-5, 0.0, "float32; batch norms are folded into the convolutions by the exporter"),
}


def difference(actual: Any, expected: Any) -> tuple[float, float]:
    """The largest difference and the largest expected value; shapes and dtypes must agree, values be finite."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    assert actual.dtype == expected.dtype, f"dtype {actual.dtype}, expected {expected.dtype}"
    actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    assert np.isfinite(expected).all(), "the expected values are not finite"
    assert np.isfinite(actual).all(), "the values are not finite"
    return float(np.abs(actual - expected).max(initial=0.0)), float(np.abs(expected).max(initial=0.0))


def agree(actual: Any, expected: Any, tolerance: str) -> bool:
    """Whether two arrays of one shape and dtype agree to within `TOLERANCES[tolerance]`."""
    gap, scale = difference(actual, expected)
    limit, floor, _ = TOLERANCES[tolerance]
    return gap <= limit * max(floor, scale)


def assert_close(actual: Any, expected: Any, tolerance: str, what: str = "the values") -> None:
    """Raise `AssertionError`, naming difference, scale and tolerance, unless two arrays `agree`."""
    gap, scale = difference(actual, expected)
    limit, floor, _ = TOLERANCES[tolerance]
    assert gap <= limit * max(floor, scale), (
        f"{what} differ by {gap:.3g} at a scale of {scale:.3g}; {tolerance} allows {limit * max(floor, scale):.3g}"
    )
