"""OneOf and Sometimes: exactly one per image, with the right frequency, nested."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jax_cifar.augment.base import SampleInfo, Transform
from jax_cifar.augment.crop_flip import HorizontalFlip
from jax_cifar.augment.groups import OneOf, Sometimes

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY = jax.random.key(0)
IMAGES = jnp.asarray(np.random.default_rng(0).uniform(0.1, 1.0, (64, 8, 8, 3)), jnp.float32)
INFO = SampleInfo(jnp.arange(64, dtype=jnp.int32), jnp.asarray(0, jnp.int32))


@dataclasses.dataclass(frozen=True)
class Paint(Transform):
    """Fill images with one value, with probability `p`: tells which transform an image went through."""

    value: float
    p: float = 1.0

    def draw(self, key, shape, info=None):
        return jax.random.uniform(key, shape[:1], jnp.float32) < self.p

    def transform(self, images, draws):
        return jnp.where(draws[:, None, None, None], jnp.full_like(images, self.value), images)


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
