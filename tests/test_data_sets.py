"""Datasets, their division, channel statistics, and the two sets that need no file."""

import dataclasses
import hashlib
import inspect
import os
import subprocess
import sys
import zlib
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jax_cifar.config import DataConfig
from jax_cifar.data import Dataset, Splits, channel_statistics, load_data
from jax_cifar.data import dataset as dataset_module
from jax_cifar.data.digits import _bilinear_weights
from jax_cifar.data.splits import divide_training, seeded_ranks
from jax_cifar.errors import ConfigError, DataError


def numbered(counts: list[int]) -> Splits:
    """Images of 2x2x1 pixels whose first two pixels hold the index of the image; classes are shuffled."""
    labels = np.repeat(np.arange(len(counts)), counts)
    labels = np.random.default_rng(5).permutation(labels).astype(np.int32)
    images = np.zeros((len(labels), 2, 2, 1), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 1, 0] = np.divmod(np.arange(len(labels)), 256)
    test = Dataset(images[:3], labels[:3])
    return Splits("numbered", Dataset(images, labels), test, None, tuple("abcdefghij"[: len(counts)]), "made here")


def indices(dataset: Dataset | None) -> list[int]:
    assert dataset is not None
    return (dataset.images[:, 0, 0, 0].astype(int) * 256 + dataset.images[:, 0, 1, 0]).tolist()


@given(
    counts=st.lists(st.integers(4, 40), min_size=2, max_size=6),
    fraction=st.sampled_from([0.0, 0.25, 0.5]),
    take=st.integers(1, 4) | st.none(),
    seed=st.integers(0, 2**40),
)
@settings(max_examples=50, deadline=None, derandomize=True)
def test_division_is_stratified_disjoint_and_repeatable(
    counts: list[int], fraction: float, take: int | None, seed: int
) -> None:
    splits = numbered(counts)
    classes = len(counts)
    held_out = np.rint(fraction * np.array(counts)).astype(int)
    available = int((counts - held_out).min())
    take = None if take is None else min(take, available)
    # One more than a multiple of the number of classes asks for one more of the first, where so many are left.
    subset = None if take is None else min(take * classes + 1, available * classes)
    divided = divide_training(splits, DataConfig(val_fraction=fraction, subset=subset, seed=seed))
    again = divide_training(splits, DataConfig(val_fraction=fraction, subset=subset, seed=seed))
    train = indices(divided.train)
    assert train == sorted(set(train)) == indices(again.train)
    one_more = subset is not None and subset % classes == 1
    expected = counts - held_out if take is None else [take + one_more, *[take] * (classes - 1)]
    np.testing.assert_array_equal(np.bincount(divided.train.labels, minlength=classes), expected)
    np.testing.assert_array_equal(divided.train.labels, splits.train.labels[train])
    assert divided.test is splits.test
    if fraction == 0:
        assert divided.validation is None
        return
    validation = indices(divided.validation)
    assert validation == indices(again.validation)
    assert not set(train) & set(validation)
    np.testing.assert_array_equal(np.bincount(splits.train.labels[validation], minlength=classes), held_out)
    # The validation part is the same whatever the subset.
    assert validation == indices(divide_training(splits, DataConfig(val_fraction=fraction, seed=seed)).validation)


def test_subsets_of_one_seed_lie_inside_each_other() -> None:
    splits = numbered([30, 30])
    small, large, other = (
        set(indices(divide_training(splits, DataConfig(val_fraction=0.1, subset=subset, seed=seed)).train))
        for subset, seed in ((10, 3), (20, 3), (10, 4))
    )
    assert small < large
    assert small != other
    assert small != set(indices(splits.train)[:10])


def test_division_of_nothing_is_the_identity() -> None:
    splits = numbered([5, 5])
    assert divide_training(splits, DataConfig(seed=7)) is splits


