"""The handwritten digits that come with scikit-learn: 1797 real images, no download.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI machine learning repository, 1998.
"""

import numpy as np
from jaxtyping import Int, UInt8

from jax_cifar.data.dataset import Dataset, Splits
from jax_cifar.data.splits import seeded_ranks

_SCALE = 4  # from 8x8 to 32x32
_TEST_SHARE = 0.2
_SPLIT_SEED = 0  # fixed, so that the test images are the same in every run


def load_digits() -> Splits:
    """The digits as 32x32x3 uint8 images (three equal channels), a fifth of every class in the test part."""
    from sklearn import datasets

    pixels, labels = datasets.load_digits(return_X_y=True)
    small = np.asarray(pixels).astype(np.int64).reshape(-1, 8, 8)
    digits = Dataset(_enlarge(small), np.asarray(labels).astype(np.int32))
    test_counts = np.rint(_TEST_SHARE * np.bincount(digits.labels)).astype(np.int64)
    in_test = seeded_ranks(digits.labels, _SPLIT_SEED) < test_counts[digits.labels]
    train, test = digits.take(np.flatnonzero(~in_test)), digits.take(np.flatnonzero(in_test))
    return Splits("digits", train, test, None, tuple("0123456789"), "handwritten digits embedded in scikit-learn")


def _enlarge(small: Int[np.ndarray, "n 8 8"]) -> UInt8[np.ndarray, "n 32 32 3"]:
    """Bilinear enlargement in integers, from 0-16 to 0-255, rounded once at the end."""
    weights = _bilinear_weights(small.shape[1], _SCALE)
    enlarged = weights @ small @ weights.T
    full = 16 * (2 * _SCALE) ** 2
    grey = ((255 * enlarged + full // 2) // full).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=3)


def _bilinear_weights(size: int, scale: int) -> Int[np.ndarray, "large small"]:
    """Weights of the source pixels in every target pixel, in units of 1 / (2 * scale); rows sum to 2 * scale.

    Pixel centres are aligned (target i lies at (i + 1/2) / scale - 1/2) and the edge pixels are repeated outwards.
    """
    targets = np.arange(size * scale)
    position = 2 * targets + 1 - scale  # in units of 1 / (2 * scale) of a source pixel
    lower, part = np.divmod(position, 2 * scale)
    weights = np.zeros((size * scale, size), np.int64)
    weights[targets, np.clip(lower, 0, size - 1)] += 2 * scale - part
    weights[targets, np.clip(lower + 1, 0, size - 1)] += part
    return weights
