"""Crop, flip, Cutout and the pipeline: what they do to an image, how their draws are distributed."""

import functools
import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jax_cifar.augment import Cutout, HorizontalFlip, RandomCrop, SampleInfo, Transform, compose
from jax_cifar.backend.precision import float64
from jax_cifar.errors import ConfigError

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY = jax.random.key(0)
# No pixel is 0, so that every filled one can be told.
IMAGES = jnp.asarray(np.random.default_rng(0).uniform(0.1, 1.0, (64, 16, 16, 3)), jnp.float32)
INFO = SampleInfo(jnp.arange(64, dtype=jnp.int32), jnp.asarray(0, jnp.int32))


@functools.cache
def compiled(transform: Transform) -> Callable[..., jax.Array]:
    return jax.jit(transform)


def coordinates(size: int, batch: int) -> jax.Array:
    """Images whose two channels hold row + 1 and column + 1, as shares of 100."""
    grid = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"), -1) + 1
    return jnp.asarray(np.broadcast_to(grid / 100, (batch, size, size, 2)), jnp.float32)


def assert_uniform(cells: np.ndarray, count: int) -> None:
    """Every one of `count` cells occurs, and as often as chance has it (chi-squared test)."""
    frequencies = np.bincount(cells, minlength=count)
    assert frequencies.size == count
    assert frequencies.min() > 0
    assert stats.chisquare(frequencies).pvalue > 1e-3


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_other_dtypes_give_the_same_pixels(dtype):
    augment = compose((RandomCrop(padding=2, padding_mode="reflect"), HorizontalFlip(mode="alternate"), Cutout(5, 0.5)))
    images = np.asarray(IMAGES.astype(jnp.bfloat16))
    expected = jax.jit(augment)(KEY, jnp.asarray(images, jnp.float32), INFO)
    with float64(dtype == "float64"):
        result = jax.jit(augment)(KEY, jnp.asarray(images, dtype), INFO)
    assert result.dtype == dtype
    np.testing.assert_array_equal(np.asarray(result, np.float32), expected)


def test_crop_takes_every_place_equally_often():
    # The middle pixel of a crop of a 9 x 9 image tells where it came from.
    images = coordinates(size=9, batch=8192)
    middle = np.rint(np.asarray(jax.jit(RandomCrop(padding=4))(KEY, images))[:, 4, 4] * 100).astype(int) - 1
    assert_uniform(middle[:, 0] * 9 + middle[:, 1], 81)
    neighbours = np.corrcoef(middle[1:, 0], middle[:-1, 0])[0, 1]
    assert abs(neighbours) < 4 / np.sqrt(8192)


def test_crop_fills_with_the_given_value():
    result = RandomCrop(padding=3, fill=0.25).transform(jnp.ones((1, 8, 8, 1)), jnp.zeros((1, 2), jnp.int32))
    np.testing.assert_array_equal(np.asarray(result)[0, :3], 0.25)
    np.testing.assert_array_equal(np.asarray(result)[0, :, :3], 0.25)
    np.testing.assert_array_equal(np.asarray(result)[0, 3:, 3:], 1)


def test_crop_reflects_without_repeating_the_edge():
    crop = RandomCrop(padding=3, padding_mode="reflect")
    result = crop.transform(coordinates(8, 1), jnp.zeros((1, 2), jnp.int32))
    rows = np.rint(np.asarray(result)[0, :, 0, 0] * 100).astype(int) - 1
    np.testing.assert_array_equal(rows, [3, 2, 1, 0, 1, 2, 3, 4])


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_crop_without_padding_changes_nothing(mode):
    np.testing.assert_array_equal(compiled(RandomCrop(padding=0, padding_mode=mode))(KEY, IMAGES), IMAGES)


def test_crop_refuses_to_reflect_more_than_there_is():
    with pytest.raises(ConfigError, match=r"padding = 8 is too large .*use at most 7"):
        RandomCrop(padding=8, padding_mode="reflect")(KEY, jnp.ones((1, 8, 9, 3)))


def test_flip_mirrors_columns_and_nothing_else():
    np.testing.assert_array_equal(compiled(HorizontalFlip(p=1.0))(KEY, IMAGES), np.asarray(IMAGES)[:, :, ::-1])
    np.testing.assert_array_equal(compiled(HorizontalFlip(p=0.0))(KEY, IMAGES), IMAGES)


@pytest.mark.parametrize("p", [0.5, 0.2])
def test_flip_happens_with_its_probability(p):
    images = coordinates(size=2, batch=4096)
    flipped = np.asarray(compiled(HorizontalFlip(p))(KEY, images))[:, 0, 0, 1] > 0.015
    assert stats.binomtest(int(flipped.sum()), 4096, p).pvalue > 1e-3
    assert abs(np.corrcoef(flipped[1:], flipped[:-1])[0, 1]) < 4 / np.sqrt(4096)


def alternating_flips(index: np.ndarray, epoch: int, key: jax.Array = KEY) -> np.ndarray:
    info = SampleInfo(jnp.asarray(index, jnp.int32), jnp.asarray(epoch, jnp.int32))
    images = coordinates(size=2, batch=len(index))
    return np.asarray(compiled(HorizontalFlip(mode="alternate"))(key, images, info))[:, 0, 0, 1] > 0.015


