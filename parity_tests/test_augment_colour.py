"""Colour jitter, grey, CLAHE, random erasing and coarse dropout against independent references, given the same draws.

The references are those of benchmarks/per_image: torchvision's formulas, Pillow, and OpenCV's CLAHE with histograms, in
NumPy; for hue and for L*a*b* there is a second one, the standard library's and CIE's definition. Each comparison has
a twin: a known wrong variant must not agree.
"""

import colorsys
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from one_by_one import one_by_one, run
from tolerances import agree, assert_close

from benchmarks.per_image import colour
from benchmarks.per_image.boxes import first_that_fits
from jax_cifar.augment.boxes import BoxDraws, CoarseDropout, RandomErasing, fitting_sides
from jax_cifar.augment.clahe import CLAHE, ClaheDraws
from jax_cifar.augment.colour import ColorJitter, JitterDraws, ToGray
from jax_cifar.backend.precision import float64

# With NumPy's arrays for JAX's.
jitter_draws: Any = JitterDraws
clahe_draws: Any = ClaheDraws
box_draws: Any = BoxDraws
RNG = np.random.default_rng(0)
ORDERS = np.asarray(list(itertools.permutations(range(4))), np.int32)[np.arange(48) % 24]
FACTORS = RNG.uniform([0.0, 0.0, 0.0, -0.5], [2.0, 2.0, 2.0, 0.5], (48, 4)).astype(np.float32)


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


def test_jitter_in_every_order(monkeypatch):
    jitter, images = ColorJitter(2.0, 2.0, 2.0, 0.5), IMAGES.astype(np.float64)
    with float64():  # the four in a row amplify rounding, hue most of all
        result = run(jitter, images, jitter_draws(FACTORS, ORDERS))
    draws = jitter_draws(FACTORS.astype(np.float64), ORDERS)
    assert_close(result, one_by_one(jitter, images, draws), "float64 operation")
    backwards = one_by_one(jitter, images, draws._replace(order=ORDERS[:, ::-1]))
    monkeypatch.setattr(colour.jittered, "__defaults__", ((0.299, 0.587, 0.114),))
    for wrong in (backwards, one_by_one(jitter, images, draws)):
        assert not agree(result, wrong, "float32 operation")


def test_jitter_without_hue():
    jitter = ColorJitter(2.0, 0.0, 2.0)  # what it leaves alone stays, whatever the factor says
    # Brightness, then saturation; the other way round for the twin.
    first, second = (
        jitter_draws(FACTORS, np.tile(np.asarray(order, np.int32), (48, 1))) for order in ([3, 0, 1, 2], [2, 1, 0, 3])
    )
    expected = one_by_one(jitter, IMAGES, first)
    assert_close(run(jitter, IMAGES, first), expected, "float32 operation")
    assert not agree(run(jitter, IMAGES, second), expected, "float32 operation")


def python_hue(sign: int = 1) -> np.ndarray:
    """The hue turned with the standard library, in float64, pixel by pixel, for the first eight images."""
    result = np.empty((8, 16, 16, 3))
    for i, row, column in np.ndindex(8, 16, 16):
        hue, saturation, value = colorsys.rgb_to_hsv(*IMAGES[i, row, column].tolist())
        result[i, row, column] = colorsys.hsv_to_rgb((hue + sign * float(FACTORS[i, 3])) % 1.0, saturation, value)
    return result.astype(np.float32)


def test_hue_alone():
    jitter, draws = ColorJitter(hue=0.5), jitter_draws(FACTORS[:8], ORDERS[:8])
    result = run(jitter, IMAGES[:8], draws)
    assert_close(result, python_hue(), "float32 operation")
    assert_close(one_by_one(jitter, IMAGES[:8], draws), python_hue(), "float32 operation", "the reference")
    assert not agree(result, python_hue(sign=-1), "float32 operation")


def test_jitter_is_nearly_pillows():
    """Pillow rounds after every change, and has 256 hues."""
    levels, order = (255 * IMAGES).round().astype(np.uint8), np.tile(np.asarray([1, 0, 2, 3], np.int32), (48, 1))
    factors = np.stack([0.5 + FACTORS[:, 0] / 2, 0.5 + FACTORS[:, 1] / 2, FACTORS[:, 2] / 2, FACTORS[:, 3]], 1)
    draws, jitter = jitter_draws(factors, order), ColorJitter(1.0, 1.0, 1.0, 0.5)
    gap = np.abs(255 * run(jitter, levels / np.float32(255), draws) - one_by_one(jitter, levels, draws))
    assert np.median(gap) < 2
    other = one_by_one(jitter, levels, draws._replace(factors=factors[::-1]))
    assert np.median(np.abs(255 * run(jitter, levels / np.float32(255), draws) - other)) > 5


