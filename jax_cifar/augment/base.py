"""What every transform is, and how several become one.

A transform of one's own is a frozen dataclass with two methods, and works wherever the library's do:

@dataclass(frozen=True)
class Brighten(Transform):
    most: Annotated[float, between(0, 1)] = 0.2  # largest amount added to the pixels

    def draw(self, key, shape, info=None):
        return jax.random.uniform(key, shape[:1], jnp.float32, 0.0, self.most)

    def transform(self, images, draws):
        return jnp.clip(images + draws[:, None, None, None].astype(images.dtype), 0.0, 1.0)
"""

import abc
import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jax_cifar.augment.portions import Draws
from jax_cifar.augment.sampling import Move, resample
from jax_cifar.backend.portions import materialize
from jax_cifar.config.checks import between, check_fields
from jax_cifar.config.modules import in_one_line, own_line
from jax_cifar.config.placeholder import Recorded
from jax_cifar.errors import ConfigError, UserError

Images = Float[Array, "batch height width channel"]
Fill = Annotated[float, between(0, 1)]  # a pixel's value, for what is covered or comes from outside


class SampleInfo(NamedTuple):
    """Where a batch comes from, for the transforms that depend on it."""

    index: Int[Array, " batch"]  # position of every image in the data set
    epoch: Int[Array, ""]  # passes over the data set completed before this one


class Transform(abc.ABC):
    """A random change of images: a frozen dataclass that checks its fields when it is made.

    First it draws for the whole batch, then it changes every image on its own, by its draws alone: a group may hand it
    a part of the batch with that part's draws. Calling it does both and is a pure function that can be jitted: the
    same key gives the same result, every image has its own draws, shape and dtype stay as they are.
    """

    @abc.abstractmethod
    def draw(self, key: PRNGKeyArray, shape: tuple[int, ...], info: SampleInfo | None = None) -> Draws:
        """Draws for images of `shape` (batch, height, width, channel): arrays that begin with the axis batch.

        They may be nested in any way; None, or no array, is drawn where all images are changed alike.
        """

    @abc.abstractmethod
    def transform(self, images: Images, draws: Draws) -> Images:
        """Change `images`, raw pixels between 0 and 1, as their `draws` tell."""

    def __call__(self, key: PRNGKeyArray, images: Images, info: SampleInfo | None = None) -> Images:
        """Draw with `key` and transform `images`."""
        return change(self, images, drawn(self, key, images.shape, info))

    def __post_init__(self) -> None:
        check_fields(self)


class Resampling(Transform):
    """A transform that only moves pixels, to places between pixels too; `compose` makes one of several in a row."""

    @abc.abstractmethod
    def move(self, draws: Draws, shape: tuple[int, ...]) -> Move:
        """Where the pixels of images of `shape` (batch, height, width, channel) come from, by their `draws`."""

    def transform(self, images: Images, draws: Draws) -> Images:
        return resample(images, [self.move(draws, images.shape)])


def compose(transforms: Sequence[object]) -> Callable[..., Images]:
    """Apply `transforms` in their order; the i-th gets `fold_in(key, i)`, so that no two share their draws.

    Neighbours that only move pixels (`Resampling`) become one: their places are chained and the images are sampled
    once, which takes less time and blurs less than sampling after each of them.

    Returns a function of `(key, images, info=None)`, as a transform is. Without transforms it returns the images.

    Raises:
        ConfigError: one of them is not a transform. The function: one of the user's own fails, with its line, or
            returns images of another shape or dtype.
    """
    checked = [check_transform(f"augment[{i}]", transform) for i, transform in enumerate(transforms)]

    def apply(key: PRNGKeyArray, images: Images, info: SampleInfo | None = None) -> Images:
        check_floating("images", images, "divide pixels by 255")
        original = images = materialize(images) if checked else images
        keyed = [(jax.random.fold_in(key, i), transform) for i, transform in enumerate(checked)]
        for _, group in itertools.groupby(keyed, lambda pair: isinstance(pair[1], Resampling)):
            moves = []
            for own, transform in group:
                with naming(transform, images):
                    if isinstance(transform, Resampling):
                        moves.append(transform.move(drawn(transform, own, images.shape, info), images.shape))
                    else:
                        images = materialize(transform(own, images, info), original)
            if moves:
                images = materialize(resample(images, moves), original)
        return images

    return apply


@contextlib.contextmanager
def naming(transform: Transform, images: Images) -> Iterator[None]:
    """What fails inside in code of the user's own becomes a `ConfigError` with transform and line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if own_line(error) is None:
            raise
        raise ConfigError(
            f"The transform {type(transform).__name__} failed on images {_kind(images)}: {in_one_line(error)}."
        ) from error


def drawn(transform: Transform, key: PRNGKeyArray, shape: tuple[int, ...], info: SampleInfo | None) -> Draws:
    """What a transform draws; raises `ConfigError` where it is not a value for each image.

    One value for all images would be shared without a word, and a group would hand images those of others.
    """
    draws = transform.draw(key, shape, info)
    for leaf in jax.tree.leaves(draws):
        if getattr(leaf, "shape", ())[:1] != shape[:1]:
            raise ConfigError(
                f"The transform {type(transform).__name__} drew {_kind(leaf)} for {shape[0]} images: every array that"
                f" draw returns has to begin with the axis batch, [{shape[0]}, ...]. Draw values of shape[:1]."
            )
    return draws


def change(transform: Transform, images: Images, draws: Draws) -> Images:
    """What a transform makes of images; raises `ConfigError` where shape or dtype are not what they were."""
    changed = transform.transform(images, draws)
    if _kind(changed) != _kind(images):
        raise ConfigError(
            f"The transform {type(transform).__name__} made {_kind(changed)} of images {_kind(images)}: shape and dtype"
            " have to stay as they are."
        )
    return changed


def _kind(value: Any) -> str:
    if not hasattr(value, "shape"):
        return type(value).__name__
    return f"{value.dtype}{list(value.shape)}"


def check_transform(name: str, value: object) -> Transform:
    """`value`, found at `name`, where it is a transform; raises `ConfigError` where it is none, or code not trusted."""
    if isinstance(value, Recorded):
        value.transform()  # says how to trust it
    if not isinstance(value, Transform):
        raise ConfigError(
            f"{name} = {value!r} is not a transform: give an instance, such as RandomCrop(padding=4), or one of a "
            f"subclass of jax_cifar.augment.Transform. MixUp and CutMix are set in the section mix."
        )
    if not dataclasses.is_dataclass(value):
        kind = type(value).__name__
        raise ConfigError(f"{name} is a {kind}, which cannot be recorded: write @dataclass(frozen=True) above {kind}.")
    return value


def check_floating(name: str, values: Array, way_out: str) -> None:
    """Raise `ConfigError` unless `values` has a floating dtype; integers would be truncated without a word."""
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise ConfigError(f"{name} of dtype {values.dtype} cannot be augmented: {way_out} first.")
