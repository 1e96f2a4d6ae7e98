"""Long tails, wrong labels and the validation part of any class counts: seeded, exact, in the promised order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_cifar.config import DataConfig
from jax_cifar.data import Dataset, Splits, divide_training
from jax_cifar.errors import ConfigError

COUNTS = st.lists(st.integers(0, 40), min_size=2, max_size=6).filter(lambda counts: max(counts) > 3)


def numbered(counts: list[int], validation: Dataset | None = None) -> Splits:
    """Images of 1x2x1 pixels that hold the index of the image; classes are shuffled."""
    labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    labels = labels[np.argsort(np.arange(len(labels)) * 7919 % 100_003)]
    images = np.stack(np.divmod(np.arange(len(labels)), 256), axis=1).astype(np.uint8)[:, None, :, None]
    test = Dataset(images[:3], labels[:3])
    names = tuple(map(str, range(len(counts))))
    return Splits("numbered", Dataset(images, labels), test, validation, names)


def indices(dataset: Dataset | None) -> list[int]:
    assert dataset is not None
    return (dataset.images[:, 0, 0, 0].astype(int) * 256 + dataset.images[:, 0, 1, 0]).tolist()


@pytest.mark.parametrize(
    ("counts", "ratio", "total"), [([5000] * 10, 100, 12_406), ([5000] * 10, 10, 20_431), ([500] * 100, 100, 10_847)]
)
def test_long_tails_of_cifar_have_the_published_sizes(counts: list[int], ratio: float, total: int) -> None:
    """The numbers of training images of CIFAR-10-LT and CIFAR-100-LT (Cao et al. 2019 and those who followed)."""
    kept = np.bincount(divide_training(numbered(counts), DataConfig(imbalance=ratio)).train.labels)
    assert (kept.sum(), kept[0], kept[-1]) == (total, counts[0], counts[0] // ratio)
    assert (np.diff(kept) <= 0).all()


@given(counts=COUNTS, ratio=st.sampled_from([1.5, 3.0]), seed=st.integers(0, 2**64 - 1))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_long_tails_of_any_counts_are_seeded_and_lie_inside_each_other(
    counts: list[int], ratio: float, seed: int
) -> None:
    splits = numbered(counts)
    mild, steep, again = (
        divide_training(splits, DataConfig(imbalance=value, seed=seed)).train for value in (ratio, ratio + 0.5, ratio)
    )
    assert indices(mild) == indices(again) == sorted(set(indices(mild)))
    assert set(indices(steep)) <= set(indices(mild))
    wanted = [int(max(counts) * ratio ** (-place / (len(counts) - 1)) + 1e-6) for place in range(len(counts))]
    np.testing.assert_array_equal(np.bincount(mild.labels, minlength=len(counts)), np.minimum(wanted, counts))


@given(counts=COUNTS, share=st.floats(0.1, 0.9), kind=st.sampled_from(["symmetric", "pair"]), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_exactly_the_asked_share_of_every_class_is_wrong(counts: list[int], share: float, kind: str, seed: int) -> None:
    splits, classes = numbered(counts), len(counts)
    config = DataConfig(label_noise=share, noise_kind=kind, seed=seed)  # type: ignore[arg-type]
    noisy, again = (divide_training(splits, config).train for _ in range(2))
    clean = splits.train.labels
    np.testing.assert_array_equal(noisy.labels, again.labels)
    np.testing.assert_array_equal(noisy.true_labels, clean)
    assert noisy.labels.dtype == np.int32 and noisy.images is splits.train.images
    wrong = noisy.labels != clean
    np.testing.assert_array_equal(np.bincount(clean[wrong], minlength=classes), np.rint(share * np.array(counts)))
    assert noisy.labels.min() >= 0 and noisy.labels.max() < classes
    if kind == "pair":
        np.testing.assert_array_equal(noisy.labels[wrong], (clean[wrong] + 1) % classes)


def test_symmetric_noise_meets_every_other_class_alike() -> None:
    noisy = divide_training(numbered([4000] * 5), DataConfig(label_noise=0.8)).train
    assert noisy.true_labels is not None
    for label in range(5):
        found = np.bincount(noisy.labels[noisy.true_labels == label], minlength=5)
        assert found[label] == 800
        # Four standard deviations of 3200 draws from four classes.
        assert np.abs(np.delete(found, label) - 800).max() < 4 * (3200 * 0.25 * 0.75) ** 0.5


def test_what_is_drawn_never_changes() -> None:
    """The figures of one run: noise and a long tail drawn today have to be drawn again in years."""
    config = DataConfig(val_fraction=0.2, subset=12, imbalance=3.0, label_noise=0.3, seed=7)
    splits = divide_training(numbered([5, 5, 5]), config)
    drawn = indices(splits.validation), indices(splits.train), splits.train.labels.tolist()
    assert drawn == DRAWN_OF_SEED_7


DRAWN_OF_SEED_7 = ([1, 4, 8], [0, 2, 3, 5, 6, 7, 11], [0, 0, 2, 0, 1, 1, 0])


def test_the_streams_of_kept_images_tests_and_noise_differ() -> None:
    """Else the images that are held out, or their neighbours in the file, would be those that get wrong labels."""
    splits = numbered([400, 400])
    held = set(indices(divide_training(splits, DataConfig(val_fraction=0.5)).validation))
    noisy = divide_training(splits, DataConfig(label_noise=0.5)).train
    wrong = set(np.flatnonzero(noisy.labels != noisy.true_labels).tolist())
    # 400 of 800 twice: 200 in common, give or take 14 for one standard deviation.
    assert abs(len(held & wrong) - 200) < 60


def test_everything_at_once_comes_in_the_order_of_the_fields() -> None:
    config = DataConfig(val_fraction=0.2, subset=300, imbalance=10.0, label_noise=0.5, noise_kind="pair", seed=3)
    splits = numbered([100, 200, 300, 50])
    divided = divide_training(splits, config)
    assert np.bincount(divided.validation.labels).tolist() == [20, 40, 60, 10]  # type: ignore[union-attr]
    # 300 of the 80, 160, 240 and 40 left, evenly: 80, 90, 90, 40; of them at most 90, 41, 19, 9.
    assert divided.train.true_labels is not None
    kept = np.bincount(divided.train.true_labels)
    assert kept.tolist() == [80, 41, 19, 9]
    wrong = divided.train.labels != divided.train.true_labels
    assert np.bincount(divided.train.true_labels[wrong]).tolist() == np.rint(kept / 2).astype(int).tolist()
    # Each step alone chooses the same images; validation and test keep their labels.
    alone = divide_training(splits, DataConfig(val_fraction=0.2, seed=3))
    assert indices(alone.validation) == indices(divided.validation)
    assert set(indices(divided.train)) < set(indices(alone.train))
    np.testing.assert_array_equal(divided.validation.labels, alone.validation.labels)  # type: ignore[union-attr]
    assert divided.test is splits.test


@given(counts=COUNTS, fraction=st.sampled_from([0.1, 0.3, 0.5]), seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_validation_parts_of_any_counts_are_disjoint_and_leave_no_class_out(
    counts: list[int], fraction: float, seed: int
) -> None:
    splits, several = numbered(counts), np.array(counts) > 1
    if np.rint(fraction * max(counts)) == 0:
        return
    divided = divide_training(splits, DataConfig(val_fraction=fraction, seed=seed))
    assert sorted(indices(divided.train) + indices(divided.validation)) == indices(splits.train)
    assert divided.validation is not None
    for part in (divided.train, divided.validation):
        assert (np.bincount(part.labels, minlength=len(counts))[several] > 0).all()
    held = np.bincount(divided.validation.labels, minlength=len(counts))
    assert (np.abs(held - fraction * np.array(counts)) <= 1).all()


@given(counts=COUNTS, data=st.data())
@settings(max_examples=50, deadline=None, derandomize=True)
def test_subsets_of_any_counts_are_as_even_as_they_can_be(counts: list[int], data: st.DataObject) -> None:
    classes = sum(count > 0 for count in counts)
    subset = data.draw(st.integers(classes, sum(counts)))
    kept = np.bincount(divide_training(numbered(counts), DataConfig(subset=subset)).train.labels, minlength=len(counts))
    assert kept.sum() == subset
    cut = kept < np.array(counts)
    # A class that gave all it has is no larger than one that did not, and those differ by one at most.
    assert not cut.any() or kept.max() - kept[cut].min() <= 1


def test_splits_that_are_given_keep_their_validation_part_and_true_labels() -> None:
    given_part = Dataset(np.zeros((2, 1, 2, 1), np.uint8), np.zeros(2, np.int32))
    splits = numbered([8, 8], given_part)
    assert divide_training(splits, DataConfig(subset=4, label_noise=0.5)).validation is given_part
    with pytest.raises(ConfigError, match=r"data\.val_fraction = 0\.5 .* a validation part of its own; leave it at 0"):
        divide_training(splits, DataConfig(val_fraction=0.5))
    true_labels = 1 - splits.train.labels
    train = Dataset(splits.train.images, splits.train.labels, true_labels)
    noisy = divide_training(
        Splits("set", train, splits.test, None, ("a", "b")), DataConfig(subset=4, label_noise=0.5)
    ).train
    np.testing.assert_array_equal(noisy.true_labels, true_labels[indices(noisy)])


@pytest.mark.parametrize(
    ("counts", "config", "message"),
    [
        ([5, 5], DataConfig(imbalance=6.0), r"data\.imbalance = 6\.0 .* no image of class '1'.* use at most 5"),
        ([5, 5], DataConfig(label_noise=0.05), r"data\.label_noise = 0\.05 .* changes none of the 10 labels"),
        ([5], DataConfig(label_noise=0.5), r"data\.label_noise = 0\.5 .* with a single class there is no wrong label"),
        ([5, 0, 5], DataConfig(subset=1), r"data\.subset = 1 .* 2 classes need at least 2 images"),
        ([5, 3], DataConfig(subset=9), r"data\.subset = 9 .* 8 training images are left; use at most 8"),
        ([2, 2], DataConfig(val_fraction=0.1), r"data\.val_fraction = 0\.1 .* it holds out 0"),
    ],
)
def test_what_cannot_be_had_is_told_with_the_fields_name(counts: list[int], config: DataConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        divide_training(numbered(counts), config)
    assert "\n" not in str(caught.value)
