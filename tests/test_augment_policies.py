"""AutoAugment and TrivialAugment: how their draws are distributed, what their operations do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jax_cifar.augment.operations import OPERATIONS, apply_operations
from jax_cifar.augment.policies import CIFAR10_POLICY, AutoAugment, PolicyDraws, TrivialAugmentWide
from jax_cifar.backend.precision import float64
from jax_cifar.errors import ConfigError

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
LEVELS = RNG.integers(0, 256, (64, 32, 32, 3)).astype(np.float32)
IMAGES = jnp.asarray(LEVELS / np.float32(255))
POLICIES = (AutoAugment(), TrivialAugmentWide())
MIXED = [OPERATIONS[i % len(OPERATIONS)] for i in range(64)]
# The magnitude at which an operation changes nothing.
NEUTRAL = dict.fromkeys(OPERATIONS[:10], 0.0) | {"Posterize": 8.0, "Solarize": 256.0}


@functools.cache
def compiled_operation(fill: float):
    return jax.jit(functools.partial(apply_operations, fill=fill))


def apply(names: str | list[str], magnitude: float, images: jax.Array = IMAGES, fill: float = 0.0) -> np.ndarray:
    """One operation for all images, or a list with one for each, as levels."""
    names = [names] * len(images) if isinstance(names, str) else names
    codes = jnp.asarray([[OPERATIONS.index(name)] for name in names], jnp.int32)
    result = compiled_operation(fill)(images, codes, jnp.full(codes.shape, magnitude, jnp.float32))
    assert result.dtype == images.dtype
    return np.asarray(result, np.float32) * 255


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_levels_stay_whole(policy):
    levels = np.asarray(jax.jit(policy)(KEY, IMAGES)) * 255
    assert np.abs(levels - np.rint(levels)).max() < 1e-4


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_other_dtypes_give_the_same_levels(dtype):
    expected = apply(MIXED, 0.7)
    with float64(dtype == "float64"):
        result = apply(MIXED, 0.7, jnp.asarray(np.asarray(IMAGES), dtype))
    # 256 levels are still apart in bfloat16, though only just.
    np.testing.assert_array_equal(np.rint(result), np.rint(expected))


def assert_uniform(values: np.ndarray, count: int) -> None:
    frequencies = np.bincount(values, minlength=count)
    assert frequencies.size == count
    assert stats.chisquare(frequencies).pvalue > 1e-3


def draws_of(policy, batch: int) -> list[np.ndarray]:
    """What a policy draws for a batch, which is the last axis here."""
    return [np.asarray(draw).T for draw in jax.jit(lambda: policy.draw(KEY, (batch, 1, 1, 3)))()]


def test_autoaugment_draws():
    choice, applied, positive = draws_of(AutoAugment(), 100_000)
    assert_uniform(choice, 25)
    # Directions and what is applied do not depend on each other, nor one operation on the other.
    assert_uniform(positive[0] + 2 * positive[1], 4)
    for i, steps in enumerate(CIFAR10_POLICY):
        here = applied[:, choice == i]
        for happened, step in zip(here, steps, strict=True):
            assert stats.binomtest(int(happened.sum()), happened.size, step.probability).pvalue > 1e-4
        both = steps[0].probability * steps[1].probability
        assert stats.binomtest(int(here.all(0).sum()), here.shape[1], both).pvalue > 1e-4
    draws = np.stack([choice, *applied, *positive])
    for one, other in [(draws[:, 1:], draws[:, :-1]), (draws[1:3], draws[3:5]), (draws[3:5], draws[[0, 0]])]:
        for first, second in zip(one, other, strict=True):
            assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(len(choice))


def test_trivialaugment_draws():
    operation, bins, positive = draws_of(TrivialAugmentWide(), 100_000)
    # All at once: 14 operations, none of them Invert, 31 magnitudes, 2 directions.
    assert_uniform((operation * 31 + bins) * 2 + positive, 14 * 31 * 2)


def test_autoaugment_applies_nothing_where_nothing_is_drawn():
    between_levels = jnp.asarray(RNG.random(IMAGES.shape, np.float32))
    choice, no = jnp.arange(64, dtype=jnp.int32) % 25, jnp.zeros((64, 2), bool)
    augment, draws = jax.jit(AutoAugment().transform), PolicyDraws(choice, no, no)
    np.testing.assert_array_equal(augment(between_levels, draws), between_levels)
    first_only = draws._replace(applied=no.at[:25, 0].set(True))
    changed = (np.asarray(augment(between_levels, first_only)) != between_levels).any((1, 2, 3))
    np.testing.assert_array_equal(changed, np.arange(64) < 25)


def test_images_of_a_batch_do_not_disturb_each_other():
    mixed = apply(MIXED, 0.7)
    for name in OPERATIONS:
        mine = [i for i in range(64) if MIXED[i] == name]
        np.testing.assert_array_equal(mixed[mine], apply(name, 0.7)[mine])


@pytest.mark.parametrize("name", NEUTRAL)
def test_neutral_magnitudes_change_nothing(name):
    np.testing.assert_array_equal(np.rint(apply(name, NEUTRAL[name])), LEVELS)


def test_geometric_operations_move_the_way_torchvision_has_it():
    moved = apply("TranslateX", 3.9, fill=1.0)
    np.testing.assert_array_equal(np.rint(moved[:, :, 3:]), LEVELS[:, :, :-3])
    np.testing.assert_array_equal(moved[:, :, :3], 255)
    np.testing.assert_array_equal(np.rint(apply("TranslateY", -3.9))[:, :-3], LEVELS[:, 3:])
    np.testing.assert_array_equal(np.rint(apply("Rotate", 90.0)), np.rot90(LEVELS, 1, (1, 2)))
    np.testing.assert_array_equal(np.rint(apply("ShearX", 0.5))[:, 10, :27], LEVELS[:, 10, 5:])
    np.testing.assert_array_equal(np.rint(apply("ShearY", 0.5))[:, :27, 10], LEVELS[:, 5:, 10])


def test_levels_are_changed_as_their_names_say():
    np.testing.assert_array_equal(np.rint(apply("Invert", 0.0)), 255 - LEVELS)
    np.testing.assert_array_equal(np.rint(apply("Solarize", 100.0)), np.where(LEVELS < 100, LEVELS, 255 - LEVELS))
    np.testing.assert_array_equal(np.rint(apply("Posterize", 3.0)), LEVELS // 32 * 32)
    np.testing.assert_array_equal(np.rint(apply("Brightness", -0.5)), LEVELS // 2)
    narrow = jnp.asarray((LEVELS // 4 + 50) / np.float32(255))
    stretched = apply("AutoContrast", 0.0, narrow)
    assert stretched.min() == 0 and stretched.max() >= 254
    # A quarter of the pixels of so small an image pass 255; the others are spread evenly.
    spread = apply("Equalize", 0.0, narrow)
    frequencies = np.histogram(spread, 8, (0, 256))[0] / spread.size
    np.testing.assert_allclose(frequencies, [0.75 / 8] * 7 + [0.25 + 0.75 / 8], atol=0.02)
    assert apply("Color", -1.0).std(-1).max() == 0
    assert apply("Contrast", -1.0).std((1, 2, 3)).max() < 1e-4
    assert apply("Sharpness", -1.0).std() < LEVELS.std() < apply("Sharpness", 0.9).std()


def test_grey_images_are_images():
    grey = IMAGES[..., :1]
    as_rgb = apply(MIXED, 0.7, jnp.broadcast_to(grey, IMAGES.shape))
    np.testing.assert_array_equal(apply(MIXED, 0.7, grey)[..., 0], as_rgb[..., 1])
    with pytest.raises(ConfigError, match=r"images of 2 channels .*grey or RGB"):
        apply(MIXED, 0.7, IMAGES[..., :2])
