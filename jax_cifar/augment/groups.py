"""Transforms made of transforms: one of several, or one only sometimes."""

import itertools
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from jax_cifar.augment.base import Images, SampleInfo, Transform, change, check_transform, drawn
from jax_cifar.augment.portions import Draws, change_chosen
from jax_cifar.config.checks import Probability, not_empty
from jax_cifar.config.sections import NotNegative
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

    transforms: Annotated[tuple[Transform, ...], not_empty]  # instances, at least one; groups may be nested
    weights: tuple[NotNegative, ...] | None = None  # relative frequency of each
    p: Probability = 0.5  # probability that an image is transformed at all

    def __post_init__(self) -> None:
        if isinstance(self.transforms, tuple | list):
            checked = [check_transform(f"OneOf.transforms[{i}]", each) for i, each in enumerate(self.transforms)]
            object.__setattr__(self, "transforms", tuple(checked))
        super().__post_init__()
        if self.weights is not None:
            count = len(self.transforms)
            check(len(self.weights) == count, "OneOf.weights", self.weights, f"there are {count} transforms")
            check(sum(self.weights) > 0, "OneOf.weights", self.weights, "one at least must be greater than 0")

    def draw(
        self, key: PRNGKeyArray, shape: tuple[int, ...], info: SampleInfo | None = None
    ) -> tuple[Int[Array, " batch"], list[Draws]]:
        """The number of every image's transform, one that none has where it stays as it is; and what they draw."""
        keyed = [(jax.random.fold_in(key, i), transform) for i, transform in enumerate(self.transforms)]
        return self.choose(key, shape[0]), [drawn(transform, own, shape, info) for own, transform in keyed]

    def transform(self, images: Images, draws: tuple[Int[Array, " batch"], list[Draws]]) -> Images:
        choice, each = draws
        return change_chosen(images, choice, [partial(change, transform) for transform in self.transforms], each)

    def choose(self, key: PRNGKeyArray, batch: int) -> Int[Array, " batch"]:
        """The number of every image's transform; of an image that stays as it is, the number of transforms."""
        count = len(self.transforms)
        weights = self.weights or (1.0,) * count
        bounds = np.asarray(list(itertools.accumulate(weights))[:-1], np.float32) / np.float32(sum(weights))
        draw = jax.random.uniform(jax.random.fold_in(key, count), (batch,), jnp.float32)
        choice = jnp.sum(draw[:, None] >= bounds[None, :], axis=1, dtype=jnp.int32)
        applied = jax.random.uniform(jax.random.fold_in(key, count + 1), (batch,), jnp.float32) < self.p
        return jnp.where(applied, choice, count)


@dataclass(frozen=True)
class Sometimes(Transform):
    """Apply a transform to each image with probability `p` (torchvision's `RandomApply` with one transform).

    The transform's own `p`, if it has one, still counts: the probabilities multiply.

    Raises:
        ConfigError: `inner` is not a transform, or `p` is out of range.
    """

    inner: Transform  # an instance; groups may be nested
    p: Probability = 0.5  # probability that an image is handed to it

    def __post_init__(self) -> None:
        check_transform("Sometimes.inner", self.inner)
        super().__post_init__()

    def draw(
        self, key: PRNGKeyArray, shape: tuple[int, ...], info: SampleInfo | None = None
    ) -> tuple[Bool[Array, " batch"], Draws]:
        """Which images are handed to the transform, and what it draws."""
        applied = jax.random.uniform(jax.random.fold_in(key, 1), shape[:1], jnp.float32) < self.p
        return applied, drawn(self.inner, jax.random.fold_in(key, 0), shape, info)

    def transform(self, images: Images, draws: tuple[Bool[Array, " batch"], Draws]) -> Images:
        applied, inner = draws
        return change_chosen(images, 1 - applied.astype(jnp.int32), [partial(change, self.inner)], [inner])