def test_seeded_ranks_never_change() -> None:
    """The figures of one run: a split drawn today has to be drawn again in years."""
    ranks = seeded_ranks(np.array([0, 1, 0, 1, 0, 1, 0, 1], np.int32), 0)
    assert sorted(ranks[::2]) == sorted(ranks[1::2]) == [0, 1, 2, 3]
    assert ranks.tolist() == RANKS_OF_SEED_0
    assert seeded_ranks(np.arange(5, dtype=np.int32), 1).tolist() == [0] * 5


RANKS_OF_SEED_0 = [0, 0, 1, 2, 2, 1, 3, 3]


@pytest.mark.parametrize(
    ("fraction", "subset", "message"),
    [
        (0.0, 1, r"data\.subset = 1 is not allowed: 2 classes need at least 2"),
        (0.0, 23, r"data\.subset = 23 is not allowed: 22 training images .* use at most 22\."),
        (0.5, 12, r"data\.subset = 12 is not allowed: 11 training images .* use at most 11\."),
        (0.01, None, r"data\.val_fraction = 0\.01 is not allowed: of the 10 to 12 .* holds out 0;"),
        (0.99, None, r"data\.val_fraction = 0\.99 is not allowed"),
    ],
)
def test_impossible_divisions(fraction: float, subset: int | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        divide_training(numbered([10, 12]), DataConfig(val_fraction=fraction, subset=subset))


def images_and_labels(count: int, shape: tuple[int, ...] = (4, 4, 3)) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((count, *shape), np.uint8), np.zeros(count, np.int32)


def unchecked_dataset(*arguments: Any) -> Dataset:
    """Past the type checker of the tests, as in a user's run."""
    dataset = object.__new__(Dataset)
    for field, value in zip(dataclasses.fields(Dataset), (*arguments, None, None), strict=False):
        object.__setattr__(dataset, field.name, value)
    inspect.unwrap(Dataset.__post_init__)(dataset)
    return dataset


def test_dataset_refuses_what_it_is_not() -> None:
    images, labels = images_and_labels(3)
    for wrong in (images.astype(np.float32), images[0], images.tolist(), None):
        with pytest.raises(DataError, match=r"^Images are .*uint8 \[n, height"):
            unchecked_dataset(wrong, labels)
    for wrong in (labels[:2], labels.astype(np.int64), labels[:, None], [0, 0, 0]):
        with pytest.raises(DataError, match=r"^Labels are .*int32 \[3\]"):
            unchecked_dataset(images, wrong)
        with pytest.raises(DataError, match=r"^True labels are .*int32 \[3\]"):
            unchecked_dataset(images, labels, wrong)


def test_splits_refuse_what_does_not_belong_together() -> None:
    good = Dataset(*images_and_labels(3))
    empty, wide = Dataset(*images_and_labels(0)), Dataset(*images_and_labels(3, (4, 8, 3)))
    high, low = (Dataset(good.images, np.array([0, 1, value], np.int32)) for value in (2, -1))
    for part, message in (
        (empty, "holds no image"),
        (wide, "have shape"),
        (high, "from 0 to 2"),
        (low, "from -1 to 1"),
    ):
        with pytest.raises(DataError, match=f"test (part|images|labels) .*{message}"):
            Splits("set", good, part, None, ("a", "b"), "")
        with pytest.raises(DataError, match=f"validation (part|images|labels) .*{message}"):
            Splits("set", good, good, part, ("a", "b"), "")
    with pytest.raises(DataError, match="hold 'a' twice; every class needs a name of its own"):
        Splits("set", good, good, None, ("a", "b", "a"))
    splits = Splits("set", good, good, None, ("a", "b"))
    assert (splits.num_classes, splits.source) == (2, "arrays made in Python")


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 600), *(st.integers(1, 4),) * 3)))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_checksums_are_those_that_older_checkpoints_hold(images: np.ndarray) -> None:
    labels = np.arange(len(images), dtype=np.int32)
    expected = zlib.crc32(labels.tobytes(), zlib.crc32(images.tobytes()))
    assert Dataset(images, labels).checksum == expected
    assert Dataset(images[::-1], labels[::-1]).checksum == zlib.crc32(
        labels[::-1].tobytes(), zlib.crc32(images[::-1].tobytes())
    )


