"""Colour jitter, grey, CLAHE, random erasing and coarse dropout: what they do and how they draw."""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jax_cifar.augment.base import Transform
from jax_cifar.augment.boxes import CoarseDropout, RandomErasing, fitting_sides, place_boxes
from jax_cifar.augment.clahe import CLAHE
from jax_cifar.augment.colour import ColorJitter, ToGray
from jax_cifar.errors import ConfigError

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY = jax.random.key(0)
# No pixel is 0, so that every filled one can be told.
IMAGES = jnp.asarray(np.random.default_rng(0).uniform(0.1, 1.0, (64, 16, 16, 3)), jnp.float32)
JITTER = ColorJitter(0.4, 0.4, 0.4, 0.1)
NOISY = CoarseDropout((1, 3), (2, 5), (4, 4), fill="random", p=1.0)
TILED = CLAHE(tile_grid_size=(4, 4), p=1.0)


@functools.cache
def compiled(transform: Transform) -> Callable[..., jax.Array]:
    return jax.jit(transform)


def run(transform: Transform, images: jax.Array = IMAGES) -> np.ndarray:
    return np.asarray(compiled(transform)(KEY, images))


def test_half_precision_gives_nearly_the_same_pixels():
    images = IMAGES.astype(jnp.bfloat16)
    expected = run(JITTER, images=images.astype(jnp.float32))
    np.testing.assert_allclose(run(JITTER, images=images).astype(np.float32), expected, atol=4e-3)


def test_clahe_draws_a_limit_for_each_image():
    # Tiles of 64 pixels that are all alike: how much is clipped is all there is to see.
    flat = jnp.full((64, 16, 16, 1), 0.5)
    assert len(np.unique(run(CLAHE(clip_limit=(1.0, 256.0), tile_grid_size=(2, 2), p=1.0), images=flat))) >= 20


