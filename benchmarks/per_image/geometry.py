"""Crops, flips, rotations and warps of one image."""

import math
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from benchmarks.per_image.base import Reference, Rng, below, between, levels, reference
from jax_cifar.augment import (
    ElasticTransform,
    GridDistortion,
    HorizontalFlip,
    RandomAffine,
    RandomCrop,
    RandomResizedCrop,
    RandomRotation,
)
from jax_cifar.augment.affine import TRIES, AffineDraws, CropDraws, symmetric

BILINEAR, NEAREST = Image.Resampling.BILINEAR, Image.Resampling.NEAREST
SCIPY_MODES = {"constant": "grid-constant", "reflect": "mirror", "edge": "nearest"}
Matrix = tuple[float, float, float, float, float, float]  # two rows of three


@reference.register
def _(transform: RandomCrop) -> Reference:
    padding = transform.padding

    def draw(rng: Rng, shape: tuple[int, ...]) -> tuple[int, int]:
        return below(rng, 2 * padding + 1), below(rng, 2 * padding + 1)

    def apply(image: np.ndarray, corner: tuple[int, int]) -> np.ndarray:
        height, width, channels = image.shape
        if transform.padding_mode == "reflect":
            padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)), "reflect")
        else:
            size = height + 2 * padding, width + 2 * padding, channels
            padded = np.full(size, levels(transform.fill, image), image.dtype)
            padded[padding : padding + height, padding : padding + width] = image
        top, left = corner
        return padded[top : top + height, left : left + width]

    return Reference(draw, apply)


@reference.register
def _(transform: HorizontalFlip) -> Reference:
    # The alternating flip has p=0.5 too; which half it takes costs no time to speak of.
    return Reference(
        lambda rng, shape: rng.random() < transform.p, lambda image, flipped: image[:, ::-1] if flipped else image
    )


@reference.register
def _(transform: RandomResizedCrop) -> Reference:
    ratios = math.log(transform.ratio[0]), math.log(transform.ratio[1])

    def draw(rng: Rng, shape: tuple[int, ...]) -> CropDraws:
        tries = ((between(rng, transform.scale), between(rng, ratios)) for _ in range(TRIES))
        height, width, found = crop_sides(transform, tries, shape)
        room = shape[0] - height, shape[1] - width
        corner = [below(rng, each + 1) if found else each // 2 for each in room]
        return CropDraws(corner, [height, width])  # pyright: ignore[reportArgumentType]

    def apply(image: np.ndarray, draws: CropDraws) -> np.ndarray:
        (top, left), (height, width) = draws
        if image.dtype == np.uint8:
            box = Image.fromarray(image).crop((left, top, left + width, top + height))
            return np.asarray(box.resize((image.shape[1], image.shape[0]), BILINEAR))
        box = torch.from_numpy(image[top : top + height, left : left + width]).permute(2, 0, 1)[None]
        enlarged = torch.nn.functional.interpolate(box, image.shape[:2], mode="bilinear", antialias=True)
        return enlarged[0].permute(1, 2, 0).numpy()

    return Reference(draw, apply)


def crop_sides(transform: RandomResizedCrop, tries: Any, shape: tuple[int, ...]) -> tuple[int, int, bool]:
    """torchvision's loop: sides of the first box that fits, of `tries` (share of the area, log of width / height).

    Where none does, the largest box in range is taken, which is not `found`.
    """
    height, width = shape[:2]
    for area, log_ratio in tries:
        pixels, ratio = height * width * area, math.exp(log_ratio)
        rows, columns = round(math.sqrt(pixels / ratio)), round(math.sqrt(pixels * ratio))
        if 0 < rows <= height and 0 < columns <= width:
            return rows, columns, True
    if width / height < min(transform.ratio):
        return round(width / min(transform.ratio)), width, False
    if width / height > max(transform.ratio):
        return height, round(height * max(transform.ratio)), False
    return height, width, False


@reference.register
def _(transform: RandomRotation) -> Reference:
    fill = (round(255 * transform.fill),) * 3

    def apply(image: np.ndarray, degrees: float) -> np.ndarray:
        if image.dtype == np.uint8:
            return np.asarray(Image.fromarray(image).rotate(degrees, BILINEAR, fillcolor=fill))
        still: Any = AffineDraws(-degrees, (0, 0), 1, (0, 0))  # pyright: ignore[reportArgumentType]
        return torch_affine(image, inverse_matrix(still), transform.fill)

    return Reference(lambda rng, shape: between(rng, symmetric(transform.degrees)), apply)


@reference.register
def _(transform: RandomAffine) -> Reference:
    fill, share = (round(255 * transform.fill),) * 3, transform.translate or (0.0, 0.0)
    low_x, high_x, low_y, high_y = transform.shears()

    def draw(rng: Rng, shape: tuple[int, ...]) -> Any:
        degrees = between(rng, symmetric(transform.degrees))
        right, down = (round(between(rng, symmetric(share[i] * shape[1 - i]))) for i in (0, 1))
        zoom = between(rng, transform.scale or (1.0, 1.0))
        shear = between(rng, (low_x, high_x)), between(rng, (low_y, high_y))
        return AffineDraws(degrees, (right, down), zoom, shear)  # pyright: ignore[reportArgumentType]

    def apply(image: np.ndarray, draws: AffineDraws) -> np.ndarray:
        a, b, x, c, d, y = inverse_matrix(draws)
        if image.dtype != np.uint8:
            return torch_affine(image, (a, b, x, c, d, y), transform.fill)
        # Pillow counts from the corner of the image.
        middle, centre = image.shape[1] / 2, image.shape[0] / 2
        x, y = x + middle - a * middle - b * centre, y + centre - c * middle - d * centre
        return np.asarray(affine(Image.fromarray(image), (a, b, x, c, d, y), fill, BILINEAR))

    return Reference(draw, apply)


def inverse_matrix(draws: Any) -> Matrix:
    """Where a pixel comes from: (x, y, 1) in the result to (x, y) in the image, both in pixels from its centre.

    The map turned around is rotation times shear along y times shear along x, times the scale, then the translation;
    the determinant of the first three is 1, so that the inverse needs no division.
    """
    (right, down), zoom, angle = draws.translate, draws.scale, math.radians(draws.degrees)
    tan_x, tan_y = (math.tan(math.radians(each)) for each in draws.shear)
    a, c = math.cos(angle) + math.sin(angle) * tan_y, math.sin(angle) - math.cos(angle) * tan_y
    b, d = -a * tan_x - math.sin(angle), -c * tan_x + math.cos(angle)
    a, b, c, d = d / zoom, -b / zoom, -c / zoom, a / zoom
    return a, b, -a * right - b * down, c, d, -c * right - d * down


def affine(picture: Image.Image, matrix: Matrix, fill: tuple[int, ...], kind: Any = NEAREST) -> Image.Image:
    """Read `picture` at the places (x, y), from its corner, that `matrix` gives for every pixel."""
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, kind, fillcolor=fill)


