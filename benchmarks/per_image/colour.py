"""Colours of one image."""

from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from benchmarks.per_image.base import Reference, Rng, between, reference
from jax_cifar.augment import CLAHE, ColorJitter, ToGray
from jax_cifar.augment.colour import NAMES

JITTER_WEIGHTS = (0.2989, 0.587, 0.114)  # torchvision's, of floating images
# Linear sRGB to CIE XYZ (IEC 61966-2-1), relative to the white point D65 as OpenCV has it.
WHITE = np.asarray([0.950456, 1.0, 1.088754])
TO_XYZ = np.asarray([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
TO_XYZ = TO_XYZ / WHITE[:, None]
FROM_XYZ = np.linalg.inv(TO_XYZ)
EDGE = 6 / 29  # where CIE 1976's cube root gives way to a straight line


@reference.register
def _(transform: ColorJitter) -> Reference:
    ranges = [transform.factor_range(name) for name in NAMES]
    on = [kind for kind, ends in enumerate(ranges) if ends != ((0, 0) if NAMES[kind] == "hue" else (1, 1))]

    def draw(rng: Rng, shape: tuple[int, ...]) -> tuple[dict[int, float], list[int]]:
        return {kind: between(rng, ranges[kind]) for kind in on}, [on[i] for i in rng.permutation(len(on))]

    def apply(image: np.ndarray, draws: Any) -> np.ndarray:
        """Draws are the factors of the changes, by their number, and their order."""
        factors, order = draws
        kinds = [kind for kind in order if kind in on]
        if image.dtype != np.uint8:
            for kind in kinds:
                image = jittered(image, NAMES[kind], factors[kind])
            return image
        picture = Image.fromarray(image)
        for kind in kinds:
            picture = pillow_jittered(picture, NAMES[kind], factors[kind])
        return np.asarray(picture)

    return Reference(draw, apply)


def pillow_jittered(picture: Image.Image, name: str, factor: float) -> Image.Image:
    """One change by Pillow, which has 256 hues."""
    if name != "hue":
        enhance = {"saturation": ImageEnhance.Color}.get(name) or getattr(ImageEnhance, name.capitalize())
        return enhance(picture).enhance(factor)
    hue, saturation, value = picture.convert("HSV").split()
    turned = Image.fromarray(np.asarray(hue) + np.uint8(round(256 * factor) % 256))
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


def jittered(image: np.ndarray, name: str, factor: float, weights: tuple[float, ...] = JITTER_WEIGHTS) -> np.ndarray:
    """One change by torchvision's formulas for floating images."""
    if name == "hue":
        return hue_turned(image, factor)
    grey = (image @ np.asarray(weights, image.dtype))[..., None]
    other = {"brightness": 0.0, "contrast": grey.mean(), "saturation": grey}[name]
    return (factor * image + (1.0 - factor) * other).clip(0, 1)


def hue_turned(image: np.ndarray, turns: float) -> np.ndarray:
    """The hue turned as torchvision defines it: to HSV, add, modulo 1, and back through the six sectors."""
    value, chroma = image.max(-1), np.ptp(image, -1)
    red, green, blue = np.moveaxis((value[..., None] - image) / np.where(chroma == 0, 1, chroma)[..., None], -1, 0)
    first, second = value == image[..., 0], value == image[..., 1]
    hue = np.where(first, blue - green, np.where(second, 2.0 + red - blue, 4.0 + green - red))
    hue = (np.fmod(hue / 6.0 + 1.0, 1.0) + turns) % 1.0
    saturation = chroma / np.where(chroma == 0, 1, value)
    sector, part = np.floor(hue * 6.0), hue * 6.0 - np.floor(hue * 6.0)
    p, q, t = (value * (1.0 - saturation * share) for share in (np.ones_like(part), part, 1.0 - part))
    sectors = [(value, t, p), (q, value, p), (p, value, t), (p, q, value), (t, p, value), (value, p, q)]
    channels = [np.select([sector % 6 == i for i in range(6)], each) for each in zip(*sectors, strict=True)]
    return np.stack(channels, -1).clip(0, 1)


@reference.register
def _(transform: ToGray) -> Reference:
    def apply(image: np.ndarray, applied: bool) -> np.ndarray:
        """Of 8-bit images alone."""
        return np.asarray(Image.fromarray(image).convert("L").convert("RGB")) if applied else image

    return Reference(lambda rng, shape: rng.random() < transform.p, apply)


@reference.register
def _(transform: CLAHE) -> Reference:
    limit = transform.clip_limit
    limits = limit if isinstance(limit, tuple) else (1.0, limit)
    table = to_linear(np.arange(256) / 255).astype(np.float32)

    def draw(rng: Rng, shape: tuple[int, ...]) -> tuple[float, bool]:
        return between(rng, limits), rng.random() < transform.p

    def apply(image: np.ndarray, draws: Any) -> np.ndarray:
        limit, applied = draws
        if not applied:
            return image
        linear = table[image] if image.dtype == np.uint8 else to_linear(image)
        xyz = linear @ TO_XYZ.T.astype(linear.dtype)
        roots = np.where(xyz > EDGE**3, np.cbrt(xyz), xyz / (3 * EDGE**2) + 4 / 29)
        lightness = 255 * (1.16 * roots[..., 1] - 0.16)
        levels = equalized(np.rint(lightness).astype(np.int64), limit, transform.tile_grid_size)
        roots += ((levels - lightness) / (255 * 1.16))[..., None]  # L alone: a* and b* are differences of the roots
        xyz = np.where(roots > EDGE, roots**3, 3 * EDGE**2 * (roots - 4 / 29)).astype(linear.dtype)
        rgb = from_linear((xyz @ FROM_XYZ.T.astype(linear.dtype)).clip(0, 1))
        return (255 * rgb + 0.5).astype(np.uint8) if image.dtype == np.uint8 else rgb

    return Reference(draw, apply)


def to_linear(rgb: np.ndarray) -> np.ndarray:
    """sRGB without its curve."""
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def from_linear(linear: np.ndarray) -> np.ndarray:
    """The way back."""
    exponent = linear.dtype.type(1 / 2.4)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear**exponent - 0.055)


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
