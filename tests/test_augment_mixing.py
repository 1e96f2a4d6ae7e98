"""MixUp, CutMix and the choice between them: labels match pixels, draws have the right distribution."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jax_cifar.augment import CutMix, make_mixer
from jax_cifar.augment.mixing import cutmix_share, draw_beta, mix_with_partner, mixup_share
from jax_cifar.backend.precision import float64
from jax_cifar.config import MixConfig
from jax_cifar.errors import ConfigError

KEY = jax.random.key(0)
# A white image and a black one: what is left of the white one in image 0 is the share it keeps.
WHITE_BLACK = jnp.stack([jnp.ones((32, 32, 1)), jnp.zeros((32, 32, 1))])
TARGETS = jnp.eye(2, dtype=jnp.float32)
IMAGES = jnp.asarray(np.random.default_rng(0).random((16, 32, 32, 3)), jnp.float32)
CLASSES = jax.nn.one_hot(jnp.arange(16), 16)
BOTH = MixConfig(mixup_alpha=1.0, cutmix_alpha=1.0)
MIXUP, CUTMIX = (make_mixer(config) for config in (MixConfig(mixup_alpha=1.0), MixConfig(cutmix_alpha=1.0)))
pytestmark = pytest.mark.usefixtures("quick_compile")


@functools.cache
def many(mixer, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """What `draws` keys leave of the white image, and its label's weight: [draws, 32, 32] and [draws]."""
    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(draws))
    images, targets = jax.jit(jax.vmap(mixer, in_axes=(0, None, None)))(keys, WHITE_BLACK, TARGETS)
    np.testing.assert_allclose(np.asarray(targets).sum(-1), 1, rtol=1e-6)
    return np.asarray(images)[:, 0, :, :, 0], np.asarray(targets)[:, 0, 0]


def draw_lambda(alpha: float, draws: int) -> np.ndarray:
    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(draws))
    return np.asarray(jax.jit(jax.vmap(lambda key: draw_beta(key, alpha)))(keys))


def distance(samples: np.ndarray, alpha: float) -> float:
    """Kolmogorov-Smirnov distance to Beta(alpha, alpha), leaving out what float32 rounds to 0 or 1."""
    points = np.linspace(1e-5, 1 - 1e-5, 501)
    empirical = np.searchsorted(np.sort(samples), points, side="right") / samples.size
    return float(np.abs(empirical - stats.beta.cdf(points, alpha, alpha)).max())


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.5, 1.0, 3.0])
def test_lambda_is_beta_distributed(alpha):
    samples = draw_lambda(alpha, 8192)
    critical = 1.95 / np.sqrt(samples.size)  # one chance in a thousand
    assert distance(samples, alpha) < critical
    assert distance(samples, 1.5 * alpha) > critical


@pytest.mark.parametrize("alpha", [1e-3, 1e3])
def test_lambda_is_a_share_at_extreme_alphas(alpha):
    samples = draw_lambda(alpha, 8192)
    assert samples.dtype == np.float32
    assert ((samples >= 0) & (samples <= 1)).all()
    assert abs(samples.mean() - 0.5) < 0.03


def test_mixup_has_one_share_for_all_pixels_and_the_label():
    pixels, labels = many(MIXUP, 1000)
    np.testing.assert_array_equal(pixels, np.broadcast_to(labels[:, None, None], pixels.shape))
    assert distance(labels, 1.0) < 1.95 / np.sqrt(1000)


def test_cutmix_label_weight_is_the_share_of_pixels_exactly():
    pixels, labels = many(CUTMIX, 1000)
    np.testing.assert_array_equal(np.unique(pixels), [0.0, 1.0])
    np.testing.assert_array_equal(labels, pixels.mean((1, 2), dtype=np.float64))
    assert len(np.unique(labels)) > 100


def test_cutmix_pastes_one_box():
    pixels, _ = many(CUTMIX, 1000)
    for pasted in 1 - pixels:
        rows, columns = np.flatnonzero(pasted.any(1)), np.flatnonzero(pasted.any(0))
        assert pasted.sum() == len(rows) * len(columns)
        for span in (rows, columns):
            assert span.size == 0 or span.size == span[-1] - span[0] + 1


def test_cutmix_centres_are_uniform():
    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(16384))
    share = jax.jit(jax.vmap(lambda key: CutMix(1.0).share(key, 6, 8)))(keys)
    pasted = np.asarray(share.pixels) == 0
    rows, columns = pasted.any(2), pasted.any(1)
    # A box of half side 1 ends with its centre. Boxes of half side 2 look the same only at the border, in column 1.
    small = (rows.sum(1) <= 2) & (columns.sum(1) <= 2) & (rows.sum(1) > 0)
    ends = [side.shape[1] - 1 - side[small][:, ::-1].argmax(1) for side in (rows, columns)]
    frequencies = np.delete(np.bincount(ends[0] * 8 + ends[1], minlength=48).reshape(6, 8), 1, axis=1).ravel()
    assert frequencies.size == 42
    assert stats.chisquare(frequencies).pvalue > 1e-3


@pytest.mark.parametrize("size", [(32, 32), (17, 31)])
def test_cutmix_weighs_a_clipped_box_by_its_pixels(size):
    images = jnp.stack([jnp.ones((*size, 1)), jnp.zeros((*size, 1))])
    share = cutmix_share(jnp.asarray(0.5, jnp.float32), jnp.asarray([0, 3], jnp.int32), *size)
    mixed, targets = mix_with_partner(images, TARGETS, share)
    kept = np.asarray(mixed, np.float64)[0].mean()
    assert kept > 0.7  # uncorrected, the weight would be 0.5
    np.testing.assert_allclose(targets[0, 0], kept, rtol=1e-7)


