"""Rectangles of one image that are filled."""

import math
from typing import Any

import numpy as np

from benchmarks.per_image.base import Reference, Rng, below, between, levels, reference
from jax_cifar.augment import CoarseDropout, Cutout, RandomErasing
from jax_cifar.augment.boxes import TRIES, BoxDraws

Box = tuple[int, int, int, int]  # top, left, height, width


def place(rng: Rng, shape: tuple[int, ...], height: int, width: int) -> Box:
    """A box at a uniform place of an image."""
    return below(rng, shape[0] - height + 1), below(rng, shape[1] - width + 1), height, width


def drawn(rng: Rng, shape: tuple[int, ...], boxes: list[Box], fill: Any) -> BoxDraws | None:
    """The draws of these boxes; None for none."""
    values = rng.random(shape, np.float32) if boxes and fill == "random" else None
    return BoxDraws(boxes, values) if boxes else None  # pyright: ignore[reportArgumentType]


def fill_boxes(image: np.ndarray, draws: BoxDraws | None, fill: Any) -> np.ndarray:
    """A copy of `image`, filled in the boxes: with what was drawn for them, or else with `fill`."""
    if draws is None:
        return image
    image = image.copy()
    for top, left, height, width in draws.boxes:
        box = slice(top, top + height), slice(left, left + width)
        image[box] = levels(fill if draws.values is None else draws.values[box], image)
    return image


@reference.register
def _(transform: Cutout) -> Reference:
    length = transform.length

    def draw(rng: Rng, shape: tuple[int, ...]) -> tuple[int, int]:
        return below(rng, shape[0]), below(rng, shape[1])

    def apply(image: np.ndarray, centre: tuple[int, int]) -> np.ndarray:
        image = image.copy()
        top, left = (place - length // 2 for place in centre)
        image[max(top, 0) : top + length, max(left, 0) : left + length] = levels(transform.fill, image)
        return image

    return Reference(draw, apply)


@reference.register
def _(transform: RandomErasing) -> Reference:
    ratios = math.log(transform.ratio[0]), math.log(transform.ratio[1])

    def draw(rng: Rng, shape: tuple[int, ...]) -> BoxDraws | None:
        boxes = []
        if rng.random() < transform.p:
            tries = ((between(rng, transform.scale), math.exp(between(rng, ratios))) for _ in range(TRIES))
            height, width = first_that_fits(tries, shape)
            boxes = [place(rng, shape, height, width)] if height else []
        return drawn(rng, shape, boxes, transform.value)

    return Reference(draw, lambda image, draws: fill_boxes(image, draws, transform.value))


def first_that_fits(tries: Any, shape: tuple[int, ...]) -> tuple[int, int]:
    """torchvision's loop: sides of the first rectangle smaller than the image, of `tries` (area, height / width)."""
    for area, ratio in tries:
        pixels = area * (shape[0] * shape[1])
        height, width = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if height < shape[0] and width < shape[1]:
            return height, width
    return 0, 0


@reference.register
def _(transform: CoarseDropout) -> Reference:
    def side(rng: Rng, ends: tuple[float, float], size: int) -> int:
        if isinstance(ends[0], int) and isinstance(ends[1], int):
            return ends[0] + below(rng, ends[1] + 1 - ends[0])
        return int(size * between(rng, ends))

    def draw(rng: Rng, shape: tuple[int, ...]) -> BoxDraws | None:
        (least, most), boxes = transform.num_holes_range, []
        if rng.random() < transform.p:
            for _ in range(least + below(rng, most + 1 - least)):
                height = side(rng, transform.hole_height_range, shape[0])
                boxes.append(place(rng, shape, height, side(rng, transform.hole_width_range, shape[1])))
        return drawn(rng, shape, boxes, transform.fill)

    return Reference(draw, lambda image, draws: fill_boxes(image, draws, transform.fill))
