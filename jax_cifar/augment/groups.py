"""Transforms made of transforms: one of several, or one only sometimes."""

import itertools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from jax_cifar.augment.base import Images, SampleInfo, Transform, check_number, check_transform, is_number
from jax_cifar.augment.portions import Draws, change_chosen
from jax_cifar.errors import check


@dataclass(frozen=True)
class OneOf(Transform):
    """With probability `p`, exactly one of `transforms` for each image (Albumentations' `OneOf`).

    The choice falls by `weights`, which need not add up to 1; without them every transform is as likely. The chosen one
    then acts with its own `p` if it has one: give it p=1 for it to act always. The i-th transform gets
    `fold_in(key, i)`. On a CPU each works on its own images alone; on an accelerator all of them run on the whole
    batch.

    Raises:
        ConfigError: a parameter is out of range, or one of `transforms` is not a transform.
    """

    transforms: tuple[Transform, ...]  # instances, at least one; groups may be nested
    weights: tuple[float, ...] | None = None  # relative frequency of each
    p: float = 0.5  # probability that an image is transformed at all

    def __post_init__(self) -> None:
        good = isinstance(self.transforms, tuple | list) and len(self.transforms) > 0
        check(good, "OneOf.transforms", self.transforms, "it must be a tuple of at least one transform")
        object.__setattr__(self, "transforms", tuple(self.transforms))
        for i, transform in enumerate(self.transforms):
            check_transform(f"OneOf.transforms[{i}]", transform)
        if self.weights is not None:
            good = isinstance(self.weights, tuple) and all(is_number(w) and w >= 0 for w in self.weights)
            check(good, "OneOf.weights", self.weights, "it must be a tuple of numbers, none of them negative")
            count = len(self.transforms)
            check(len(self.weights) == count, "OneOf.weights", self.weights, f"there are {count} transforms")
            check(sum(self.weights) > 0, "OneOf.weights", self.weights, "one at least must be greater than 0")
        check_number(self, "p", 0.0, 1.0)

    def __call__(self, key: PRNGKeyArray, images: Images, info: SampleInfo | None = None) -> Images:
        return self.finish(images, self.prepare(key, images, info))

    def prepare(self, key: PRNGKeyArray, images: Images, info: SampleInfo | None) -> Draws:
        return self.choose(key, images.shape[0]), self.prepare_all(key, images, info)

    def finish(self, images: Images, prepared: Draws) -> Images:
        choice, draws = prepared
        return change_chosen(images, choice, [transform.finish for transform in self.transforms], draws)

    def choose(self, key: PRNGKeyArray, batch: int) -> Int[Array, " batch"]:
        """The number of every image's transform; of an image that stays as it is, a number that none has."""
        count = len(self.transforms)
        weights = self.weights or (1.0,) * count
        bounds = np.asarray(list(itertools.accumulate(weights))[:-1], np.float32) / np.float32(sum(weights))
        draw = jax.random.uniform(jax.random.fold_in(key, count), (batch,), jnp.float32)
        choice = jnp.sum(draw[:, None] >= bounds[None, :], axis=1, dtype=jnp.int32)
        applied = jax.random.uniform(jax.random.fold_in(key, count + 1), (batch,), jnp.float32) < self.p
        return jnp.where(applied, choice, count)

    def prepare_all(self, key: PRNGKeyArray, images: Images, info: SampleInfo | None) -> list[Draws]:
        """What every transform prepares for every image."""
        keys = [jax.random.fold_in(key, i) for i in range(len(self.transforms))]
        return [transform.prepare(own, images, info) for own, transform in zip(keys, self.transforms, strict=True)]

    def apply(
        self, key: PRNGKeyArray, images: Images, choice: Int[Array, " batch"], info: SampleInfo | None = None
    ) -> Images:
        """Transform each image by the transform numbered `choice`; a number that none has leaves the image alone."""
        return self.finish(images, (choice, self.prepare_all(key, images, info)))


@dataclass(frozen=True)
class Sometimes(Transform):
    """Apply `transform` to each image with probability `p` (torchvision's `RandomApply` with one transform).

    The transform's own `p`, if it has one, still counts: the probabilities multiply.

    Raises:
        ConfigError: `transform` is not a transform, or `p` is out of range.
    """

    transform: Transform  # an instance; groups may be nested
    p: float = 0.5  # probability that an image is handed to it

    def __post_init__(self) -> None:
        check_transform("Sometimes.transform", self.transform)
        check_number(self, "p", 0.0, 1.0)

    def __call__(self, key: PRNGKeyArray, images: Images, info: SampleInfo | None = None) -> Images:
        return self.finish(images, self.prepare(key, images, info))

    def prepare(self, key: PRNGKeyArray, images: Images, info: SampleInfo | None) -> Draws:
        applied = jax.random.uniform(jax.random.fold_in(key, 1), images.shape[:1], jnp.float32) < self.p
        return applied, self.transform.prepare(jax.random.fold_in(key, 0), images, info)

    def finish(self, images: Images, prepared: Draws) -> Images:
        applied, draws = prepared
        return change_chosen(images, 1 - applied.astype(jnp.int32), [self.transform.finish], [draws])

    def apply(
        self, key: PRNGKeyArray, images: Images, applied: Bool[Array, " batch"], info: SampleInfo | None = None
    ) -> Images:
        """Transform the `applied` images with the draws of `key`."""
        return self.finish(images, (applied, self.transform.prepare(key, images, info)))
