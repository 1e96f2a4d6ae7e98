"""Several transforms in a row, one of them, and the mixing of a batch."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks.per_image.base import Reference, Rng, below, reference
from jax_cifar.augment import CutMix, MixUp, OneOf, Sometimes


def chain(transforms: tuple[Any, ...]) -> Callable[[Rng, np.ndarray], np.ndarray]:
    """`transforms` one after another, each by its reference: a function of (rng, image)."""
    references = tuple(map(reference, transforms))

    def change(rng: Rng, image: np.ndarray) -> np.ndarray:
        for draw, apply in references:
            image = apply(image, draw(rng, image.shape))
        return image

    return change


@reference.register
def _(transform: OneOf) -> Reference:
    references = tuple(map(reference, transform.transforms))
    weights = np.asarray(transform.weights or (1.0,) * len(references))
    bounds = np.cumsum(weights / weights.sum())[:-1]

    def draw(rng: Rng, shape: tuple[int, ...]) -> tuple[int, dict[int, Any]]:
        if rng.random() >= transform.p:
            return len(references), {}
        choice = int(bounds.searchsorted(rng.random(), side="right"))
        return choice, {choice: references[choice].draw(rng, shape)}

    def apply(image: np.ndarray, draws: tuple[int, Any]) -> np.ndarray:
        choice, each = draws
        return references[choice].apply(image, each[choice]) if choice < len(references) else image

    return Reference(draw, apply)


@reference.register
def _(transform: Sometimes) -> Reference:
    inner = reference(transform.inner)

    def draw(rng: Rng, shape: tuple[int, ...]) -> tuple[bool, Any]:
        applied = rng.random() < transform.p
        return applied, inner.draw(rng, shape) if applied else None

    return Reference(draw, lambda image, draws: inner.apply(image, draws[1]) if draws[0] else image)


class MixReference(NamedTuple):
    """The mixing of a batch of images, uint8 or floating, and soft targets, one image after another, in two steps."""

    draw: Callable[[Rng, tuple[int, ...]], Any]  # for a batch of this shape
    apply: Callable[[np.ndarray, np.ndarray, Any], tuple[np.ndarray, np.ndarray]]


def mix_reference(mix: MixUp | CutMix) -> MixReference:
    """torchvision's MixUp or CutMix; each image has the one before it as its partner."""

    def draw(rng: Rng, shape: tuple[int, ...]) -> tuple[float, tuple[int, int]]:
        return rng.beta(mix.alpha, mix.alpha), (below(rng, shape[1]), below(rng, shape[2]))

    if isinstance(mix, MixUp):
        return MixReference(lambda rng, shape: rng.beta(mix.alpha, mix.alpha), mixup)
    return MixReference(draw, cutmix)


def blended(values: np.ndarray, share: np.float32) -> np.ndarray:
    """Every row with the one before it, keeping `share` of its own; the first with the last."""
    mixed = [share * values[i] + (1 - share) * values[i - 1] for i in range(len(values))]
    if values.dtype == np.uint8:
        mixed = [(each + 0.5).astype(np.uint8) for each in mixed]
    return np.stack(mixed)


def mixup(images: np.ndarray, targets: np.ndarray, lam: float) -> tuple[np.ndarray, np.ndarray]:
    """MixUp with a given lambda, the share that an image keeps."""
    return blended(images, np.float32(lam)), blended(targets, np.float32(lam))


def cutmix(
    images: np.ndarray, targets: np.ndarray, draws: tuple[float, tuple[int, int]]
) -> tuple[np.ndarray, np.ndarray]:
    """CutMix with a given lambda and the centre (row, column) of the box."""
    (lam, centre), size = draws, images.shape[1:3]
    half = 0.5 * math.sqrt(1 - lam)
    middles = [(int(middle), int(half * side)) for middle, side in zip(centre, size, strict=True)]
    box = tuple(slice(max(middle - reach, 0), middle + reach) for middle, reach in middles)
    share = np.float32(1 - images[0, ..., 0][box].size / math.prod(size))
    mixed = []
    for i in range(len(images)):
        image = images[i].copy()
        image[box] = images[i - 1][box]
        mixed.append(image)
    return np.stack(mixed), blended(targets, share)