def test_grey_is_pillows():
    levels = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3)).astype(np.uint8)
    ours = 255 * run(ToGray(p=1.0), levels / np.float32(255), np.ones(1, bool)).astype(np.float64)
    pillow = one_by_one(ToGray(p=1.0), levels, np.ones(1, bool)).astype(np.float64)
    assert np.abs(ours - pillow).max() < 0.502  # Pillow rounds to whole levels, its weights to 16 bits
    assert np.abs(ours - levels.mean(-1, keepdims=True)).max() > 10


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

    def expected(factor: float = 1.0, grid: tuple[int, int] = grid) -> np.ndarray:
        pairs = zip(levels.astype(np.int64), limits, strict=True)
        return np.stack([colour.equalized(x, factor * float(c), grid) for x, c in pairs])

    if exact:
        np.testing.assert_array_equal(result, expected())
    else:  # blends of sevenths and elevenths: one in 154 lies half-way between two levels
        gap = np.abs(result - expected())
        assert gap.max() <= 1 and (gap > 0).mean() < 0.02
    for wrong in (expected(factor=1e6), expected(grid=(2, 4))):  # no limit; other tiles
        assert np.abs(result[2:3] - wrong[2:3]).max() > 10


def to_lab(rgb: np.ndarray) -> np.ndarray:
    """CIE 1976 L*a*b* of sRGB, in float64."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ colour.TO_XYZ.T
    x, y, z = np.moveaxis(np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def from_lab(lab: np.ndarray) -> np.ndarray:
    """sRGB, clipped to [0, 1]."""
    y = (lab[..., 0] + 16) / 116
    f = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], -1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
    linear = (xyz @ colour.FROM_XYZ.T).clip(0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def test_clahe_changes_lightness_alone():
    images = np.stack([photographs(4, 32, 32, seed) for seed in range(3)], -1) / 255.0
    draws = clahe_draws(np.full(4, 4.0, np.float32), np.ones(4, bool))
    lab = to_lab(images)
    levels = np.rint(2.55 * lab[..., 0]).astype(np.int64)
    equalised = np.stack([colour.equalized(image, 4.0, (8, 8)) for image in levels])[..., None] / 2.55
    with float64():
        result = run(CLAHE(p=1.0), images, draws)
    expected = from_lab(np.concatenate([equalised, lab[..., 1:]], -1))
    assert_close(result, expected, "float64 operation")
    assert_close(one_by_one(CLAHE(p=1.0), images, draws), expected, "float64 operation", "the reference")
    grey_again = from_lab(np.concatenate([equalised, 0 * lab[..., 1:]], -1))
    rounded = from_lab(np.concatenate([equalised, np.rint(lab[..., 1:])], -1))
    for wrong in (grey_again, rounded, images):
        assert not agree(result, wrong, "float32 operation")


def test_clahe_of_8_bits_is_that_of_floats():
    levels = np.stack([photographs(4, 32, 32, seed) for seed in range(3)], -1).astype(np.uint8)
    draws = clahe_draws(np.full(4, 3.0, np.float32), np.arange(4) > 0)
    gap = np.abs(255 * run(CLAHE(p=0.5), levels / np.float32(255), draws) - one_by_one(CLAHE(p=0.5), levels, draws))
    assert gap[0].max() < 1e-3
    assert np.quantile(gap, 0.99) < 1  # where the lightness lies between two levels, another may be taken


def test_clahe_of_grey_images():
    levels = photographs(4, 32, 32)
    images = (levels.astype(np.float32) / np.float32(255))[..., None]
    draws = clahe_draws(np.full(4, 4.0, np.float32), np.ones(4, bool))
    result = run(CLAHE(p=1.0), images, draws)
    expected = np.stack([colour.equalized(image.astype(np.int64), 4.0, (8, 8)) for image in levels])
    assert_close(result, expected.astype(np.float32)[..., None] / np.float32(255), "float32 operation")
    assert not agree(result, images, "float32 operation")


def test_erasing_takes_the_first_rectangle_that_fits():
    rng = np.random.default_rng(0)
    areas = rng.uniform(0.02, 1.0, (4000, 10)).astype(np.float32)
    ratios = np.exp(rng.uniform(np.log(0.1), np.log(10), (4000, 10))).astype(np.float32)
    result = np.asarray(jax.jit(fitting_sides, static_argnums=(2, 3))(areas, ratios, 24, 32))

    def expected(tries: int = 10, size: tuple[int, int] = (24, 32)) -> np.ndarray:
        pairs = zip(areas[:, :tries].tolist(), ratios[:, :tries].tolist(), strict=True)
        return np.asarray([first_that_fits(zip(*each, strict=True), size) for each in pairs])

    np.testing.assert_array_equal(result, expected())
    for wrong in (expected(tries=9), expected()[:, ::-1]):
        assert not np.array_equal(result, wrong)


@pytest.mark.parametrize("kind", [RandomErasing, CoarseDropout])
def test_boxes_are_filled(kind):
    holes, rng = 1 if kind is RandomErasing else 4, np.random.default_rng(0)
    sides = rng.integers(0, 9, (48, holes, 2))
    boxes = np.concatenate([rng.integers(0, 17 - sides), sides], -1).astype(np.int32)
    fill: Any = {"value" if kind is RandomErasing else "fill": (0.25, 0.5, 0.75)}
    for values in (None, rng.random(IMAGES.shape, dtype=np.float32)):
        draws = box_draws(boxes, values)
        result = run(kind(**fill), IMAGES, draws)
        np.testing.assert_array_equal(result, one_by_one(kind(**fill), IMAGES, draws))
        for wrong in (boxes[..., [1, 0, 3, 2]], boxes[:, : holes - 1]):
            other = one_by_one(kind(**fill), IMAGES, draws._replace(boxes=wrong))
            assert not np.array_equal(result, other)
