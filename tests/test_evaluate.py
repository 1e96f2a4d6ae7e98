"""Whole-set prediction: every image once, one compilation, and test-time augmentation as defined."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_cifar.augment import AutoAugment, Cutout, HorizontalFlip, OneOf, RandomCrop, Sometimes
from jax_cifar.config.placeholder import Recorded
from jax_cifar.config.spec import InputSpec
from jax_cifar.evaluation.predict import (
    UNSURE_SHARE,
    lead,
    make_batches,
    make_predictor,
    mirror_warning,
    passes,
    predict_logits,
    tta_views,
)
from jax_cifar.models.network import Network

CLASSES = 3
SPEC = InputSpec((6, 6, 3), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), None, ("a", "b", "c"))


class Linear(nn.Module):
    """No symmetry at all, so that a wrong view or order changes the logits."""

    @nn.compact
    def __call__(self, images, train: bool):
        assert not train
        return nn.Dense(CLASSES)(images.reshape(images.shape[0], -1))


@pytest.fixture
def traced(monkeypatch):
    """The shapes that `Linear` is traced with."""
    shapes, call = [], Linear.__call__

    def spying(self, images, train: bool):
        shapes.append(images.shape)
        return call(self, images, train)

    monkeypatch.setattr(Linear, "__call__", spying)
    return shapes


def make_images(count, size=6):
    return np.random.default_rng(count).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def variables():
    return Linear().init(jax.random.key(1), jnp.zeros((1, 6, 6, 3)), train=False)


@pytest.fixture(scope="module")
def predict():
    return make_predictor(Network(Linear(), SPEC))


def by_hand(variables, images):
    """The logits in NumPy and float64."""
    dense = jax.device_get(variables)["params"]["Dense_0"]
    pixels = (images / 255 - np.array(SPEC.mean)) / np.array(SPEC.std)
    return pixels.reshape(len(images), -1) @ dense["kernel"].astype(np.float64) + dense["bias"]


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("count", "batch_size"), [(10, 4), (3, 8), (8, 4), (1, 1), (5, 5), (100, 48), (100, 47)])
def test_every_image_once_and_in_order(predict, variables, count, batch_size):
    images = make_images(count)
    logits = predict_logits(predict, variables, make_batches(images, batch_size))
    assert (logits.shape, logits.dtype, type(logits)) == ((count, CLASSES), np.float32, np.ndarray)
    assert_close(logits, by_hand(variables, images))


def test_images_on_the_device_serve_every_evaluation(predict, variables, monkeypatch):
    batches = make_batches(make_images(10), 4)
    assert all(isinstance(images, jax.Array) and images.shape == (4, 6, 6, 3) for images in batches.images)
    monkeypatch.setattr(jax, "device_put", lambda *_: pytest.fail("uploaded again"))
    first, again = (predict_logits(predict, variables, batches) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert len(first) == len(batches.host) == 10


def test_one_compilation_for_all_batches_and_all_augmentations(variables, traced):
    predict = make_predictor(Network(Linear(), SPEC))
    for tta in ("none", "mirror", "mirror-translate", "unsure"):
        predict_logits(predict, variables, make_batches(make_images(10), 4), tta)
    assert traced == [(4, 6, 6, 3)]


@pytest.mark.parametrize(("batch_size", "portion"), [(48, 24), (40, 40), (47, 47), (13, 13)])
def test_the_network_sees_a_few_images_at_a_time(variables, traced, batch_size, portion):
    predict_logits(make_predictor(Network(Linear(), SPEC)), variables, make_batches(make_images(100), batch_size))
    assert min(len_of for len_of, *_ in traced) == portion


def test_mirror_is_the_mean_of_the_logits_of_image_and_mirror_image(predict, variables):
    images = make_images(7)
    expected = (by_hand(variables, images) + by_hand(variables, images[:, :, ::-1])) / 2
    assert_close(predict_logits(predict, variables, make_batches(images, 4), "mirror"), expected)
    upside_down = (by_hand(variables, images) + by_hand(variables, images[:, ::-1])) / 2
    assert np.abs(expected - upside_down).max() > 0.1


def test_mirror_translate_weighs_the_untranslated_views_by_half(predict, variables):
    images = make_images(5)
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")

    def mirrored(views):
        return (by_hand(variables, views) + by_hand(variables, views[:, :, ::-1])) / 2

    moved = (mirrored(padded[:, :6, :6]) + mirrored(padded[:, 2:, 2:])) / 2
    expected = (mirrored(images) + moved) / 2
    assert_close(predict_logits(predict, variables, make_batches(images, 4), "mirror-translate"), expected)
    equal_weights = mirrored(images) / 3 + moved * 2 / 3
    assert np.abs(expected - equal_weights).max() > 0.01


def counting(predict):
    """`predict`, and the number of images that every call was given."""
    calls = []
    return lambda variables, images: (calls.append(len(images)), predict(variables, images))[1], calls


def test_unsure_shows_six_views_of_the_images_of_which_one_leaves_it_unsure(predict, variables):
    images = make_images(200)
    counted, calls = counting(predict)
    ways = ("none", "mirror-translate")
    plain, six = (predict_logits(predict, variables, make_batches(images, 8), way) for way in ways)
    shares = np.sort(np.exp(plain) / np.exp(plain).sum(1, keepdims=True), 1)
    unsure = shares[:, 2] - shares[:, 1] < 0.5
    assert 20 < unsure.sum() < 180 and not (plain[unsure] == six[unsure]).all(1).any()
    logits = predict_logits(counted, variables, make_batches(images, 8), "unsure")
    np.testing.assert_array_equal(logits[~unsure], plain[~unsure])
    np.testing.assert_array_equal(logits[unsure], six[unsure])
    assert calls == [8] * (25 + 5 * -(-unsure.sum() // 8))


@pytest.mark.parametrize("factor", [0.0, 1e3])
def test_unsure_of_all_images_or_of_none(predict, variables, factor):
    scaled = jax.tree.map(lambda leaf: factor * leaf, variables)
    ways = ("unsure", "none" if factor else "mirror-translate")
    logits, expected = (predict_logits(predict, scaled, make_batches(make_images(10), 4), way) for way in ways)
    np.testing.assert_array_equal(logits, expected)


def test_the_lead_of_a_class_is_that_of_its_probability():
    shares = np.array([[0.1, 0.7, 0.2], [1 / 3, 1 / 3, 1 / 3]], np.float32)
    np.testing.assert_allclose(lead(np.log(shares) + 80), [0.5, 0], atol=1e-5)
    np.testing.assert_array_equal(lead(np.ones((2, 1), np.float32)), 1)  # of a single class


@pytest.mark.parametrize("tta", ["none", "mirror", "mirror-translate", "unsure"])
def test_what_one_view_says_is_not_worked_out_again(predict, variables, tta):
    batches = make_batches(make_images(10), 10)
    counted, calls = counting(predict)
    plain = predict_logits(predict, variables, batches)
    again = predict_logits(counted, variables, batches, tta, plain=plain)
    np.testing.assert_array_equal(again, predict_logits(predict, variables, batches, tta))
    assert len(calls) == {"none": 0, "mirror": 1}.get(tta, 5)


def test_images_are_taken_out_of_their_batches_in_order():
    images = make_images(11)
    index = np.array([10, 3, 3, 0, 7])
    taken = make_batches(images, 4).take(index)
    assert len(taken.host) == 5 and [batch.shape for batch in taken.images] == [(4, 6, 6, 3)] * 2
    np.testing.assert_array_equal(np.concatenate(taken.images), images[[10, 3, 3, 0, 7, 7, 7, 7]])


def test_the_passes_of_an_image():
    assert [passes(tta) for tta in ("none", "mirror", "mirror-translate")] == [1, 2, 6]
    assert passes("unsure") == 1 + 5 * UNSURE_SHARE


def test_translated_views_move_by_one_pixel_and_reflect_the_border():
    image = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1)
    views = [np.asarray(view)[0, :, :, 0] for view in tta_views(jnp.asarray(image), "mirror-translate")]
    assert len(views) == 6
    np.testing.assert_array_equal(views[2], [[5, 4, 5, 6], [1, 0, 1, 2], [5, 4, 5, 6], [9, 8, 9, 10]])
    np.testing.assert_array_equal(views[4], [[5, 6, 7, 6], [9, 10, 11, 10], [13, 14, 15, 14], [9, 10, 11, 10]])
    for plain, mirror in zip(views[::2], views[1::2], strict=True):
        np.testing.assert_array_equal(mirror, plain[:, ::-1])


def test_bfloat16_network_gives_float32_logits():
    class Half(nn.Module):
        @nn.compact
        def __call__(self, images, train: bool):
            return nn.Dense(CLASSES, dtype=jnp.bfloat16)(images.reshape(images.shape[0], -1))

    model = Half()
    variables = model.init(jax.random.key(0), jnp.zeros((1, 6, 6, 3)), train=False)
    logits = predict_logits(make_predictor(Network(model, SPEC)), variables, make_batches(make_images(3), 2))
    assert logits.dtype == np.float32


@pytest.mark.parametrize(
    ("augment", "warned"),
    [
        ((), True),
        ((RandomCrop(), AutoAugment(), Sometimes(Cutout())), True),
        ((HorizontalFlip(p=0.0),), True),
        ((RandomCrop(), HorizontalFlip()), False),
        ((Sometimes(OneOf((Cutout(), HorizontalFlip(mode="alternate")))),), False),
        ((Recorded("transform", "Mine", "mine.py"),), False),
    ],
)
def test_mirror_images_of_what_was_trained_without_flips_are_warned_of(augment, warned):
    for tta in ("mirror", "mirror-translate"):
        warning = mirror_warning(tta, augment)
        assert (warning is not None) == warned and (warning or f"tta {tta} shows mirror").startswith(f"tta {tta} shows")
    assert mirror_warning("none", augment) is None
