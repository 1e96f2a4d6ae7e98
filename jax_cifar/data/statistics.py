"""Channel statistics of a set of images: computed, never copied."""

import numpy as np
from jaxtyping import Float64, UInt8

from jax_cifar.errors import DataError

_BLOCK = 1000  # images at a time, so that the squares need little memory


def channel_statistics(
    images: UInt8[np.ndarray, "n height width channel"],
) -> tuple[Float64[np.ndarray, "channel"], Float64[np.ndarray, "channel"]]:
    """Mean and population standard deviation of every channel, in units of the full range (pixels / 255).

    Pixels and their squares are summed as integers, so neither the order of the images nor rounding matters.

    Raises:
        DataError: there is no image, or the pixels are not uint8 (already divided by 255, say).
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.size == 0:
        raise DataError(f"Images are {images.dtype} {list(images.shape)}; expected uint8 [n, height, width, channel].")
    shape = images.shape[1:]
    total, squares = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for start in range(0, len(images), _BLOCK):
        block = images[start : start + _BLOCK]
        total += block.sum(axis=0, dtype=np.int64)
        # 255 squared still fits sixteen bits.
        squares += np.square(block, dtype=np.uint16).sum(axis=0, dtype=np.int64)
    count = images.size // images.shape[-1]
    sums = [int(value) for value in total.sum(axis=(0, 1))]
    square_sums = [int(value) for value in squares.sum(axis=(0, 1))]
    mean = np.array([value / (255 * count) for value in sums])
    # Python's integers do not overflow: n * sum(x^2) - sum(x)^2 is exact.
    variance = [
        (count * square - value**2) / (255 * count) ** 2 for value, square in zip(sums, square_sums, strict=True)
    ]
    return mean, np.sqrt(np.array(variance))
