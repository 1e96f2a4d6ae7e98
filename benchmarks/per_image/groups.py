"""Several transforms in a row, one of them, and the mixing of a batch."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.per_image.base import Change, Rng, below, reference, with_probability
from jax_cifar.augment import CutMix, MixUp, OneOf, Sometimes

MixBatch = Callable[[Rng, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]  # of uint8 images and soft targets


def chain(transforms: tuple[Any, ...]) -> Change:
    """`transforms` one after another, each by its reference."""
    changes = tuple(map(reference, transforms))

    def change(rng: Rng, image: np.ndarray) -> np.ndarray:
        for each in changes:
            image = each(rng, image)
        return image

    return change


@reference.register
def _(transform: OneOf) -> Change:
    changes = tuple(map(reference, transform.transforms))
    weights = np.asarray(transform.weights or (1.0,) * len(changes))
    bounds = np.cumsum(weights / weights.sum())[:-1]

    def one(rng: Rng, image: np.ndarray) -> np.ndarray:
        return changes[int(bounds.searchsorted(rng.random(), side="right"))](rng, image)

    return with_probability(transform.p, one)


@reference.register
def _(transform: Sometimes) -> Change:
    return with_probability(transform.p, reference(transform.transform))


def mix_reference(mix: MixUp | CutMix) -> MixBatch:
    """MixUp or CutMix of a batch, one image after another; each has the one before it as its partner."""

    def blended(own: np.ndarray, partner: np.ndarray, share: np.float32) -> np.ndarray:
        return share * own + (1 - share) * partner

    def mixup(rng: Rng, images: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        share = np.float32(rng.beta(mix.alpha, mix.alpha))
        mixed = [(blended(images[i], images[i - 1], share) + 0.5).astype(np.uint8) for i in range(len(images))]
        return np.stack(mixed), np.stack([blended(targets[i], targets[i - 1], share) for i in range(len(images))])

    def cutmix(rng: Rng, images: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        size, half = images.shape[1:3], 0.5 * math.sqrt(1 - rng.beta(mix.alpha, mix.alpha))
        middles = [(below(rng, side), int(half * side)) for side in size]
        box = tuple(slice(max(middle - reach, 0), middle + reach) for middle, reach in middles)
        share = np.float32(1 - images[0, ..., 0][box].size / math.prod(size))
        mixed = []
        for i in range(len(images)):
            image = images[i].copy()
            image[box] = images[i - 1][box]
            mixed.append(image)
        return np.stack(mixed), np.stack([blended(targets[i], targets[i - 1], share) for i in range(len(images))])

    return mixup if isinstance(mix, MixUp) else cutmix
