"""What is made of the training images: a test part, a validation part, fewer images, a long tail, wrong labels.

One seeded order of every class decides which images are kept: its first ones are the validation part, the next ones the
subset or the long tail of it. So a smaller subset lies inside a larger one of the same seed, and no training image is
ever a validation image. Class counts are taken as they come; a class without an image is nobody's fault.
"""

from dataclasses import fields, replace

import numpy as np
from jaxtyping import Int, Int32

from jax_cifar.config import DataConfig
from jax_cifar.data.dataset import Decoded, Splits, check_labels
from jax_cifar.errors import ConfigError, DataError, check, print_warning

# What a stream of random numbers is drawn for; each has one of its own.
KEPT, TEST, NOISE = range(3)
WHOLE = "all"  # the one part of a set that is not divided yet


def random_raw(count: int, seed: int, stream: int) -> np.ndarray:
    """`count` random uint64.

    They are the raw stream of a NumPy bit generator, which NumPy promises never to change (NEP 19), and so the same on
    every machine and version; that of `Generator.permutation` may change.
    """
    return np.random.Philox(key=np.array([seed, stream], np.uint64)).random_raw(count)


def seeded_ranks(labels: Int32[np.ndarray, "n"], seed: int, stream: int = KEPT) -> Int[np.ndarray, "n"]:
    """The place of every example among those of its class, from 0, in the order drawn by `seed`."""
    order = np.lexsort((random_raw(len(labels), seed, stream), labels))
    counts = np.bincount(labels)
    first_places = np.repeat(np.cumsum(counts) - counts, counts)
    ranks = np.empty(len(labels), np.int64)
    ranks[order] = np.arange(len(labels)) - first_places
    return ranks


def with_test_part(name: str, decoded: Decoded, origin: str, config: DataConfig) -> Splits:
    """The parts as they are, or of the only one a seeded share of every class for testing: `config.test_fraction`.

    Raises:
        ConfigError: a part would be empty, or `data.test_fraction` is given although there is a test part.
    """
    parts, names, fraction = decoded.parts, decoded.label_names, config.test_fraction
    if WHOLE not in parts:
        default = next(field.default for field in fields(config) if field.name == "test_fraction")
        expected = "the files have a test part of their own; leave it out"
        check(fraction == default, "data.test_fraction", fraction, expected)
        return Splits(name, parts["train"], parts["test"], parts.get("validation"), names, origin)
    whole = parts[WHOLE]
    check_labels(f"The labels of {name}", whole.labels, len(names))
    counts = np.bincount(whole.labels, minlength=len(names))
    if 1 in counts:
        single = names[int(np.flatnonzero(counts == 1)[0])]
        expected = f"of class {single!r} there is a single image, and both parts need one; add some, or drop the class"
        check(False, "data.test_fraction", fraction, expected)
    held_out = _held_out("test_fraction", fraction, counts)
    in_test = seeded_ranks(whole.labels, config.seed, TEST) < held_out[whole.labels]
    train, test = whole.take(np.flatnonzero(~in_test)), whole.take(np.flatnonzero(in_test))
    return Splits(name, train, test, None, names, origin)


def divide_whole(splits: Splits, config: DataConfig) -> Splits:
    """`divide_training` of a set as it was found or given, once there is something in it to tell apart.

    Warns of classes without a training image: labels that are counted from 1 leave the first one empty. Raises
    `DataError` where all training images are of one class, else as `divide_training`.
    """
    counts, names = np.bincount(splits.train.labels, minlength=splits.num_classes), splits.label_names
    missing = [repr(names[label]) for label in np.flatnonzero(counts == 0)]
    if len(names) - len(missing) < 2:
        raise DataError(
            f"{splits.name}, {splits.source}: all {len(splits.train):,} training images are of class"
            f" {names[int(counts.argmax())]!r}. Give images of two classes or more."
        )
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        print_warning(
            f"{splits.name}, {splits.source}: there is no training image of class {', '.join(missing[:3])}{more}, of"
            f" {len(names)} classes. Are the labels counted from 0?"
        )
    return divide_training(splits, config)


