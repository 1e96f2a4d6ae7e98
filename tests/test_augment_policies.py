"""AutoAugment and TrivialAugment: how their draws are distributed, what their operations do, what they refuse."""

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jax_cifar.augment.operations import OPERATIONS, apply_operations
from jax_cifar.augment.policies import CIFAR10_POLICY, AutoAugment, TrivialAugmentWide
from jax_cifar.errors import ConfigError

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
LEVELS = RNG.integers(0, 256, (64, 32, 32, 3)).astype(np.float32)
IMAGES = jnp.asarray(LEVELS / np.float32(255))
POLICIES = (AutoAugment(), TrivialAugmentWide())
MIXED = [OPERATIONS[i % len(OPERATIONS)] for i in range(64)]
# The magnitude at which an operation changes nothing.
NEUTRAL = dict.fromkeys(OPERATIONS[:10], 0.0) | {"Posterize": 8.0, "Solarize": 256.0}


@functools.cache
def compiled(transform):
    return jax.jit(transform)


@functools.cache
def compiled_operation(fill: float):
    return jax.jit(functools.partial(apply_operations, fill=fill))


def apply(names: str | list[str], magnitude: float, images: jax.Array = IMAGES, fill: float = 0.0) -> np.ndarray:
    """One operation for all images, or a list with one for each, as levels."""
    names = [names] * len(images) if isinstance(names, str) else names
    codes = jnp.asarray([[OPERATIONS.index(name) for name in names]], jnp.int32)
    result = compiled_operation(fill)(images, codes, jnp.full(codes.shape, magnitude, jnp.float32))
    assert result.dtype == images.dtype
    return np.asarray(result, np.float32) * 255


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_keeps_shape_dtype_range_and_whole_levels(policy):
    result = compiled(policy)(KEY, IMAGES)
    assert result.shape == IMAGES.shape
    assert result.dtype == IMAGES.dtype
    assert float(result.min()) >= 0
    assert float(result.max()) <= 1
    assert np.abs(np.asarray(result) * 255 - np.rint(np.asarray(result) * 255)).max() < 1e-4
    assert not np.array_equal(result, IMAGES)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_the_key_decides(policy):
    first = compiled(policy)(KEY, IMAGES)
    np.testing.assert_array_equal(first, compiled(policy)(KEY, IMAGES))
    assert not np.array_equal(first, compiled(policy)(jax.random.key(1), IMAGES))


@pytest.mark.parametrize(("policy", "least"), [(AutoAugment(), 25), (TrivialAugmentWide(), 45)], ids=repr)
def test_every_image_has_its_own_draws(policy, least):
    same = jnp.broadcast_to(IMAGES[:1], IMAGES.shape)
    assert len(np.unique(np.asarray(compiled(policy)(KEY, same)).reshape(64, -1), axis=0)) >= least


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_other_dtypes_give_the_same_levels(dtype):
    expected = apply(MIXED, 0.7)
    with jax.enable_x64(dtype == "float64"):
        result = apply(MIXED, 0.7, jnp.asarray(np.asarray(IMAGES), dtype))
    # 256 levels are still apart in bfloat16, though only just.
    np.testing.assert_array_equal(np.rint(result), np.rint(expected))


def draws_of(monkeypatch, kind: type, batch: int) -> list[np.ndarray]:
    """What a policy draws for a batch, and hands to its `augment`."""
    seen: list[Any] = []
    monkeypatch.setattr(kind, "augment", lambda self, images, *draws: seen.extend(draws) or images)
    kind()(KEY, jnp.zeros((batch, 1, 1, 3)))
    return [np.asarray(draw) for draw in seen]


def assert_uniform(values: np.ndarray, count: int) -> None:
    frequencies = np.bincount(values, minlength=count)
    assert frequencies.size == count
    assert stats.chisquare(frequencies).pvalue > 1e-3


def test_autoaugment_draws(monkeypatch):
    choice, applied, positive = draws_of(monkeypatch, AutoAugment, 100_000)
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


def test_trivialaugment_draws(monkeypatch):
    operation, bins, positive = draws_of(monkeypatch, TrivialAugmentWide, 100_000)
    # All at once: 14 operations, none of them Invert, 31 magnitudes, 2 directions.
    assert_uniform((operation * 31 + bins) * 2 + positive, 14 * 31 * 2)


def test_autoaugment_applies_nothing_where_nothing_is_drawn():
    between_levels = jnp.asarray(RNG.random(IMAGES.shape, np.float32))
    choice, no = jnp.arange(64, dtype=jnp.int32) % 25, jnp.zeros((2, 64), bool)
    augment = jax.jit(AutoAugment().augment)
    np.testing.assert_array_equal(augment(between_levels, choice, no, no), between_levels)
    first_only = no.at[0, :25].set(True)
    changed = (np.asarray(augment(between_levels, choice, first_only, no)) != between_levels).any((1, 2, 3))
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


def test_policies_run_inside_a_scan():
    policy = TrivialAugmentWide()
    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(2))
    expected = np.stack([compiled(policy)(keys[i], IMAGES) for i in range(2)])
    _, scanned = jax.jit(lambda keys: jax.lax.scan(lambda carry, key: (carry, policy(key, IMAGES)), None, keys))(keys)
    np.testing.assert_array_equal(scanned, expected)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (AutoAugment, {"fill": 128.0}, r"AutoAugment.fill = 128.0 .*between 0.0 and 1.0"),
        (TrivialAugmentWide, {"fill": -0.1}, r"TrivialAugmentWide.fill = -0.1"),
        (TrivialAugmentWide, {"num_magnitude_bins": 1}, r"num_magnitude_bins = 1 .*integer of at least 2"),
        (TrivialAugmentWide, {"num_magnitude_bins": 31.0}, r"num_magnitude_bins = 31.0 .*integer"),
    ],
)
def test_parameters_out_of_range_are_refused(kind, fields, message):
    # Not through the constructor: types are checked there in tests only, and first.
    transform = object.__new__(kind)
    for name, value in ({"fill": 0.0, "num_magnitude_bins": 31} | fields).items():
        object.__setattr__(transform, name, value)
    with pytest.raises(ConfigError, match=message):
        inspect.unwrap(kind.__post_init__)(transform)
