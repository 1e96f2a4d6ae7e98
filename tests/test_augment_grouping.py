"""OneOf and Sometimes: exactly one per image, with the right frequency, nested, and nothing but transforms inside."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jax_cifar.augment.base import SampleInfo, Transform, compose
from jax_cifar.augment.colour import ToGray
from jax_cifar.augment.crop_flip import HorizontalFlip
from jax_cifar.augment.cutout import Cutout
from jax_cifar.augment.groups import OneOf, Sometimes
from jax_cifar.errors import ConfigError

KEY = jax.random.key(0)
IMAGES = jnp.asarray(np.random.default_rng(0).uniform(0.1, 1.0, (64, 8, 8, 3)), jnp.float32)
INFO = SampleInfo(jnp.arange(64, dtype=jnp.int32), jnp.asarray(0, jnp.int32))
MEMBERS = (ToGray(p=1.0), Cutout(4), HorizontalFlip(p=1.0))


@dataclasses.dataclass(frozen=True)
class Paint(Transform):
    """Fill images with one value, with probability `p`: tells which transform an image went through."""

    value: float
    p: float = 1.0

    def __call__(self, key, images, info=None):
        applied = jax.random.uniform(key, images.shape[:1], jnp.float32) < self.p
        return jnp.where(applied[:, None, None, None], jnp.full_like(images, self.value), images)


def painted(transform: Transform, batch: int = 4096) -> np.ndarray:
    """The colour, in tenths, that each of many black images gets."""
    result = np.asarray(jax.jit(transform)(KEY, jnp.zeros((batch, 2, 2, 1))))
    assert (result == result[:, :1, :1]).all()
    return np.rint(result[:, 0, 0, 0] * 10).astype(int)


@pytest.mark.parametrize(
    ("weights", "p", "shares"),
    [
        (None, 1.0, [0, 1 / 3, 1 / 3, 1 / 3]),
        (None, 0.4, [0.6, 0.4 / 3, 0.4 / 3, 0.4 / 3]),
        ((1.0, 3.0, 0.0), 0.8, [0.2, 0.2, 0.6, 0]),
        ((0.0, 0.5, 0.5), 1.0, [0, 0, 0.5, 0.5]),
    ],
)
def test_exactly_one_of_them_with_its_frequency(weights, p, shares):
    colours = painted(OneOf((Paint(0.1), Paint(0.2), Paint(0.3)), weights, p))
    frequencies = np.bincount(colours, minlength=4)
    possible = np.asarray(shares) > 0
    assert (frequencies[~possible] == 0).all()
    assert stats.chisquare(frequencies[possible], 4096 * np.asarray(shares)[possible]).pvalue > 1e-3
    assert abs(np.corrcoef(colours[1:], colours[:-1])[0, 1]) < 4 / np.sqrt(4096)


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_sometimes_hands_on_images_with_its_probability(p):
    colours = painted(Sometimes(Paint(0.1), p))
    assert set(colours.tolist()) <= {0, 1}
    assert stats.binomtest(int(colours.sum()), 4096, p).pvalue > 1e-3


def test_one_of_gives_each_image_what_its_transform_makes_of_it():
    choice = np.arange(64) % 4
    result = jax.jit(OneOf(MEMBERS).apply)(KEY, IMAGES, jnp.asarray(choice, jnp.int32), INFO)
    made = [jax.jit(member)(jax.random.fold_in(KEY, i), IMAGES, INFO) for i, member in enumerate(MEMBERS)]
    expected = np.stack([*map(np.asarray, made), np.asarray(IMAGES)])[choice, np.arange(64)]
    np.testing.assert_array_equal(result, expected)
    assert not np.array_equal(result, np.stack([*map(np.asarray, made), np.asarray(IMAGES)])[0])


def test_sometimes_gives_each_image_what_the_transform_makes_of_it():
    applied = np.arange(64) % 3 == 0
    result = jax.jit(Sometimes(Cutout(4)).apply)(KEY, IMAGES, jnp.asarray(applied), INFO)
    expected = np.where(applied[:, None, None, None], jax.jit(Cutout(4))(KEY, IMAGES), IMAGES)
    np.testing.assert_array_equal(result, expected)


def test_members_draw_apart_from_one_another_and_from_the_choice():
    # If the group's draw decided for the member too, Sometimes(p=0.5) of p=0.5 would apply to a half, not a quarter.
    colours = painted(Sometimes(Paint(0.1, p=0.5), 0.5))
    assert stats.binomtest(int(colours.sum()), 4096, 0.25).pvalue > 1e-3
    colours = painted(OneOf((Paint(0.1, p=0.5), Paint(0.2, p=0.5)), p=1.0))
    assert stats.chisquare(np.bincount(colours), [2048, 1024, 1024]).pvalue > 1e-3


def test_groups_nest():
    colours = painted(OneOf((OneOf((Paint(0.1), Paint(0.2)), p=1.0), Sometimes(Paint(0.3), 1.0)), (2.0, 1.0), p=1.0))
    assert stats.chisquare(np.bincount(colours)[1:]).pvalue > 1e-3


@pytest.mark.parametrize("kind", [OneOf, Sometimes])
def test_groups_hand_on_the_sample_info(kind):
    flip = HorizontalFlip(mode="alternate")
    group = kind((flip,), p=1.0) if kind is OneOf else kind(flip, p=1.0)
    np.testing.assert_array_equal(jax.jit(group)(KEY, IMAGES, INFO), jax.jit(flip)(KEY, IMAGES, INFO))


@pytest.mark.parametrize("group", [OneOf(MEMBERS, p=0.7), Sometimes(Cutout(4), 0.5)], ids=repr)
def test_groups_are_transforms(group):
    apply = jax.jit(compose((HorizontalFlip(), group)))
    result = apply(KEY, IMAGES)
    assert result.shape == IMAGES.shape
    assert result.dtype == IMAGES.dtype
    assert 0 <= float(result.min()) <= float(result.max()) <= 1
    np.testing.assert_array_equal(result, apply(KEY, IMAGES))
    assert not np.array_equal(result, apply(jax.random.key(1), IMAGES))


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (OneOf, {"transforms": ()}, r"OneOf.transforms = \(\) .*at least one transform"),
        (OneOf, {"transforms": ToGray()}, r"OneOf.transforms = ToGray\(p=0.5\) .*tuple"),
        (OneOf, {"transforms": (ToGray(), ToGray)}, r"OneOf.transforms\[1\] = .* is not a transform: give an instance"),
        (OneOf, {"weights": (1.0, 2.0)}, r"OneOf.weights = \(1.0, 2.0\) .*there are 1 transforms"),
        (OneOf, {"weights": (-1.0,)}, r"OneOf.weights = \(-1.0,\) .*negative"),
        (OneOf, {"weights": (0.0,)}, r"OneOf.weights = \(0.0,\) .*greater than 0"),
        (OneOf, {"p": 2.0}, r"OneOf.p = 2.0 .*between 0.0 and 1.0"),
        (Sometimes, {"transform": "ToGray"}, r"Sometimes.transform = 'ToGray' is not a transform"),
        (Sometimes, {"p": -0.1}, r"Sometimes.p = -0.1"),
    ],
)
def test_parameters_out_of_range_are_refused(kind, fields, message):
    # Not through the constructor: types are checked there in tests only, and first.
    group = object.__new__(kind)
    defaults = {"transforms": (ToGray(),), "weights": None, "transform": ToGray(), "p": 0.5}
    for name, value in (defaults | fields).items():
        object.__setattr__(group, name, value)
    with pytest.raises(ConfigError, match=message):
        group.__post_init__()


def test_the_constructor_checks():
    with pytest.raises(ConfigError, match=r"OneOf.transforms = \(\)"):
        OneOf(())
    with pytest.raises(ConfigError, match=r"Sometimes.p = 1.5"):
        Sometimes(ToGray(), 1.5)