def test_partner_is_the_image_before():
    mixed, targets = mix_with_partner(IMAGES, CLASSES, mixup_share(jnp.asarray(0.25, jnp.float32), 32, 32))
    np.testing.assert_allclose(mixed[1], 0.25 * np.asarray(IMAGES)[1] + 0.75 * np.asarray(IMAGES)[0], atol=1e-6)
    np.testing.assert_array_equal(targets[0, np.asarray([0, 15])], [0.25, 0.75])
    whole = cutmix_share(jnp.asarray(0.0, jnp.float32), jnp.asarray([16, 16], jnp.int32), 32, 32)
    pasted, _ = mix_with_partner(IMAGES, CLASSES, whole)
    np.testing.assert_array_equal(pasted, np.roll(np.asarray(IMAGES), 1, axis=0))


def test_lambda_of_one_changes_nothing():
    lam = jnp.asarray(1.0, jnp.float32)
    for share in (mixup_share(lam, 32, 32), cutmix_share(lam, jnp.asarray([5, 5], jnp.int32), 32, 32)):
        images, targets = mix_with_partner(IMAGES, CLASSES, share)
        np.testing.assert_array_equal(images, IMAGES)
        np.testing.assert_array_equal(targets, CLASSES)


@pytest.mark.parametrize("mixer", [MIXUP, CUTMIX, make_mixer(BOTH)], ids=["mixup", "cutmix", "both"])
def test_the_key_decides_and_the_range_is_kept(mixer):
    mix = jax.jit(mixer)
    images, targets = mix(KEY, IMAGES, CLASSES)
    again, targets_again = mix(KEY, IMAGES, CLASSES)
    np.testing.assert_array_equal(images, again)
    np.testing.assert_array_equal(targets, targets_again)
    assert not np.array_equal(images, mix(jax.random.key(3), IMAGES, CLASSES)[0])
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1
    assert images.shape == IMAGES.shape
    assert targets.shape == CLASSES.shape


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_mixing_keeps_other_dtypes(dtype):
    mixer = make_mixer(BOTH)
    assert mixer is not None
    with float64(dtype == "float64"):
        images, targets = jax.jit(mixer)(KEY, IMAGES.astype(dtype), CLASSES)
    assert images.dtype == dtype
    assert targets.dtype == np.float32
    np.testing.assert_allclose(np.asarray(images, np.float32), jax.jit(mixer)(KEY, IMAGES, CLASSES)[0], atol=0.02)


def kinds(config: MixConfig, draws: int) -> list[str]:
    """What a mixer did in each draw, told from the pixels alone; the label must tell the same."""
    mixer = make_mixer(config)
    assert mixer is not None
    pixels, labels = many(mixer, draws)
    found = []
    for image, label in zip(pixels, labels, strict=True):
        assert image.mean(dtype=np.float64) == label
        values = np.unique(image)
        if 0 < values[0] < 1:
            assert values.size == 1, "MixUp and CutMix on the same batch"
            found.append("mixup")
        else:
            assert np.isin(values, (0, 1)).all()
            found.append("cutmix" if values[0] == 0 else "none")
    return found


@pytest.mark.parametrize("switch", [0.25, 1.0])
def test_with_both_on_each_batch_gets_exactly_one(switch):
    found = kinds(MixConfig(mixup_alpha=1.0, cutmix_alpha=1.0, switch_probability=switch), 1000)
    # A box may be empty: under one in a hundred at alpha 1.
    share = 1 - found.count("mixup") / 1000
    assert stats.binomtest(round(1000 * share), 1000, switch).pvalue > 1e-3
    assert found.count("none") <= 20 * switch


def test_whether_a_batch_is_mixed_says_nothing_of_how():
    found = kinds(MixConfig(mixup_alpha=1.0, cutmix_alpha=1.0, probability=0.5, switch_probability=0.5), 1000)
    frequencies = [found.count(kind) for kind in ("none", "mixup", "cutmix")]
    assert stats.chisquare(frequencies, [500, 250, 250]).pvalue > 1e-3


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_one_alone_is_applied_with_its_probability(name):
    config = MixConfig(**{f"{name}_alpha": 1.0}, probability=0.3)  # pyright: ignore[reportArgumentType]
    found = kinds(config, 1000)
    assert set(found) == {name, "none"}
    assert 0.25 < found.count(name) / 1000 < 0.35


def test_one_alone_without_a_probability_is_always_applied():
    assert set(kinds(MixConfig(mixup_alpha=1.0), 200)) == {"mixup"}


def test_mixing_that_is_off_is_none():
    assert make_mixer(MixConfig()) is None
    assert make_mixer(MixConfig(mixup_alpha=1.0, cutmix_alpha=1.0, probability=0.0)) is None


def test_integer_targets_are_refused():
    # Unwrapped: the shape annotations, checked in tests only, would be first to refuse.
    share = mixup_share(jnp.asarray(0.5, jnp.float32), 32, 32)
    with pytest.raises(ConfigError, match=r"targets of dtype int32 .*jax.nn.one_hot"):
        inspect.unwrap(mix_with_partner)(IMAGES, jnp.zeros((16, 16), jnp.int32), share)
