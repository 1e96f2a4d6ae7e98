"""Stratified, seeded parts of the training images: validation and subset.

One seeded order of every class decides both: its first images are the validation part, the next ones the subset. So a
smaller subset lies inside a larger one of the same seed, and no training image is ever a validation image.
"""

import numpy as np
from jaxtyping import Int, Int32

from jax_cifar.data.dataset import Splits
from jax_cifar.errors import ConfigError


def seeded_ranks(labels: Int32[np.ndarray, "n"], seed: int) -> Int[np.ndarray, "n"]:
    """The place of every example among those of its class, from 0, in the order drawn by `seed`.

    The order rests on the raw stream of a NumPy bit generator, which NumPy promises never to change (NEP 19), and so
    is the same on every machine and version; that of `Generator.permutation` may change.
    """
    priorities = np.random.Philox(key=seed).random_raw(len(labels))
    order = np.lexsort((priorities, labels))
    counts = np.bincount(labels)
    first_places = np.repeat(np.cumsum(counts) - counts, counts)
    ranks = np.empty(len(labels), np.int64)
    ranks[order] = np.arange(len(labels)) - first_places
    return ranks


def divide_training(splits: Splits, val_fraction: float, subset: int | None, seed: int) -> Splits:
    """Hold `val_fraction` of every class out for validation, then keep `subset` of the rest, evenly by class.

    Images keep their order. With neither asked for, `splits` comes back as it is.

    Raises:
        ConfigError: a part would be empty, or `subset` asks for more images of a class than are left.
    """
    if val_fraction == 0 and subset is None:
        return splits
    labels, classes = splits.train.labels, splits.num_classes
    counts = np.bincount(labels, minlength=classes)
    held_out = np.rint(val_fraction * counts).astype(np.int64)
    left = counts - held_out
    if val_fraction > 0 and (held_out.min() == 0 or left.min() == 0):
        raise ConfigError(
            f"data.val_fraction = {val_fraction} is not allowed: of the {counts.min():,} to {counts.max():,} training "
            f"images of a class it holds out {held_out.min():,}; both parts need one of every class."
        )
    kept = left if subset is None else _per_class(subset, left)
    ranks = seeded_ranks(labels, seed)
    chosen = np.flatnonzero((ranks >= held_out[labels]) & (ranks < (held_out + kept)[labels]))
    validation = splits.train.take(np.flatnonzero(ranks < held_out[labels])) if val_fraction > 0 else None
    return Splits(splits.name, splits.train.take(chosen), splits.test, validation, splits.label_names, splits.source)


def _per_class(subset: int, left: np.ndarray) -> np.ndarray:
    """`subset` images spread evenly: where the classes do not divide it, the first ones get one more."""
    classes, available = len(left), int(left.min())
    if subset < classes:
        raise ConfigError(f"data.subset = {subset} is not allowed: {classes} classes need at least {classes} images.")
    if subset > classes * available:
        raise ConfigError(
            f"data.subset = {subset} is not allowed: {available:,} training images of every class are left; "
            f"use at most {classes * available}."
        )
    return subset // classes + (np.arange(classes) < subset % classes)
