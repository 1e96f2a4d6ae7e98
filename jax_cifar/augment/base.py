"""What every transform is, how several become one, and the checks that their parameters share."""

import abc
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jax_cifar.augment.portions import Draws, once
from jax_cifar.augment.sampling import Move, resample
from jax_cifar.errors import ConfigError, check

Images = Float[Array, "batch height width channel"]


class SampleInfo(NamedTuple):
    """Where a batch comes from, for the transforms that depend on it."""

    index: Int[Array, " batch"]  # position of every image in the data set
    epoch: Int[Array, ""]  # passes over the data set completed before this one


class Transform(abc.ABC):
    """A random change of images: a frozen dataclass that checks its parameters when it is made.

    Calling one is a pure function that can be jitted: the same key gives the same result, every image has its own
    draws, shape and dtype stay as they are.
    """

    @abc.abstractmethod
    def __call__(self, key: PRNGKeyArray, images: Images, info: SampleInfo | None = None) -> Images:
        """Transform `images`, raw pixels between 0 and 1."""

    # A group calls a transform in two steps, so that the second can be left to the images that need it.

    def prepare(self, key: PRNGKeyArray, images: Images, info: SampleInfo | None) -> Draws:
        """The part of a call that needs the whole batch; unless a kind of transform knows better, all of it."""
        return self(key, images, info)

    def finish(self, images: Images, prepared: Draws) -> Images:
        """The rest of a call for any of the images, with what was `prepared` for them."""
        return prepared


class Drawn(Transform):
    """A transform that draws for the whole batch and then changes every image on its own, by its draws alone."""

    @abc.abstractmethod
    def draw(self, key: PRNGKeyArray, shape: tuple[int, ...], info: SampleInfo | None = None) -> Draws:
        """Draws for images of `shape` (batch, height, width, channel): arrays that begin with the axis batch."""

    @abc.abstractmethod
    def transform(self, images: Images, draws: Draws) -> Images:
        """Change `images` as their `draws` tell."""

    def __call__(self, key: PRNGKeyArray, images: Images, info: SampleInfo | None = None) -> Images:
        return self.transform(images, self.draw(key, images.shape, info))

    def prepare(self, key: PRNGKeyArray, images: Images, info: SampleInfo | None) -> Draws:
        return self.draw(key, images.shape, info)

    def finish(self, images: Images, prepared: Draws) -> Images:
        return self.transform(images, prepared)


class Resampling(Drawn):
    """A transform that only moves pixels, to places between pixels too; `compose` makes one of several in a row."""

    @abc.abstractmethod
    def given(self, draws: Draws, shape: tuple[int, ...]) -> Move:
        """Where the pixels of images of `shape` (batch, height, width, channel) come from, by their `draws`."""

    def move(self, key: PRNGKeyArray, shape: tuple[int, ...]) -> Move:
        """Draw where the pixels of images of `shape` come from."""
        return self.given(self.draw(key, shape), shape)

    def transform(self, images: Images, draws: Draws) -> Images:
        return resample(images, [self.given(draws, images.shape)])


def compose(transforms: Sequence[Callable[..., Images]]) -> Callable[..., Images]:
    """Apply `transforms` in their order; the i-th gets `fold_in(key, i)`, so that no two share their draws.

    Neighbours that only move pixels (`Resampling`) become one: their places are chained and the images are sampled
    once, which takes less time and blurs less than sampling after each of them.

    Returns a function of `(key, images, info=None)`, as a transform is. Without transforms it returns the images.

    Raises:
        ConfigError: one of them is not a transform.
    """
    transforms = tuple(transforms)
    for i, transform in enumerate(transforms):
        check_transform(f"augment[{i}]", transform)

    def apply(key: PRNGKeyArray, images: Images, info: SampleInfo | None = None) -> Images:
        check_floating("images", images, "divide pixels by 255")
        given = images = once(images) if transforms else images
        keys = [jax.random.fold_in(key, i) for i in range(len(transforms))]
        pairs = zip(keys, transforms, strict=True)
        for moving, group in itertools.groupby(pairs, lambda pair: isinstance(pair[1], Resampling)):
            if moving:
                images = once(resample(images, [transform.move(own, images.shape) for own, transform in group]), given)
            else:
                for own, transform in group:
                    images = once(transform(own, images, info), given)
        return images

    return apply


def check_transform(name: str, value: object) -> None:
    """Raise `ConfigError` unless `value`, found at `name`, is a transform."""
    if not isinstance(value, Transform):
        raise ConfigError(
            f"{name} = {value!r} is not a transform: give an instance, such as RandomCrop(padding=4). "
            f"MixUp and CutMix are set in the section mix."
        )


def check_floating(name: str, values: Array, way_out: str) -> None:
    """Raise `ConfigError` unless `values` has a floating dtype; integers would be truncated without a word."""
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise ConfigError(f"{name} of dtype {values.dtype} cannot be augmented: {way_out} first.")


def check_integer(owner: object, name: str, least: int) -> None:
    """Raise `ConfigError` unless the field `name` of `owner` is an integer of at least `least`."""
    value = getattr(owner, name)
    good = isinstance(value, int) and not isinstance(value, bool) and value >= least
    check(good, f"{type(owner).__name__}.{name}", value, f"it must be an integer of at least {least}")


def check_number(owner: object, name: str, low: float = -math.inf, high: float = math.inf) -> None:
    """Raise `ConfigError` unless the field `name` of `owner` is a finite number from `low` to `high`."""
    value = getattr(owner, name)
    expected = "it must be a finite number" if low == -math.inf else f"it must be a number between {low} and {high}"
    check(is_number(value) and low <= value <= high, f"{type(owner).__name__}.{name}", value, expected)


def check_range(owner: object, name: str, low: float, high: float) -> None:
    """Raise `ConfigError` unless the field `name` of `owner` is a pair (least, most) from `low` to `high`."""
    value = getattr(owner, name)
    pair = isinstance(value, tuple) and len(value) == 2 and all(is_number(end) for end in value)
    good = pair and low <= value[0] <= value[1] <= high
    expected = f"it must be a pair (least, most) with both between {low} and {high}"
    check(good, f"{type(owner).__name__}.{name}", value, expected)


def check_choice(owner: object, name: str, allowed: tuple[str, ...]) -> None:
    """Raise `ConfigError` unless the field `name` of `owner` is one of `allowed`."""
    value = getattr(owner, name)
    check(value in allowed, f"{type(owner).__name__}.{name}", value, f"it must be one of {', '.join(allowed)}")


def is_number(value: object) -> bool:
    """Whether `value` is a finite real number (a truth value is none)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
