"""Crops, flips, rotations and warps of one image."""

import math
from functools import cache
from typing import Literal

import numpy as np
from PIL import Image
from scipy import ndimage

from benchmarks.per_image.base import Change, Rng, below, between, reference, with_probability
from jax_cifar.augment import (
    ElasticTransform,
    GridDistortion,
    HorizontalFlip,
    RandomAffine,
    RandomCrop,
    RandomResizedCrop,
    RandomRotation,
)
from jax_cifar.augment.affine import TRIES, symmetric

BILINEAR, NEAREST = Image.Resampling.BILINEAR, Image.Resampling.NEAREST
SCIPY_MODES = {"constant": "grid-constant", "reflect": "mirror", "edge": "nearest"}


@reference.register
def _(transform: RandomCrop) -> Change:
    padding, fill = transform.padding, round(255 * transform.fill)

    def change(rng: Rng, image: np.ndarray) -> np.ndarray:
        height, width, channels = image.shape
        if transform.padding_mode == "reflect":
            padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)), "reflect")
        else:
            padded = np.full((height + 2 * padding, width + 2 * padding, channels), fill, np.uint8)
            padded[padding : padding + height, padding : padding + width] = image
        top, left = below(rng, 2 * padding + 1), below(rng, 2 * padding + 1)
        return padded[top : top + height, left : left + width]

    return change


@reference.register
def _(transform: HorizontalFlip) -> Change:
    # The alternating flip has p=0.5 too; which half it takes costs no time to speak of.
    return with_probability(transform.p, lambda rng, image: image[:, ::-1])


@reference.register
def _(transform: RandomResizedCrop) -> Change:
    ratios = math.log(transform.ratio[0]), math.log(transform.ratio[1])

    def change(rng: Rng, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        for _ in range(TRIES):
            pixels, ratio = height * width * between(rng, transform.scale), math.exp(between(rng, ratios))
            rows, columns = round(math.sqrt(pixels / ratio)), round(math.sqrt(pixels * ratio))
            if 0 < rows <= height and 0 < columns <= width:
                top, left = below(rng, height - rows + 1), below(rng, width - columns + 1)
                break
        else:
            rows, columns = transform.middle(height, width)
            top, left = (height - rows) // 2, (width - columns) // 2
        box = Image.fromarray(image).crop((left, top, left + columns, top + rows))
        return np.asarray(box.resize((width, height), BILINEAR))

    return change


@reference.register
def _(transform: RandomRotation) -> Change:
    fill = (round(255 * transform.fill),) * 3

    def change(rng: Rng, image: np.ndarray) -> np.ndarray:
        degrees = between(rng, symmetric(transform.degrees))
        return np.asarray(Image.fromarray(image).rotate(degrees, BILINEAR, fillcolor=fill))

    return change


@reference.register
def _(transform: RandomAffine) -> Change:
    fill, share = (round(255 * transform.fill),) * 3, transform.translate or (0.0, 0.0)
    low_x, high_x, low_y, high_y = transform.shears()

    def change(rng: Rng, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        angle = math.radians(between(rng, symmetric(transform.degrees)))
        right, down = (
            round(between(rng, symmetric(share[0] * width))),
            round(between(rng, symmetric(share[1] * height))),
        )
        zoom = between(rng, transform.scale or (1.0, 1.0))
        tan_x, tan_y = (math.tan(math.radians(between(rng, ends))) for ends in ((low_x, high_x), (low_y, high_y)))
        # Rotation times shear along y times shear along x; the determinant is 1, so that the inverse needs no division.
        a, c = math.cos(angle) + math.sin(angle) * tan_y, math.sin(angle) - math.cos(angle) * tan_y
        b, d = -a * tan_x - math.sin(angle), -c * tan_x + math.cos(angle)
        a, b, c, d = d / zoom, -b / zoom, -c / zoom, a / zoom
        x, y = width / 2 + right, height / 2 + down
        matrix = (a, b, width / 2 - a * x - b * y, c, d, height / 2 - c * x - d * y)
        return np.asarray(affine(Image.fromarray(image), matrix, fill, BILINEAR))

    return change


def affine(picture: Image.Image, matrix: tuple[float, ...], fill: tuple[int, ...], kind=NEAREST) -> Image.Image:
    """Read `picture` at the places (x, y) that the 2 x 3 `matrix` gives for every pixel."""
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, kind, fillcolor=fill)


@cache
def pixel_places(height: int, width: int) -> np.ndarray:
    """Row and column of every pixel, float32 [2, height, width]."""
    return np.mgrid[:height, :width].astype(np.float32)


@reference.register
def _(transform: ElasticTransform) -> Change:
    mode, fill = SCIPY_MODES[transform.padding_mode], round(255 * transform.fill)

    def change(rng: Rng, image: np.ndarray) -> np.ndarray:
        noise = 2 * rng.random((2, *image.shape[:2]), np.float32) - 1
        smooth = ndimage.gaussian_filter(noise, (0, transform.sigma, transform.sigma))
        places = pixel_places(*image.shape[:2]) + transform.alpha * smooth
        result = np.empty_like(image)
        for channel in range(image.shape[2]):
            ndimage.map_coordinates(image[..., channel], places, result[..., channel], 1, mode, fill)
        return result

    return with_probability(transform.p, change)


@reference.register
def _(transform: GridDistortion) -> Change:
    steps, limit = transform.num_steps, transform.distort_limit

    def stretched(rng: Rng, image: np.ndarray, axis: Literal[0, 1]) -> np.ndarray:
        size = image.shape[axis]
        factors = 1 + limit * (2 * rng.random(steps) - 1)
        ends = np.concatenate([[0.0], np.cumsum(factors)]) * ((size - 1) / factors.sum())
        places = np.interp(np.arange(size), np.linspace(0, size - 1, steps + 1), ends)
        first = np.minimum(places.astype(np.int64), size - 2)
        share = (places - first).astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        before = image.take(first, axis)
        return before + share * (image.take(first + 1, axis) - before)

    def change(rng: Rng, image: np.ndarray) -> np.ndarray:
        # A row's new place depends on its number alone, and a column's: the two directions can be done in turn.
        return (stretched(rng, stretched(rng, image.astype(np.float32), 0), 1) + 0.5).astype(np.uint8)

    return with_probability(transform.p, change)