def torch_affine(image: np.ndarray, matrix: Matrix, fill: float) -> np.ndarray:
    """Read a floating `image` at the places (x, y), from its centre, that `matrix` gives: PyTorch's grid sampler."""
    height, width, channels = image.shape
    half = (np.asarray([width, height], image.dtype) - 1) / 2
    theta = np.asarray(matrix, image.dtype).reshape(2, 3) / half[:, None]
    theta[:, :2] *= half
    size = [1, channels, height, width]
    grid = torch.nn.functional.affine_grid(torch.from_numpy(theta[None]), size, align_corners=True)
    return torch_sample(image, grid, fill)


def torch_sample(image: np.ndarray, grid: torch.Tensor, fill: float = 0.0, padding_mode: str = "zeros") -> np.ndarray:
    """PyTorch's `grid_sample` of one image, at places (x, y) from -1 to 1 between the centres of the outer pixels."""
    values = torch.from_numpy(image - np.asarray(fill, image.dtype)).permute(2, 0, 1)[None]
    sampled = torch.nn.functional.grid_sample(values, grid, padding_mode=padding_mode, align_corners=True)
    return sampled[0].permute(1, 2, 0).numpy() + np.asarray(fill, image.dtype)


@cache
def pixel_places(height: int, width: int) -> np.ndarray:
    """Row and column of every pixel, float32 [2, height, width]."""
    return np.mgrid[:height, :width].astype(np.float32)


@reference.register
def _(transform: ElasticTransform) -> Reference:
    mode = SCIPY_MODES[transform.padding_mode]

    def draw(rng: Rng, shape: tuple[int, ...]) -> np.ndarray | None:
        return 2 * rng.random((*shape[:2], 2), np.float32) - 1 if rng.random() < transform.p else None

    def apply(image: np.ndarray, noise: np.ndarray | None) -> np.ndarray:
        """`noise` of (rows, columns) from -1 to 1, [height, width, 2]."""
        if noise is None:
            return image
        places = pixel_places(*image.shape[:2]) + np.moveaxis(displacement(transform, noise), -1, 0)
        return scipy_sample(image, places, mode, levels(transform.fill, image))

    return Reference(draw, apply)


def displacement(transform: ElasticTransform, noise: np.ndarray, mode: str = "reflect") -> np.ndarray:
    """By how many pixels (row, column) smoothed noise moves every pixel, [height, width, 2]."""
    return transform.alpha * ndimage.gaussian_filter(noise, (transform.sigma, transform.sigma, 0), mode=mode)


def scipy_sample(image: np.ndarray, places: np.ndarray, mode: str = "grid-constant", fill: float = 0.0) -> np.ndarray:
    """SciPy's `map_coordinates` at `places`, rows and columns [2, height, width], channel by channel."""
    result = np.empty_like(image)
    for channel in range(image.shape[2]):
        ndimage.map_coordinates(image[..., channel], places, result[..., channel], 1, mode, fill)
    return result


@reference.register
def _(transform: GridDistortion) -> Reference:
    steps, limit = transform.num_steps, transform.distort_limit

    def draw(rng: Rng, shape: tuple[int, ...]) -> np.ndarray | None:
        return limit * (2 * rng.random((steps, 2)) - 1) if rng.random() < transform.p else None

    def apply(image: np.ndarray, stretch: np.ndarray | None) -> np.ndarray:
        """`stretch` of the bands of (rows, columns), [steps, 2]."""
        if stretch is None:
            return image
        # A row's new place depends on its number alone, and a column's: the two directions can be done in turn.
        pixels = image.astype(np.float32) if image.dtype == np.uint8 else image
        pixels = stretched(stretched(pixels, stretch[:, 0], 0), stretch[:, 1], 1)
        return (pixels + 0.5).astype(np.uint8) if image.dtype == np.uint8 else pixels

    return Reference(draw, apply)


def stretched(image: np.ndarray, stretch: np.ndarray, axis: Literal[0, 1]) -> np.ndarray:
    """A floating image whose bands along one axis are larger by the shares `stretch`, all in all of the same size."""
    size, factors = image.shape[axis], 1 + stretch
    ends = np.concatenate([[0.0], np.cumsum(factors)]) * ((size - 1) / factors.sum())
    places = np.interp(np.arange(size), np.linspace(0, size - 1, len(stretch) + 1), ends)
    first = np.minimum(places.astype(np.int64), size - 2)
    share = (places - first).astype(image.dtype).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
    before = image.take(first, axis)
    return before + share * (image.take(first + 1, axis) - before)