def test_clahe_counts_no_tile_beyond_its_integers():
    def mean_level(side: int) -> float:
        levels = np.tile(np.repeat([0.0, 1.0], side // 2), (1, side, 1))[..., None]
        return float(run(CLAHE(clip_limit=(256.0, 256.0), tile_grid_size=(1, 1), p=1.0), jnp.asarray(levels)).mean())

    assert mean_level(180) == pytest.approx(0.75, abs=0.01)  # a half at 128 of 256, the other at 256
    with pytest.raises(ConfigError, match=r"CLAHE\.tile_grid_size = \(1, 1\).*182 x 182 pixels .* use more tiles"):
        jax.eval_shape(CLAHE(tile_grid_size=(1, 1), p=1.0), KEY, jnp.zeros((1, 182, 182, 1)))


@pytest.mark.parametrize("transform", [ColorJitter(hue=0.1), ToGray(), CLAHE()], ids=repr)
def test_other_numbers_of_channels_are_refused(transform):
    with pytest.raises(
        ConfigError, match=rf"{type(transform).__name__} changes images of 1 or 3 channels, these have 2"
    ):
        transform(KEY, IMAGES[..., :2])


def test_jitter_that_changes_nothing():
    for neutral in (ColorJitter(), ColorJitter(brightness=(1.0, 1.0), hue=(0.0, 0.0))):
        np.testing.assert_array_equal(run(neutral), IMAGES)


@pytest.mark.parametrize(
    ("fields", "name", "expected"),
    [
        ({"brightness": 0.2}, "brightness", (0.8, 1.2)),
        ({"contrast": 1.5}, "contrast", (0.0, 2.5)),
        ({"saturation": (0.3, 0.4)}, "saturation", (0.3, 0.4)),
        ({"hue": 0.1}, "hue", (-0.1, 0.1)),
        ({"hue": (0.0, 0.5)}, "hue", (0.0, 0.5)),
    ],
)
def test_jitter_ranges_are_torchvisions(fields, name, expected):
    assert ColorJitter(**fields).factor_range(name) == expected


def test_jitter_draws_every_order_equally_often_and_factors_from_their_range():
    jitter = ColorJitter(0.2, (0.5, 0.6), 2.0, 0.1)
    factors, order = (np.asarray(each).T for each in jax.jit(lambda: jitter.draw(KEY, (4096, 1, 1, 3)))())
    for factor, (low, high) in zip(factors, [(0.8, 1.2), (0.5, 0.6), (0.0, 3.0), (-0.1, 0.1)], strict=True):
        assert stats.kstest(factor, stats.uniform(low, high - low).cdf).pvalue > 1e-3
    orders = [tuple(column) for column in order.T.tolist()]
    frequencies = [orders.count(each) for each in itertools.permutations(range(4))]
    assert sum(frequencies) == 4096
    assert stats.chisquare(frequencies).pvalue > 1e-3
    assert np.abs(np.corrcoef(factors) - np.eye(4)).max() < 4 / np.sqrt(4096)


def test_grey_images_have_equal_channels():
    result = run(ToGray(p=1.0))
    assert (result[..., :1] == result).all()
    ends = jnp.broadcast_to(jnp.arange(64, dtype=jnp.float32)[:, None, None, None] % 2, IMAGES.shape)
    np.testing.assert_allclose(run(ToGray(p=1.0), images=ends), ends, atol=1e-6)


def test_clahe_spreads_a_narrow_range():
    narrow = 0.4 + 0.1 * IMAGES
    result = run(TILED, images=narrow)
    assert result.std() > 3 * np.asarray(narrow).std()


def test_clahe_keeps_grey_grey():
    grey = jnp.broadcast_to(IMAGES[..., :1], IMAGES.shape)
    result = run(TILED, images=grey)
    assert np.ptp(result, axis=-1).max() < 1e-3  # the white point has six digits, the matrix too


def boxes_of(images: np.ndarray, filled: np.ndarray) -> np.ndarray:
    """Top, left, height and width of the one filled rectangle of each image."""
    rows, columns = filled.any(2), filled.any(1)
    height, width = rows.sum(1), columns.sum(1)
    assert (filled.sum((1, 2)) == height * width).all()
    return np.stack([rows.argmax(1), columns.argmax(1), height, width])


def test_erasing_fills_one_rectangle_inside_the_image():
    images, transform = np.ones((4096, 16, 20, 1), np.float32), RandomErasing(p=1.0, scale=(0.1, 0.4), ratio=(0.5, 2.0))
    result = np.asarray(jax.jit(transform)(KEY, jnp.asarray(images)))
    top, left, height, width = boxes_of(images, result[..., 0] == 0)
    area, ratio = height * width / 320, height / width
    # Rounding the sides moves area and ratio a little.
    assert 0.08 < area.min() < 0.12 and 0.36 < area.max() < 0.44
    assert 0.4 < ratio.min() < 0.6 and 1.7 < ratio.max() < 2.4
    assert (height < 16).all() and (width < 20).all()
    free = height < 10
    assert stats.kstest((top + 0.5)[free] / (16 - height + 1)[free], "uniform").statistic < 0.15
    assert top.min() == left.min() == 0
    assert (top + height).max() == 16 and (left + width).max() == 20


def test_erasing_draws_area_shape_and_place_each_by_itself():
    # So small a share fits at once, whatever its shape.
    erasing = RandomErasing(p=0.5, scale=(0.1, 0.2), ratio=(0.5, 3.0))
    top, left, height, width = np.asarray(erasing.draw(KEY, (8192, 160, 200, 1)).boxes)[:, 0].T
    applied = height > 0
    assert stats.binomtest(int(applied.sum()), 8192, 0.5).pvalue > 1e-3
    places = (top + 0.5) / (160 - height + 1), (left + 0.5) / (200 - width + 1)
    found = np.stack([height * width / (160 * 200), np.log(np.maximum(height, 1) / np.maximum(width, 1)), *places])
    found = found[:, applied]
    for values, (low, high) in zip(found, ((0.1, 0.2), np.log([0.5, 3.0]), (0, 1), (0, 1)), strict=True):
        assert stats.kstest(values, "uniform", (low, high - low)).pvalue > 1e-3
    assert np.abs(np.corrcoef(found) - np.eye(4)).max() < 4 / np.sqrt(applied.sum())


def test_erasing_draws_again_when_a_rectangle_does_not_fit():
    areas = np.full((4, 10), 0.5, np.float32)
    # Half of 16 x 16 pixels fits at a ratio of 1 and not at 8; whole images never fit.
    ratios = np.ones((4, 10), np.float32)
    ratios[0, :2], ratios[1, :9], ratios[2] = 8, 1 / 8, 8
    areas[3] = 1
    sides = fitting_sides(jnp.asarray(areas), jnp.asarray(ratios), 16, 16)
    np.testing.assert_array_equal(sides, [[11, 11], [11, 11], [0, 0], [0, 0]])


def test_constant_and_random_fills():
    colour = (0.25, 0.5, 0.75)
    for transform, value in ((RandomErasing(1.0, value=colour), colour), (CoarseDropout(fill=0.125, p=1.0), 0.125)):
        result = run(transform)
        filled = (result != np.asarray(IMAGES)).any(-1)
        np.testing.assert_array_equal(
            result[filled], np.broadcast_to(np.asarray(value, np.float32), IMAGES.shape)[filled]
        )
    result = run(NOISY, images=2 * jnp.ones_like(IMAGES))
    assert stats.kstest(result[result != 2], "uniform").pvalue > 1e-3


def test_a_fill_for_another_number_of_channels_is_refused():
    for transform in (RandomErasing(value=(0.1, 0.2)), CoarseDropout(fill=(0.1, 0.2))):
        with pytest.raises(ConfigError, match=r"\(0.1, 0.2\) has 2 channels, the images 3"):
            jax.eval_shape(transform, KEY, IMAGES)


def test_dropout_draws_numbers_sides_and_places_from_their_ranges():
    dropout = CoarseDropout((2, 4), (3, 5), (0.25, 0.5), p=0.75)
    boxes = np.asarray(jax.jit(lambda: dropout.draw(KEY, (4096, 8, 16, 1)).boxes)()).T
    count = (boxes[2] > 0).sum(0)
    assert stats.chisquare([np.sum(count == n) for n in (0, 2, 3, 4)]).pvalue > 1e-3
    top, left, height, width = boxes[:, boxes[2] > 0]
    for values, expected in ((height, [3, 4, 5]), (width, [4, 5, 6, 7]), (top[height == 4], range(5))):
        frequencies = [np.sum(values == value) for value in expected]
        assert sum(frequencies) == len(values)
        assert stats.chisquare(frequencies).pvalue > 1e-3
    assert stats.chisquare([np.sum(left[width == 5] == value) for value in range(12)]).pvalue > 1e-3
    assert (left + width).max() == 16
    places = (top + 0.5) / (8 - height + 1), (left + 0.5) / (16 - width + 1)
    assert np.abs(np.corrcoef([height, width, *places]) - np.eye(4)).max() < 4 / np.sqrt(len(height))


def test_dropout_refuses_holes_larger_than_the_images():
    with pytest.raises(ConfigError, match=r"CoarseDropout.hole_width_range = \(2, 17\) is too large for .* 16 pixels"):
        jax.eval_shape(CoarseDropout((1, 1), (2, 3), (2, 17)), KEY, IMAGES)


def test_places_stay_inside_when_there_is_no_room():
    whole = jnp.asarray([[[8, 5]]], jnp.int32)
    np.testing.assert_array_equal(place_boxes(KEY, whole, 8, 5), [[[0, 0, 8, 5]]])
