"""Colour jitter, grey, CLAHE, random erasing and coarse dropout against independent references, given the same draws.

The references are torchvision's formulas in torch, the standard library's colour conversion, Pillow, and OpenCV's
CLAHE in NumPy, histograms and all. Each comparison has a twin: a known wrong variant must not agree.
"""

import colorsys
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image
from tolerances import agree, assert_close

from jax_cifar.augment.boxes import CoarseDropout, RandomErasing, fitting
from jax_cifar.augment.clahe import CLAHE
from jax_cifar.augment.colour import ColorJitter, ToGray

RNG = np.random.default_rng(0)
ORDERS = np.asarray(list(itertools.permutations(range(4))), np.int32)
FACTORS = RNG.uniform([0.0, 0.0, 0.0, -0.5], [2.0, 2.0, 2.0, 0.5], (48, 4)).astype(np.float32)
TORCHVISION = (0.2989, 0.587, 0.114)


def edge_cases() -> np.ndarray:
    """Black, white, grey, saturated and nearly grey pixels, hues on both sides of every boundary; noise beside them."""
    ends = np.asarray(list(itertools.product([0.0, 0.5, 1.0], repeat=3)))
    hues = [colorsys.hsv_to_rgb(h / 24, s, v) for h in range(24) for s in (0.01, 1.0) for v in (0.3, 1.0)]
    pixels = np.concatenate([ends, hues, np.repeat(np.linspace(0, 1, 5)[:, None], 3, 1)])
    images = RNG.random((48, 16, 16, 3))
    images.reshape(48, 256, 3)[::2, : len(pixels)] = pixels
    images[1::4] = RNG.random((12, 16, 16, 1))  # grey images
    images[3], images[5] = 0.0, 1.0
    return images.astype(np.float32)


IMAGES = edge_cases()


def grey(image: torch.Tensor, weights: tuple[float, ...] = TORCHVISION) -> torch.Tensor:
    red, green, blue = image.unbind(-1)
    return (weights[0] * red + weights[1] * green + weights[2] * blue)[..., None]


def turned(image: torch.Tensor, turn: float) -> torch.Tensor:
    """The hue turned as torchvision defines it: to HSV, add, modulo 1, and back through the six sectors."""
    value, low = image.amax(-1), image.amin(-1)
    chroma = value - low
    safe = torch.where(chroma == 0, 1.0, chroma)
    red, green, blue = ((value[..., None] - image) / safe[..., None]).unbind(-1)
    first, second = value == image[..., 0], value == image[..., 1]
    hue = torch.where(first, blue - green, torch.where(second, 2.0 + red - blue, 4.0 + green - red))
    hue = (torch.fmod(hue / 6.0 + 1.0, 1.0) + turn) % 1.0
    saturation = chroma / torch.where(chroma == 0, 1.0, value)
    sector, part = torch.floor(hue * 6.0), hue * 6.0 - torch.floor(hue * 6.0)
    p, q, t = (value * (1.0 - saturation * share) for share in (torch.ones_like(part), part, 1.0 - part))
    table = [(value, t, p), (q, value, p), (p, value, t), (p, q, value), (t, p, value), (value, p, q)]
    result = torch.zeros_like(image)
    for number, channels in enumerate(table):
        result = torch.where((sector % 6 == number)[..., None], torch.stack(channels, -1), result)
    return result.clamp(0, 1)


def blended(image: torch.Tensor, other: torch.Tensor | float, factor: float, clip: bool = True) -> torch.Tensor:
    result = factor * image + (1.0 - factor) * other
    return result.clamp(0, 1) if clip else result


def torch_jitter(weights: tuple[float, ...] = TORCHVISION, step: int = 1, clip: bool = True) -> np.ndarray:
    """Every image of `IMAGES` through its four changes, in its order (backwards for `step` -1)."""
    results = []
    for i, (array, factors) in enumerate(zip(IMAGES, FACTORS, strict=True)):
        image = torch.from_numpy(array).double()
        changes = (
            lambda x, f: blended(x, 0.0, f, clip),
            lambda x, f: blended(x, grey(x, weights).mean(), f, clip),
            lambda x, f: blended(x, grey(x, weights), f, clip),
            turned,
        )
        for kind in ORDERS[i % 24][::step]:
            image = changes[kind](image, float(factors[kind]))
        results.append(image.numpy())
    return np.stack(results)