def test_alternating_flip_shows_the_other_side_in_the_next_epoch():
    index = np.arange(50_000)
    epochs = [alternating_flips(index, epoch) for epoch in range(4)]
    np.testing.assert_array_equal(epochs[1], ~epochs[0])
    np.testing.assert_array_equal(epochs[2], epochs[0])
    np.testing.assert_array_equal(epochs[3], epochs[1])


def test_alternating_flip_starts_with_a_random_half():
    flipped = alternating_flips(np.arange(50_000), 0)
    assert stats.binomtest(int(flipped.sum()), 50_000, 0.5).pvalue > 1e-3
    for lag in (1, 2, 4, 10, 1024, 5000):
        assert abs(np.corrcoef(flipped[lag:], flipped[:-lag])[0, 1]) < 4 / np.sqrt(50_000 - lag)


def test_alternating_flip_depends_on_the_index_alone():
    order = np.random.default_rng(1).permutation(512)
    flipped = alternating_flips(np.arange(512), 0)
    np.testing.assert_array_equal(alternating_flips(order, 0, jax.random.key(7)), flipped[order])


def test_alternating_flip_has_no_probability():
    with pytest.raises(ConfigError, match=r"HorizontalFlip.p = 0.3 .*leave p out"):
        HorizontalFlip(p=0.3, mode="alternate")


def test_alternating_flip_says_what_it_misses():
    with pytest.raises(ConfigError, match=r"alternate.*info=SampleInfo\(index, epoch\).*mode='random'"):
        HorizontalFlip(mode="alternate")(KEY, IMAGES)


@pytest.mark.parametrize("length", [1, 4, 5])
def test_cutout_fills_a_clipped_square(length):
    result = np.asarray(compiled(Cutout(length, fill=0.0))(KEY, IMAGES))
    for image, original in zip(result, np.asarray(IMAGES), strict=True):
        filled = (image == 0).all(-1)
        rows, columns = np.flatnonzero(filled.any(1)), np.flatnonzero(filled.any(0))
        assert filled.sum() == len(rows) * len(columns)
        for span in (rows, columns):
            clipped = span[0] == 0 or span[-1] == 15
            assert len(span) == span[-1] - span[0] + 1
            assert len(span) == length or (clipped and length // 2 <= len(span) < length)
        np.testing.assert_array_equal(image[~filled], original[~filled])


def test_cutout_centres_are_uniform_over_the_image():
    # A square of one pixel is its own centre.
    erased = np.asarray(jax.jit(Cutout(length=1))(KEY, jnp.ones((8192, 7, 9, 1)))).reshape(8192, 63) == 0
    assert_uniform(erased.argmax(1), 63)


def test_cutout_fills_with_the_given_value():
    result = np.asarray(compiled(Cutout(length=40, fill=0.25))(KEY, IMAGES))
    assert (result == 0.25).any(axis=(1, 2, 3)).all()
    np.testing.assert_array_equal(result[(result != np.asarray(IMAGES))], 0.25)


def test_compose_applies_in_order_with_separate_keys():
    first, second = RandomCrop(padding=4, fill=0.7), Cutout(length=6)
    cropped = compiled(first)(jax.random.fold_in(KEY, 0), IMAGES)
    expected = compiled(second)(jax.random.fold_in(KEY, 1), cropped)
    np.testing.assert_array_equal(jax.jit(compose((first, second)))(KEY, IMAGES), expected)
    # Two flips of the same draws would undo each other.
    assert not np.array_equal(jax.jit(compose((HorizontalFlip(), HorizontalFlip())))(KEY, IMAGES), IMAGES)


def test_compose_hands_on_the_sample_info():
    alone = HorizontalFlip(mode="alternate")
    np.testing.assert_array_equal(jax.jit(compose((alone,)))(KEY, IMAGES, INFO), compiled(alone)(KEY, IMAGES, INFO))


def test_compose_of_nothing_changes_nothing():
    np.testing.assert_array_equal(compose(())(KEY, IMAGES), IMAGES)


def test_transforms_run_inside_a_scan():
    augment = compose((RandomCrop(), HorizontalFlip(mode="alternate")))

    def step(carry, epoch):
        return carry, augment(jax.random.fold_in(KEY, epoch), IMAGES, SampleInfo(INFO.index, epoch))

    _, results = jax.lax.scan(step, None, jnp.arange(2, dtype=jnp.int32))
    second_epoch = SampleInfo(INFO.index, jnp.asarray(1, jnp.int32))
    np.testing.assert_array_equal(results[1], jax.jit(augment)(jax.random.fold_in(KEY, 1), IMAGES, second_epoch))


def test_compose_refuses_integer_images():
    # Unwrapped: the shape annotations, checked in tests only, would be first to refuse.
    augment = inspect.unwrap(compose((HorizontalFlip(),)))
    with pytest.raises(ConfigError, match=r"images of dtype uint8 .*divide pixels by 255"):
        augment(KEY, jnp.zeros((1, 4, 4, 3), jnp.uint8))
