"""Transforms made of transforms: one of several, or one only sometimes."""

import itertools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from jax_cifar.augment.base import Images, SampleInfo, Transform, check_number, check_transform, is_number
from jax_cifar.config import check


@dataclass(frozen=True)
class OneOf(Transform):
    """With probability `p`, exactly one of `transforms` for each image (Albumentations' `OneOf`).

    The choice falls by `weights`, which need not add up to 1; without them every transform is as likely. The chosen one
    then acts with its own `p` if it has one: give it p=1 for it to act always. The i-th transform gets
    `fold_in(key, i)`. Images of one batch choose differently, so all transforms run on the whole batch: the cost is
    the sum of theirs.

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
        count = len(self.transforms)
        batch = images.shape[:1]
        weights = self.weights or (1.0,) * count
        bounds = np.asarray(list(itertools.accumulate(weights))[:-1], np.float32) / np.float32(sum(weights))
        draw = jax.random.uniform(jax.random.fold_in(key, count), batch, jnp.float32)
        choice = jnp.sum(draw[:, None] >= bounds[None, :], axis=1, dtype=jnp.int32)
        applied = jax.random.uniform(jax.random.fold_in(key, count + 1), batch, jnp.float32) < self.p
        return self.apply(key, images, jnp.where(applied, choice, count), info)

    def apply(
        self, key: PRNGKeyArray, images: Images, choice: Int[Array, " batch"], info: SampleInfo | None = None
    ) -> Images:
        """Transform each image by the transform numbered `choice`; a number that none has leaves the image alone."""
        result = images
        for i, transform in enumerate(self.transforms):
            changed = transform(jax.random.fold_in(key, i), images, info)
            result = jnp.where((choice == i)[:, None, None, None], changed, result)
        return result


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
        applied = jax.random.uniform(jax.random.fold_in(key, 1), images.shape[:1], jnp.float32) < self.p
        return self.apply(jax.random.fold_in(key, 0), images, applied, info)

    def apply(
        self, key: PRNGKeyArray, images: Images, applied: Bool[Array, " batch"], info: SampleInfo | None = None
    ) -> Images:
        """Transform the `applied` images with the draws of `key`."""
        return jnp.where(applied[:, None, None, None], self.transform(key, images, info), images)