def test_jitter_in_every_order():
    orders = ORDERS[np.arange(48) % 24]
    jitter = ColorJitter(2.0, 2.0, 2.0, 0.5)
    with jax.enable_x64(True):  # the four in a row amplify rounding, hue most of all
        result = jax.jit(jitter.adjust)(jnp.asarray(IMAGES, jnp.float64), jnp.asarray(FACTORS.T), jnp.asarray(orders.T))
    assert_close(result, torch_jitter(), "float64 operation")
    for wrong in (torch_jitter(step=-1), torch_jitter((0.299, 0.587, 0.114)), torch_jitter(clip=False)):
        assert not agree(result, wrong, "float32 operation")


def test_jitter_without_hue():
    jitter = ColorJitter(2.0, 0.0, 2.0)
    factors = FACTORS.copy()
    factors[:, [1, 3]] = 1.0, 0.0
    # Brightness, then saturation; the other way round for the twin.
    results = []
    for order in ([3, 0, 1, 2], [2, 1, 0, 3]):
        orders = jnp.broadcast_to(jnp.asarray(order, jnp.int32)[:, None], (4, 48))
        results.append(jax.jit(jitter.adjust)(jnp.asarray(IMAGES), jnp.asarray(factors.T), orders))
    images = [blended(torch.from_numpy(x), 0.0, float(f[0])) for x, f in zip(IMAGES, factors, strict=True)]
    images = [blended(image, grey(image), float(f[2])) for image, f in zip(images, factors, strict=True)]
    assert_close(results[0], torch.stack(images).numpy(), "float32 operation")
    assert not agree(results[1], torch.stack(images).numpy(), "float32 operation")


def python_hue(sign: int = 1) -> np.ndarray:
    """The hue turned with the standard library, in float64, pixel by pixel, for the first eight images."""
    result = np.empty((8, 16, 16, 3))
    for i, row, column in np.ndindex(8, 16, 16):
        hue, saturation, value = colorsys.rgb_to_hsv(*IMAGES[i, row, column].tolist())
        result[i, row, column] = colorsys.hsv_to_rgb((hue + sign * float(FACTORS[i, 3])) % 1.0, saturation, value)
    return result.astype(np.float32)


def test_hue_alone():
    orders = jnp.broadcast_to(jnp.arange(4, dtype=jnp.int32)[:, None], (4, 8))
    result = jax.jit(ColorJitter(hue=0.5).adjust)(jnp.asarray(IMAGES[:8]), jnp.asarray(FACTORS[:8].T), orders)
    assert_close(result, python_hue(), "float32 operation")
    assert not agree(result, python_hue(sign=-1), "float32 operation")


def test_grey_is_pillows():
    levels = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    result = ToGray(p=1.0).convert(jnp.asarray(levels[None] / np.float32(255)), jnp.ones(1, bool))
    ours = 255 * np.asarray(result, np.float64)[0, ..., 0]
    pillow = np.asarray(Image.fromarray(levels).convert("L"), np.float64)
    assert np.abs(ours - pillow).max() < 0.502  # Pillow rounds to whole levels, its weights to 16 bits
    assert np.abs(ours - levels.mean(-1)).max() > 10