def test_checksums_notice_one_pixel_and_one_label() -> None:
    images, labels = images_and_labels(300)
    checksum = Dataset(images, labels).checksum
    pixel, label = images.copy(), labels.copy()
    pixel[299, 3, 3, 2], label[0] = 1, 1
    assert len({checksum, Dataset(pixel, labels).checksum, Dataset(images, label).checksum}) == 3


def test_images_are_read_over_once_and_not_at_all_where_the_sums_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    passes, original = [], dataset_module.sum_images
    monkeypatch.setattr(dataset_module, "sum_images", lambda images: passes.append(len(images)) or original(images))
    images, labels = images_and_labels(5)
    first = Dataset(images, labels)
    assert first.checksum and first.channel_statistics and passes == [5]
    known = Dataset(images, labels, known_sums=first.sums)
    noisy = known.with_wrong_labels(labels + np.int32(1))
    assert known.checksum == first.checksum != noisy.checksum
    assert known.channel_statistics[0].tolist() == noisy.channel_statistics[0].tolist()
    assert passes == [5]
    # Other images have other sums.
    assert first.take(np.arange(3)).checksum and passes == [5, 3]


@given(hnp.arrays(np.uint8, st.tuples(*(st.integers(1, 5),) * 3, st.integers(1, 4))))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_statistics_equal_numpy(images: np.ndarray) -> None:
    mean, std = channel_statistics(images)
    np.testing.assert_allclose(mean, (images / 255).mean(axis=(0, 1, 2)), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(std, (images / 255).std(axis=(0, 1, 2)), rtol=1e-7, atol=1e-8)
    assert mean.dtype == std.dtype == np.float64


def test_statistics_are_exact_over_many_blocks() -> None:
    """Bright images, more than a block of them: sums that float32 and 32-bit integers cannot hold."""
    images = np.full((2500, 32, 32, 2), 255, np.uint8)
    images[::2, ..., 1] = 254
    mean, std = channel_statistics(images)
    assert mean.tolist() == [1.0, 254.5 / 255]
    assert std.tolist() == [0.0, 0.5 / 255]


def test_statistics_refuse_images_already_scaled() -> None:
    with pytest.raises(DataError, match="expected uint8"):
        # Past the type checker of the tests, as in a user's run.
        inspect.unwrap(channel_statistics)(np.zeros((2, 4, 4, 3), np.float32))
    with pytest.raises(DataError, match="expected uint8"):
        channel_statistics(np.zeros((0, 4, 4, 3), np.uint8))


def test_digits() -> None:
    splits = load_data(DataConfig(name="digits"))
    assert splits.label_names == tuple("0123456789")
    assert (len(splits.train), len(splits.test)) == (1438, 359)
    assert splits.train.images.shape[1:] == (32, 32, 3)
    both = np.concatenate([splits.train.labels, splits.test.labels])
    share = np.bincount(splits.test.labels) / np.bincount(both)
    np.testing.assert_allclose(share, 0.2, atol=0.005)
    assert (splits.train.images == splits.train.images[..., :1]).all()
    assert splits.train.images.max() == 255
    distinct = {image.tobytes() for image in np.concatenate([splits.train.images, splits.test.images])}
    assert len(distinct) == 1797, "an image is in both parts, or twice in one"
    # Shrinking by averages gives the digits back, up to bilinear smoothing: nearest class means tell them apart.
    small = [part.images[..., 0].reshape(-1, 8, 4, 8, 4).mean(axis=(2, 4)) for part in (splits.train, splits.test)]
    means = np.stack([small[0][splits.train.labels == label].mean(axis=0) for label in range(10)])
    guesses = ((small[1][:, None] - means) ** 2).sum(axis=(2, 3)).argmin(axis=1)
    assert (guesses == splits.test.labels).mean() > 0.85


def test_digits_do_not_depend_on_the_seed_of_the_split() -> None:
    first, second = (load_data(DataConfig(name="digits", val_fraction=0.1, seed=seed)) for seed in (0, 1))
    np.testing.assert_array_equal(first.test.images, second.test.images)
    assert first.validation is not None
    assert second.validation is not None
    assert (first.validation.images[:50] != second.validation.images[:50]).any()


def test_bilinear_weights() -> None:
    weights = _bilinear_weights(3, 4)
    assert (weights.sum(axis=1) == 8).all()
    # A ramp stays a ramp between the outer pixel centres, and flat beyond them; the mirror image has mirrored weights.
    ramp = weights @ np.array([0, 8, 16])
    assert ramp.tolist() == [0, 0, 8, 24, 40, 56, 72, 88, 104, 120, 128, 128]
    np.testing.assert_array_equal(weights[::-1, ::-1], weights)


def test_synthetic() -> None:
    splits = load_data(DataConfig(name="synthetic"))
    assert (splits.num_classes, len(splits.train), len(splits.test)) == (10, 2000, 500)
    for part, count in ((splits.train, 200), (splits.test, 50)):
        assert (np.bincount(part.labels) == count).all()
    assert len({image.tobytes() for image in np.concatenate([splits.train.images, splits.test.images])}) == 2500
    digest = hashlib.sha256(splits.train.images.tobytes() + splits.test.images.tobytes()).hexdigest()
    assert digest == SYNTHETIC_DIGEST, "the pixels are part of the promise: the same in every version"


SYNTHETIC_DIGEST = "d7ad1de7e2a5d8676257f2379d397e1aef00e038812848dee9b2d30e9fa672e7"


@pytest.mark.parametrize("mirror", [False, True])
def test_synthetic_classes_can_be_told_apart_also_mirrored(mirror: bool) -> None:
    """By the nearest neighbour in the spectrum's magnitude and the hue: both stay when a figure is shifted."""
    splits = load_data(DataConfig(name="synthetic"))

    def describe(images: np.ndarray) -> np.ndarray:
        spectrum = np.abs(np.fft.rfft2(images.mean(axis=3))).reshape(len(images), -1)[:, 1:]
        spectrum /= np.linalg.norm(spectrum, axis=1, keepdims=True)
        hue = images.mean(axis=(1, 2)) / 128
        return np.concatenate([spectrum, hue[:, :1] - hue[:, 2:]], axis=1)

    known, asked = describe(splits.train.images[:1000]), splits.test.images[:200]
    asked = describe(asked[:, :, ::-1] if mirror else asked)
    distances = (asked**2).sum(axis=1)[:, None] + (known**2).sum(axis=1) - 2 * asked @ known.T
    assert (splits.train.labels[distances.argmin(axis=1)] == splits.test.labels[:200]).mean() > 0.9


PUBLISHED_STATISTICS = {
    "cifar10": ((0.49140, 0.48216, 0.44653), (0.24703, 0.24349, 0.26159)),
    "cifar100": ((0.50708, 0.48655, 0.44092), (0.26733, 0.25644, 0.27615)),
}


@pytest.mark.skipif("JAX_CIFAR_DATA" not in os.environ, reason="needs the real CIFAR in $JAX_CIFAR_DATA")
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_real_cifar(name: Literal["cifar10", "cifar100"]) -> None:
    splits = load_data(DataConfig(name=name, val_fraction=0.1, subset=1000))
    classes = splits.num_classes
    assert classes == (10 if name == "cifar10" else 100)
    assert splits.validation is not None
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (1000, 5000, 10_000)
    assert splits.label_names[0] == ("airplane" if name == "cifar10" else "apple")
    mean, std = channel_statistics(load_data(DataConfig(name=name)).train.images)
    np.testing.assert_allclose(mean, PUBLISHED_STATISTICS[name][0], rtol=0, atol=5e-5)
    np.testing.assert_allclose(std, PUBLISHED_STATISTICS[name][1], rtol=0, atol=5e-5)


def test_importing_the_data_room_needs_neither_jax_nor_sklearn() -> None:
    code = (
        "import sys, jax_cifar.data; print([m for m in ('jax', 'sklearn', 'tensorflow_datasets') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