def divide_training(splits: Splits, config: DataConfig) -> Splits:
    """Hold out validation images, keep a subset, make a long tail of it, make labels wrong: what `config` asks for.

    All of it by `config.seed`, in this order. The validation and test labels stay as they are, and the true labels of
    the training part are kept. Images keep their order. With nothing asked for, `splits` comes back as it is.

    Raises:
        ConfigError: the field that asks for what cannot be had of these class counts.
    """
    train, validation, names = splits.train, splits.validation, splits.label_names
    if config.val_fraction > 0 or config.subset is not None or config.imbalance > 1:
        counts = np.bincount(train.labels, minlength=len(names))
        held_out = np.zeros_like(counts)
        if config.val_fraction > 0:
            expected = "the data set has a validation part of its own; leave it at 0"
            check(validation is None, "data.val_fraction", config.val_fraction, expected)
            held_out = _held_out("val_fraction", config.val_fraction, counts)
        kept = counts - held_out
        if config.subset is not None:
            kept = _spread_evenly(config.subset, kept)
        if config.imbalance > 1:
            kept = _long_tail(config.imbalance, kept, names)
        ranks = seeded_ranks(train.labels, config.seed)
        first, last = held_out[train.labels], (held_out + kept)[train.labels]
        if config.val_fraction > 0:
            validation = train.take(np.flatnonzero(ranks < first))
        train = train.take(np.flatnonzero((ranks >= first) & (ranks < last)))
    if config.label_noise > 0:
        train = train.with_wrong_labels(_noisy_labels(train.labels, len(names), config))
    return splits if train is splits.train else replace(splits, train=train, validation=validation)


def _held_out(field: str, fraction: float, counts: np.ndarray) -> np.ndarray:
    """How many of every class: the rounded share, but one at least, and all but one at most; none of a single image."""
    share = np.rint(fraction * counts).astype(np.int64)
    if share.max() == 0 or (counts - share).max() == 0:
        raise ConfigError(
            f"data.{field} = {fraction} is not allowed: of the {counts.min():,} to {counts.max():,} images of a class "
            f"it holds out {share.min():,}; both parts need one of every class."
        )
    return np.clip(share, 1, np.maximum(counts - 1, 0))


def _spread_evenly(subset: int, left: np.ndarray) -> np.ndarray:
    """`subset` images, as many of one class as of the next while they last; the first classes get what is over."""
    classes, total = np.count_nonzero(left), int(left.sum())
    check(subset >= int(classes), "data.subset", subset, f"{classes} classes need at least {classes} images")
    check(subset <= total, "data.subset", subset, f"{total:,} training images are left; use at most {total}")
    totals = np.minimum(left[:, None], np.arange(left.max() + 1)).sum(axis=0)
    level = np.searchsorted(totals, subset, side="right") - 1
    kept = np.minimum(left, level)
    more = np.flatnonzero(left > level)[: subset - kept.sum()]
    kept[more] += 1
    return kept


def _long_tail(ratio: float, counts: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """Class i of C keeps n_max * ratio^(-i / (C - 1)) images, rounded down, or all that it has.

    Source: Y. Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", 2019, as made by K. Cao et al.,
    "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss", 2019.
    """
    places = np.arange(len(counts)) / max(len(counts) - 1, 1)
    # The margin keeps a whole number whole, whatever the last bit of the power.
    wanted = np.floor(counts.max() * (1 / ratio) ** places + 1e-6).astype(np.int64)
    if wanted.min() == 0:
        last = names[int(np.flatnonzero(wanted == 0)[0])]
        most = f"the largest class has {counts.max():,} images; use at most {counts.max()}"
        check(False, "data.imbalance", ratio, f"it leaves no image of class {last!r}: {most}")
    return np.minimum(counts, wanted)


def _noisy_labels(labels: Int32[np.ndarray, "n"], classes: int, config: DataConfig) -> Int32[np.ndarray, "n"]:
    """The labels with round(`label_noise` * n) of the n of every class made wrong."""
    share, field = config.label_noise, "data.label_noise"
    check(classes > 1, field, share, "with a single class there is no wrong label")
    changed = np.rint(share * np.bincount(labels, minlength=classes)).astype(np.int64)
    check(bool(changed.any()), field, share, f"it changes none of the {len(labels):,} labels; use more")
    # The first half of the stream chooses the images, the second half their labels.
    draws = random_raw(2 * len(labels), config.seed, NOISE)[len(labels) :]
    step = np.ones(len(labels), np.int64)
    if config.noise_kind == "symmetric":
        step += (draws % np.uint64(classes - 1)).astype(np.int64)
    wrong = ((labels + step) % classes).astype(np.int32)
    return np.where(seeded_ranks(labels, config.seed, NOISE) < changed[labels], wrong, labels)
