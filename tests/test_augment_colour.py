"""Colour jitter, grey, CLAHE, random erasing and coarse dropout: what they do, how they draw, what they refuse."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jax_cifar.augment.base import Transform
from jax_cifar.augment.boxes import CoarseDropout, RandomErasing, fitting, placed
from jax_cifar.augment.clahe import CLAHE
from jax_cifar.augment.colour import ColorJitter, ToGray
from jax_cifar.errors import ConfigError

KEY = jax.random.key(0)
# No pixel is 0, so that every filled one can be told.
IMAGES = jnp.asarray(np.random.default_rng(0).uniform(0.1, 1.0, (64, 16, 16, 3)), jnp.float32)
JITTER = ColorJitter(0.4, 0.4, 0.4, 0.1)
WITH_P = (
    ToGray(),
    CLAHE(tile_grid_size=(4, 4)),
    RandomErasing(value=(0.25, 0.5, 0.75)),
    CoarseDropout((1, 3), (2, 5), (4, 4), fill="random"),
)
ALL = (JITTER, *WITH_P, CLAHE(clip_limit=(2.0, 3.0)), RandomErasing(value="random"), CoarseDropout(fill=0.5))


def unchecked(kind: Any, **fields: object) -> Any:
    """An instance that has checked nothing: types are checked by the constructor in tests only, and first."""
    transform = object.__new__(kind)
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    for name, value in (defaults | fields).items():
        object.__setattr__(transform, name, value)
    return transform


@functools.cache
def compiled(transform: Any) -> Callable[..., jax.Array]:
    """A jitted function of key, images and `p`, so that one compilation serves every `p`."""

    def apply(key, images, p):
        fields = {field.name: getattr(transform, field.name) for field in dataclasses.fields(transform)}
        return unchecked(type(transform), **({**fields, "p": p} if "p" in fields else fields))(key, images)

    return jax.jit(apply)


def run(transform: Transform, seed: int = 0, p: float = 1.0, images: jax.Array = IMAGES) -> np.ndarray:
    return np.asarray(compiled(transform)(jax.random.key(seed), images, p))


def changed(transform: Transform, seed: int = 0, p: float = 1.0) -> np.ndarray:
    """Which images a transform changes."""
    return (run(transform, seed, p) != np.asarray(IMAGES)).any((1, 2, 3))


@pytest.mark.parametrize("transform", [JITTER, *WITH_P], ids=repr)
def test_keeps_the_range_and_always_applies(transform):
    result = run(transform)
    assert 0 <= result.min() <= result.max() <= 1
    assert changed(transform).all()


@pytest.mark.parametrize("transform", ALL, ids=repr)
@pytest.mark.parametrize(("shape", "dtype"), [((2, 16, 16, 3), jnp.bfloat16), ((2, 9, 12, 1), jnp.float64)])
def test_keeps_shape_and_dtype(transform, shape, dtype):
    if isinstance(getattr(transform, "value", 0), tuple):
        shape = (*shape[:3], 3)
    with jax.enable_x64(dtype == jnp.float64):
        result = jax.eval_shape(transform, KEY, jax.ShapeDtypeStruct(shape, dtype))
    assert result.shape == shape
    assert result.dtype == dtype


def test_half_precision_gives_nearly_the_same_pixels():
    images = IMAGES.astype(jnp.bfloat16)
    expected = run(JITTER, images=images.astype(jnp.float32))
    np.testing.assert_allclose(run(JITTER, images=images).astype(np.float32), expected, atol=4e-3)


@pytest.mark.parametrize("transform", [JITTER, *WITH_P], ids=repr)
def test_the_key_decides(transform):
    np.testing.assert_array_equal(run(transform, p=0.5), run(transform, p=0.5))
    assert not np.array_equal(run(transform, p=0.5), run(transform, seed=1, p=0.5))


@pytest.mark.parametrize("transform", WITH_P, ids=repr)
def test_p_is_the_probability(transform):
    assert not changed(transform, p=0.0).any()
    applied = np.concatenate([changed(transform, seed, p=0.3) for seed in range(16)])
    assert stats.binomtest(int(applied.sum()), applied.size, 0.3).pvalue > 1e-3
    assert abs(np.corrcoef(applied[1:], applied[:-1])[0, 1]) < 4 / np.sqrt(applied.size)


@pytest.mark.parametrize("transform", [JITTER, *WITH_P[2:]], ids=repr)
def test_every_image_has_its_own_draws(transform):
    same = jnp.broadcast_to(IMAGES[:1], IMAGES.shape)
    assert len(np.unique(run(transform, images=same).reshape(64, -1), axis=0)) >= 40


def test_clahe_draws_a_limit_for_each_image():
    # Tiles of 64 pixels that are all alike: how much is clipped is all there is to see.
    flat = jnp.full((64, 16, 16, 1), 0.5)
    assert len(np.unique(run(CLAHE(clip_limit=(1.0, 256.0), tile_grid_size=(2, 2)), images=flat))) >= 20


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
    assert ColorJitter(**fields).span(name) == expected


def test_jitter_draws_every_order_equally_often_and_factors_from_their_range():
    drawn = []

    class Spy(ColorJitter):
        def adjust(self, images, factors, order):
            drawn.append((factors, order))
            return images

    @jax.jit
    def draws_of_a_batch(key):
        Spy(0.2, (0.5, 0.6), 2.0, 0.1)(key, jnp.ones((4096, 1, 1, 3)))
        return drawn.pop()

    factors, order = map(np.asarray, draws_of_a_batch(KEY))
    for factor, (low, high) in zip(factors, [(0.8, 1.2), (0.5, 0.6), (0.0, 3.0), (-0.1, 0.1)], strict=True):
        assert stats.kstest(factor, stats.uniform(low, high - low).cdf).pvalue > 1e-3
    orders = [tuple(column) for column in order.T.tolist()]
    frequencies = [orders.count(each) for each in itertools.permutations(range(4))]
    assert sum(frequencies) == 4096
    assert stats.chisquare(frequencies).pvalue > 1e-3
    assert np.abs(np.corrcoef(factors) - np.eye(4)).max() < 4 / np.sqrt(4096)


def test_grey_images_have_equal_channels():
    result = run(ToGray())
    assert (result[..., :1] == result).all()
    ends = jnp.broadcast_to(jnp.arange(64, dtype=jnp.float32)[:, None, None, None] % 2, IMAGES.shape)
    np.testing.assert_allclose(run(ToGray(), images=ends), ends, atol=1e-6)


def test_clahe_spreads_a_narrow_range():
    narrow = 0.4 + 0.1 * IMAGES
    result = run(CLAHE(tile_grid_size=(4, 4)), images=narrow)
    assert result.std() > 3 * np.asarray(narrow).std()


def test_clahe_keeps_grey_grey():
    grey = jnp.broadcast_to(IMAGES[..., :1], IMAGES.shape)
    result = run(CLAHE(tile_grid_size=(4, 4)), images=grey)
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


def test_erasing_draws_again_when_a_rectangle_does_not_fit():
    areas = np.full((10, 4), 0.5, np.float32)
    # Half of 16 x 16 pixels fits at a ratio of 1 and not at 8; whole images never fit.
    ratios = np.ones((10, 4), np.float32)
    ratios[:2, 0], ratios[:9, 1], ratios[:, 2] = 8, 1 / 8, 8
    areas[:, 3] = 1
    sides = fitting(jnp.asarray(areas), jnp.asarray(ratios), 16, 16)
    np.testing.assert_array_equal(sides, [[11, 11, 0, 0], [11, 11, 0, 0]])


def test_constant_and_random_fills():
    for transform, value in ((WITH_P[2], (0.25, 0.5, 0.75)), (CoarseDropout(fill=0.125), 0.125)):
        result = run(transform)
        filled = (result != np.asarray(IMAGES)).any(-1)
        np.testing.assert_array_equal(
            result[filled], np.broadcast_to(np.asarray(value, np.float32), IMAGES.shape)[filled]
        )
    result = run(WITH_P[3], images=2 * jnp.ones_like(IMAGES))
    assert stats.kstest(result[result != 2], "uniform").pvalue > 1e-3


def test_a_fill_for_another_number_of_channels_is_refused():
    for transform in (RandomErasing(value=(0.1, 0.2)), CoarseDropout(fill=(0.1, 0.2))):
        with pytest.raises(ConfigError, match=r"\(0.1, 0.2\) has 2 channels, the images 3"):
            jax.eval_shape(transform, KEY, IMAGES)


def test_dropout_draws_numbers_sides_and_places_from_their_ranges():
    drawn = []

    class Spy(CoarseDropout):
        def drop(self, images, boxes, values=None):
            drawn.append(boxes)
            return images

    @jax.jit
    def boxes_of_a_batch(key):
        Spy((2, 4), (3, 5), (0.25, 0.5), p=0.75)(key, jnp.ones((4096, 8, 16, 1)))
        return drawn.pop()

    boxes = np.asarray(boxes_of_a_batch(KEY))
    count = (boxes[2] > 0).sum(0)
    assert stats.chisquare([np.sum(count == n) for n in (0, 2, 3, 4)]).pvalue > 1e-3
    top, left, height, width = boxes[:, boxes[2] > 0]
    for values, expected in ((height, [3, 4, 5]), (width, [4, 5, 6, 7]), (top[height == 4], range(5))):
        frequencies = [np.sum(values == value) for value in expected]
        assert sum(frequencies) == len(values)
        assert stats.chisquare(frequencies).pvalue > 1e-3
    assert stats.chisquare([np.sum(left[width == 5] == value) for value in range(12)]).pvalue > 1e-3
    assert (left + width).max() == 16


def test_dropout_refuses_holes_larger_than_the_images():
    with pytest.raises(ConfigError, match=r"CoarseDropout.hole_width_range = \(2, 17\) is too large for .* 16 pixels"):
        jax.eval_shape(CoarseDropout((1, 1), (2, 3), (2, 17)), KEY, IMAGES)


def test_places_stay_inside_when_there_is_no_room():
    whole = jnp.asarray([[[8]], [[5]]], jnp.int32)
    np.testing.assert_array_equal(placed(KEY, whole, 8, 5)[:, 0, 0], [0, 0, 8, 5])


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (ColorJitter, {"brightness": -0.1}, r"ColorJitter.brightness = -0.1 .*between 0.0 and inf"),
        (ColorJitter, {"contrast": (1.2, 0.8)}, r"ColorJitter.contrast = \(1.2, 0.8\) .*pair \(least, most\)"),
        (ColorJitter, {"saturation": (0.5, 0.6, 0.7)}, r"ColorJitter.saturation .*pair"),
        (ColorJitter, {"hue": 0.6}, r"ColorJitter.hue = 0.6 .*between 0.0 and 0.5"),
        (ColorJitter, {"hue": (-0.6, 0.0)}, r"ColorJitter.hue = \(-0.6, 0.0\) .*between -0.5 and 0.5"),
        (ColorJitter, {"hue": "0.1"}, r"ColorJitter.hue = '0.1'"),
        (ToGray, {"p": 1.1}, r"ToGray.p = 1.1 .*between 0.0 and 1.0"),
        (CLAHE, {"clip_limit": 0.5}, r"CLAHE.clip_limit = 0.5 .*between 1.0"),
        (CLAHE, {"clip_limit": (4.0, 2.0)}, r"CLAHE.clip_limit = \(4.0, 2.0\) .*pair"),
        (CLAHE, {"tile_grid_size": (0, 8)}, r"CLAHE.tile_grid_size = \(0, 8\) .*positive integers"),
        (CLAHE, {"tile_grid_size": 8}, r"CLAHE.tile_grid_size = 8 .*pair"),
        (RandomErasing, {"p": True}, r"RandomErasing.p = True"),
        (RandomErasing, {"scale": (0.3, 1.3)}, r"RandomErasing.scale = \(0.3, 1.3\) .*between 0.0 and 1.0"),
        (RandomErasing, {"ratio": (0.0, 2.0)}, r"RandomErasing.ratio = \(0.0, 2.0\) .*greater than 0"),
        (RandomErasing, {"value": "noise"}, r"RandomErasing.value = 'noise' .*'random'"),
        (RandomErasing, {"value": 255}, r"RandomErasing.value = 255 .*between 0 and 1"),
        (RandomErasing, {"value": ()}, r"RandomErasing.value = \(\)"),
        (CoarseDropout, {"num_holes_range": (0, 2)}, r"CoarseDropout.num_holes_range = \(0, 2\) .*between 1"),
        (CoarseDropout, {"num_holes_range": (1.0, 2.0)}, r"CoarseDropout.num_holes_range .*integers"),
        (CoarseDropout, {"hole_height_range": (0.5, 8)}, r"CoarseDropout.hole_height_range .*between 0.0 and 1.0"),
        (CoarseDropout, {"hole_width_range": (0, 8)}, r"CoarseDropout.hole_width_range = \(0, 8\) .*between 1"),
        (CoarseDropout, {"fill": (0.5, 2.0)}, r"CoarseDropout.fill = \(0.5, 2.0\)"),
    ],
)
def test_parameters_out_of_range_are_refused(kind, fields, message):
    transform = unchecked(kind, **fields)
    with pytest.raises(ConfigError, match=message):
        transform.__post_init__()


@pytest.mark.parametrize("kind", [ToGray, CLAHE, RandomErasing, CoarseDropout])
def test_the_constructor_checks(kind):
    with pytest.raises(ConfigError, match=rf"{kind.__name__}.p = -1"):
        kind(p=-1.0)
