"""Rectangles of one image that are filled."""

import math
from typing import Any

import numpy as np

from benchmarks.per_image.base import Change, Rng, below, between, reference, with_probability
from jax_cifar.augment import CoarseDropout, Cutout, RandomErasing
from jax_cifar.augment.boxes import TRIES


def fill_box(rng: Rng, image: np.ndarray, height: int, width: int, fill: Any) -> None:
    """Write `fill`, as the transforms have it, into a box at a uniform place of `image`."""
    top, left = below(rng, image.shape[0] - height + 1), below(rng, image.shape[1] - width + 1)
    box = image[top : top + height, left : left + width]
    box[:] = rng.integers(0, 256, box.shape, np.uint8) if fill == "random" else np.rint(255 * np.asarray(fill))


@reference.register
def _(transform: Cutout) -> Change:
    length, fill = transform.length, round(255 * transform.fill)

    def change(rng: Rng, image: np.ndarray) -> np.ndarray:
        image = image.copy()
        top, left = (below(rng, size) - length // 2 for size in image.shape[:2])
        image[max(top, 0) : top + length, max(left, 0) : left + length] = fill
        return image

    return change


@reference.register
def _(transform: RandomErasing) -> Change:
    ratios = math.log(transform.ratio[0]), math.log(transform.ratio[1])

    def change(rng: Rng, image: np.ndarray) -> np.ndarray:
        for _ in range(TRIES):
            pixels, ratio = image[..., 0].size * between(rng, transform.scale), math.exp(between(rng, ratios))
            rows, columns = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
            if rows < image.shape[0] and columns < image.shape[1]:
                image = image.copy()
                fill_box(rng, image, rows, columns, transform.value)
                break
        return image

    return with_probability(transform.p, change)


@reference.register
def _(transform: CoarseDropout) -> Change:
    def side(rng: Rng, ends: tuple[float, float], size: int) -> int:
        if isinstance(ends[0], int) and isinstance(ends[1], int):
            return ends[0] + below(rng, ends[1] + 1 - ends[0])
        return int(size * between(rng, ends))

    def change(rng: Rng, image: np.ndarray) -> np.ndarray:
        image, (least, most) = image.copy(), transform.num_holes_range
        for _ in range(least + below(rng, most + 1 - least)):
            rows = side(rng, transform.hole_height_range, image.shape[0])
            fill_box(rng, image, rows, side(rng, transform.hole_width_range, image.shape[1]), transform.fill)
        return image

    return with_probability(transform.p, change)