def numpy_clahe(image: np.ndarray, clip: float, grid: tuple[int, int], fault: str = "") -> np.ndarray:
    """OpenCV's CLAHE of one image of 8-bit levels, tile by tile and pixel by pixel."""
    (across, down), (rows, columns) = grid, image.shape
    if rows % down or columns % across:
        padded = np.pad(image, ((0, down - rows % down), (0, across - columns % across)), "reflect")
    else:
        padded = image
    height, width = padded.shape[0] // down, padded.shape[1] // across
    limit = max(int(clip * height * width / 256), 1)
    tables = np.empty((down, across, 256), np.float32)
    for i, j in np.ndindex(down, across):
        bins = np.bincount(padded[i * height : (i + 1) * height, j * width : (j + 1) * width].ravel(), minlength=256)
        if fault != "no limit":
            clipped = int(np.maximum(bins - limit, 0).sum())
            bins = np.minimum(bins, limit)
            if fault != "nothing handed out":
                share, rest = divmod(clipped, 256)
                bins = bins + share
                if rest:
                    bins[:: max(256 // rest, 1)][:rest] += 1
        scale = np.float32(255) / np.float32(height * width)
        tables[i, j] = np.rint(np.minimum(np.cumsum(bins).astype(np.float32) * scale, 255))
    result = np.empty(image.shape)
    for row, column in np.ndindex(*image.shape):
        y, x = row / height - 0.5, column / width - 0.5
        if fault == "no blend":
            y, x = row // height, column // width
        i, j = math.floor(y), math.floor(x)
        for tile_row, tile_column, weight in (
            (i, j, (1 - y + i) * (1 - x + j)),
            (i, j + 1, (1 - y + i) * (x - j)),
            (i + 1, j, (y - i) * (1 - x + j)),
            (i + 1, j + 1, (y - i) * (x - j)),
        ):
            table = tables[np.clip(tile_row, 0, down - 1), np.clip(tile_column, 0, across - 1)]
            result[row, column] = weight * table[image[row, column]] + (
                result[row, column] if (tile_row, tile_column) != (i, j) else 0
            )
    return np.rint(result).astype(np.float32)


def photographs(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """8-bit levels as photographs have them: smooth shades, flat parts, some noise, black and white."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    waves = rng.uniform(0.05, 0.4, (2, count, 1, 1))
    shades = 128 + 90 * np.sin(waves[0] * rows + rng.uniform(0, 6, (count, 1, 1))) * np.cos(waves[1] * columns)
    levels = np.rint(shades + rng.normal(0, 4, shades.shape)).clip(0, 255)
    levels[:, : height // 3, : width // 2] = 200
    levels[0], levels[1, 4:9] = 0, 255
    return levels.astype(np.int32)


@pytest.mark.parametrize(
    ("grid", "size", "exact"),
    [((8, 8), (32, 32), True), ((4, 2), (32, 32), True), ((1, 1), (16, 32), True), ((5, 3), (32, 32), False)],
)
def test_clahe_of_levels_is_opencvs(grid, size, exact):
    levels, limits = photographs(4, *size), np.asarray([1.0, 2.5, 4.0, 40.0], np.float32)
    transform = CLAHE(tile_grid_size=grid, p=1.0)
    result = np.asarray(jax.jit(transform.equalize_levels)(jnp.asarray(levels), jnp.asarray(limits)))

    def expected(fault: str = "") -> np.ndarray:
        chosen = slice(2, 3) if fault else slice(None)
        pairs = zip(levels[chosen], limits[chosen], strict=True)
        return np.stack([numpy_clahe(x, float(c), grid, fault) for x, c in pairs])

    if exact:
        np.testing.assert_array_equal(result, expected())
    else:  # blends of sevenths and elevenths: one in 154 lies half-way between two levels
        gap = np.abs(result - expected())
        assert gap.max() <= 1 and (gap > 0).mean() < 0.02
    for fault in ("no limit", "nothing handed out") + (("no blend",) if grid != (1, 1) else ()):
        assert np.abs(result[2:3] - expected(fault)).max() > 10


MATRIX = np.asarray([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
WHITE = np.asarray([0.950456, 1.0, 1.088754])


def to_lab(rgb: np.ndarray) -> np.ndarray:
    """CIE 1976 L*a*b* of sRGB, in float64."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ MATRIX.T / WHITE
    x, y, z = np.moveaxis(np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def from_lab(lab: np.ndarray) -> np.ndarray:
    """sRGB, clipped to [0, 1]."""
    y = (lab[..., 0] + 16) / 116
    f = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], -1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * WHITE
    linear = (xyz @ np.linalg.inv(MATRIX).T).clip(0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def test_clahe_changes_lightness_alone():
    images = np.stack([photographs(4, 32, 32, seed) for seed in range(3)], -1) / 255.0
    lab = to_lab(images)
    levels = np.rint(2.55 * lab[..., 0]).astype(np.int64)
    equalised = np.stack([numpy_clahe(image, 4.0, (8, 8)) for image in levels]).astype(np.float64)[..., None] / 2.55
    with jax.enable_x64(True):
        result = jax.jit(CLAHE(p=1.0).equalize)(jnp.asarray(images), jnp.full(4, 4.0, jnp.float32))
    assert_close(result, from_lab(np.concatenate([equalised, lab[..., 1:]], -1)), "float64 operation")
    grey_again = from_lab(np.concatenate([equalised, 0 * lab[..., 1:]], -1))
    rounded = from_lab(np.concatenate([equalised, np.rint(lab[..., 1:])], -1))
    for wrong in (grey_again, rounded, images):
        assert not agree(result, wrong, "float32 operation")


def test_clahe_of_grey_images():
    levels = photographs(4, 32, 32)
    images = (levels.astype(np.float32) / np.float32(255))[..., None]
    result = jax.jit(CLAHE(p=1.0).equalize)(jnp.asarray(images), jnp.full(4, 4.0, jnp.float32))
    expected = np.stack([numpy_clahe(image, 4.0, (8, 8)) for image in levels])[..., None] / np.float32(255)
    assert_close(result, expected, "float32 operation")
    assert not agree(result, images, "float32 operation")


def python_fitting(areas: np.ndarray, ratios: np.ndarray, height: int, width: int, tries: int, largest: int) -> list:
    """torchvision's loop for one image; a fault with fewer tries, or with rectangles as large as the image."""
    for area, ratio in itertools.islice(zip(areas.tolist(), ratios.tolist(), strict=True), tries):
        pixels = area * height * width
        rows, columns = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if rows < height + largest and columns < width + largest:
            return [rows, columns]
    return [0, 0]


def test_erasing_takes_the_first_rectangle_that_fits():
    rng = np.random.default_rng(0)
    areas = rng.uniform(0.02, 1.0, (10, 4000)).astype(np.float32)
    ratios = np.exp(rng.uniform(np.log(0.1), np.log(10), (10, 4000))).astype(np.float32)
    result = np.asarray(jax.jit(fitting, static_argnums=(2, 3))(areas, ratios, 24, 32))

    def expected(tries: int = 10, largest: int = 0) -> np.ndarray:
        draws = zip(areas.T, ratios.T, strict=True)
        return np.asarray([python_fitting(*draw, 24, 32, tries, largest) for draw in draws]).T

    np.testing.assert_array_equal(result, expected())
    for wrong in (expected(tries=9), expected(largest=1), expected()[::-1]):
        assert not np.array_equal(result, wrong)


def numpy_fill(images: np.ndarray, boxes: np.ndarray, values: np.ndarray, holes: int) -> np.ndarray:
    images = images.copy()
    for hole, i in np.ndindex(holes, len(images)):
        top, left, height, width = boxes[:, hole, i]
        inside = np.s_[i, top : top + height, left : left + width]
        images[inside] = np.broadcast_to(values, images.shape)[inside]
    return images


@pytest.mark.parametrize("kind", ["erasing", "dropout"])
def test_boxes_are_filled(kind):
    holes, rng = 1 if kind == "erasing" else 4, np.random.default_rng(0)
    sides = rng.integers(0, 9, (2, holes, 48))
    boxes = np.concatenate([rng.integers(0, 17 - sides), sides]).astype(np.int32)
    colour, noise = (0.25, 0.5, 0.75), rng.random(IMAGES.shape, dtype=np.float32)
    fill = RandomErasing(value=colour).erase if kind == "erasing" else CoarseDropout(fill=colour).drop
    for values, given in ((np.asarray(colour, np.float32), ()), (noise, (jnp.asarray(noise),))):
        result = jax.jit(fill)(jnp.asarray(IMAGES), jnp.asarray(boxes), *given)
        np.testing.assert_array_equal(result, numpy_fill(IMAGES, boxes, values, holes))
        for wrong in (
            numpy_fill(IMAGES, boxes[[1, 0, 3, 2]], values, holes),
            numpy_fill(IMAGES, boxes, values, holes - 1),
        ):
            assert not np.array_equal(result, wrong)
