"""Colours of one image."""

from functools import cache

import numpy as np
from PIL import Image, ImageEnhance

from benchmarks.per_image.base import Change, Rng, between, reference, with_probability
from jax_cifar.augment import CLAHE, ColorJitter, Normalize, ToGray
from jax_cifar.augment.clahe import FROM_XYZ, TO_XYZ


@reference.register
def _(transform: Normalize) -> Change:
    scale = (1 / (255 * np.asarray(transform.std))).astype(np.float32)
    shift = (np.asarray(transform.mean) / np.asarray(transform.std)).astype(np.float32)
    return lambda rng, image: image * scale - shift


@reference.register
def _(transform: ColorJitter) -> Change:
    changes = {
        "brightness": lambda picture, factor: ImageEnhance.Brightness(picture).enhance(factor),
        "contrast": lambda picture, factor: ImageEnhance.Contrast(picture).enhance(factor),
        "saturation": lambda picture, factor: ImageEnhance.Color(picture).enhance(factor),
        "hue": turn_hue,
    }
    spans = {name: transform.span(name) for name in changes}
    on = [(changes[name], ends) for name, ends in spans.items() if ends != ((0, 0) if name == "hue" else (1, 1))]

    def change(rng: Rng, image: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(image)
        for i in rng.permutation(len(on)):
            adjust, ends = on[i]
            picture = adjust(picture, between(rng, ends))
        return np.asarray(picture)

    return change


def turn_hue(picture: Image.Image, turns: float) -> Image.Image:
    """Add `turns` to the hue, of which Pillow has 256."""
    hue, saturation, value = picture.convert("HSV").split()
    turned = Image.fromarray(np.asarray(hue) + np.uint8(round(256 * turns) % 256))
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


@reference.register
def _(transform: ToGray) -> Change:
    grey: Change = lambda rng, image: np.asarray(Image.fromarray(image).convert("L").convert("RGB"))  # noqa: E731
    return with_probability(transform.p, grey)


@reference.register
def _(transform: CLAHE) -> Change:
    limit = transform.clip_limit
    limits = limit if isinstance(limit, tuple) else (1.0, limit)
    linear = np.arange(256) / 255
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4).astype(np.float32)
    to_xyz, from_xyz, edge = TO_XYZ.T.astype(np.float32), FROM_XYZ.T.astype(np.float32), 6 / 29

    def change(rng: Rng, image: np.ndarray) -> np.ndarray:
        xyz = linear[image] @ to_xyz
        roots = np.where(xyz > edge**3, np.cbrt(xyz), xyz / (3 * edge**2) + 4 / 29)
        lightness = 255 * (1.16 * roots[..., 1] - 0.16)
        levels = equalized(np.rint(lightness).astype(np.int64), between(rng, limits), transform.tile_grid_size)
        roots += ((levels - lightness) / (255 * 1.16))[..., None]  # L alone: a* and b* are differences of the roots
        xyz = np.where(roots > edge, roots**3, 3 * edge**2 * (roots - 4 / 29))
        rgb = (xyz.astype(np.float32) @ from_xyz).clip(0, 1)
        rgb = np.where(rgb <= 0.0031308, 12.92 * rgb, 1.055 * rgb ** np.float32(1 / 2.4) - 0.055)
        return (255 * rgb + 0.5).astype(np.uint8)

    return with_probability(transform.p, change)


def equalized(levels: np.ndarray, limit: float, grid: tuple[int, int]) -> np.ndarray:
    """OpenCV's CLAHE of one image of levels, int64 [height, width]: float, whole numbers from 0 to 255."""
    across, down = grid
    size = levels.shape
    if size[0] % down or size[1] % across:
        levels = np.pad(levels, ((0, down - size[0] % down), (0, across - size[1] % across)), "reflect")
    pixels = levels.size // (across * down)
    own, corners, weights = tile_tables(*levels.shape, across, down)
    counts = np.bincount((own + levels).ravel(), minlength=256 * across * down).reshape(-1, 256)
    held = np.minimum(counts, max(int(limit * pixels / 256), 1))
    share, rest = np.divmod(pixels - held.sum(1, keepdims=True), 256)
    step = np.maximum(256 // np.maximum(rest, 1), 1)
    handed_out = np.minimum(np.arange(256) // step + 1, rest) + share * np.arange(1, 257)
    tables = np.rint(np.minimum((held.cumsum(1) + handed_out) * (255 / pixels), 255)).ravel()
    return np.rint((weights * tables[corners + levels]).sum(0))[: size[0], : size[1]]


@cache
def tile_tables(height: int, width: int, across: int, down: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the tables of every pixel's own tile begin, and of the four around it, with the weights of these."""
    rows, columns = np.mgrid[:height, :width]
    y, x = rows / (height // down) - 0.5, columns / (width // across) - 0.5
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    corners, weights = [], []
    for below_it, right_of_it in np.ndindex(2, 2):
        row, column = (top + below_it).clip(0, down - 1), (left + right_of_it).clip(0, across - 1)
        corners.append(256 * (row * across + column))
        weights.append((1 - abs(y - top - below_it)) * (1 - abs(x - left - right_of_it)))
    own = 256 * (rows // (height // down) * across + columns // (width // across))
    return own, np.stack(corners), np.stack(weights)
