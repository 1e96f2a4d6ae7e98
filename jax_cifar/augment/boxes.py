"""Transforms that fill rectangles of an image: random erasing and coarse dropout."""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jax_cifar.augment.base import Drawn, Images, SampleInfo, Transform, check_number, check_range, is_number
from jax_cifar.errors import ConfigError, check

Fill = float | tuple[float, ...] | Literal["random"]
Boxes = Int[Array, "4 hole batch"]  # top, left, height, width; a box without height or width is none
Tries = Float[Array, "10 batch"]

TRIES = 10  # torchvision's


class BoxDraws(NamedTuple):
    """What is filled in every image, and with what if that is drawn too."""

    boxes: Int[Array, "batch 4 hole"]
    values: Images | None = None


@dataclass(frozen=True)
class RandomErasing(Drawn):
    """Fill one rectangle of every image with probability `p` (Zhong et al., arXiv 1708.04896).

    Parameters and rule are torchvision's `RandomErasing`: area and the logarithm of height / width are uniform; a
    rectangle that is not smaller than the image in both directions is drawn again, at most ten times in all, and then
    left out. All ten are drawn at once and the first that fits is taken, which is the same rule.

    Raises:
        ConfigError: a parameter is out of range, or `value` and the images differ in their number of channels.
    """

    p: float = 0.5  # probability that an image loses a rectangle
    scale: tuple[float, float] = (0.02, 0.33)  # least and greatest share of the image's area
    ratio: tuple[float, float] = (0.3, 3.3)  # least and greatest height / width
    # One number, one per channel, or noise: uniform from 0 to 1 as in the paper, where torchvision, which erases
    # normalised images, draws from the standard normal distribution.
    value: Fill = 0.0

    def __post_init__(self) -> None:
        check_number(self, "p", 0.0, 1.0)
        check_range(self, "scale", 0.0, 1.0)
        check_range(self, "ratio", 0.0, math.inf)
        check(self.ratio[0] > 0, "RandomErasing.ratio", self.ratio, "both must be greater than 0")
        check_fill(self, "value")

    def draw(self, key: PRNGKeyArray, shape: tuple[int, ...], info: SampleInfo | None = None) -> BoxDraws:
        batch, height, width, _ = shape
        keys = [jax.random.fold_in(key, i) for i in range(4)]
        ends = np.asarray([self.scale, np.log(self.ratio)], np.float32)[:, :, None, None]
        tries = jax.random.uniform(keys[0], (2, TRIES, batch), jnp.float32, ends[:, 0], ends[:, 1])
        sides = fitting(tries[0], jnp.exp(tries[1]), height, width)
        applied = jax.random.uniform(keys[1], (1, 1, batch), jnp.float32) < self.p
        boxes = placed(keys[2], jnp.where(applied, sides[:, None], 0), height, width)
        return BoxDraws(jnp.moveaxis(boxes, -1, 0), noise(keys[3], shape) if self.value == "random" else None)

    def transform(self, images: Images, draws: BoxDraws) -> Images:
        return self.erase(images, jnp.moveaxis(draws.boxes, 0, -1), draws.values)

    def erase(self, images: Images, boxes: Boxes, values: Images | None = None) -> Images:
        """Fill the `boxes`, with `values` instead of `value` where they are given."""
        return fill_boxes(images, boxes, fill_of(self, "value", images) if values is None else values)


@dataclass(frozen=True)
class CoarseDropout(Drawn):
    """Fill several rectangles of every image with probability `p` (parameters of Albumentations' `CoarseDropout`).

    Number, heights, widths and places are uniform, both ends of a range included; rectangles lie inside the image and
    may overlap. A range of integers counts pixels; a range with a float counts shares of the image's side, rounded
    down to pixels.

    Raises:
        ConfigError: a parameter is out of range, a hole is larger than the images, or `fill` and the images differ in
            their number of channels.
    """

    num_holes_range: tuple[int, int] = (1, 2)  # least and most rectangles
    hole_height_range: tuple[float, float] = (0.1, 0.2)  # integers: pixels; floats: shares of the height
    hole_width_range: tuple[float, float] = (0.1, 0.2)  # integers: pixels; floats: shares of the width
    fill: Fill = 0.0  # one number, one per channel, or noise, uniform from 0 to 1
    p: float = 0.5  # probability that an image loses rectangles

    def __post_init__(self) -> None:
        check_range(self, "num_holes_range", 1, math.inf)
        holes = self.num_holes_range
        check(counts_pixels(holes), "CoarseDropout.num_holes_range", holes, "both must be integers")
        for name in ("hole_height_range", "hole_width_range"):
            pixels = isinstance(getattr(self, name), tuple) and counts_pixels(getattr(self, name))
            check_range(self, name, *((1, math.inf) if pixels else (0.0, 1.0)))
        check_fill(self, "fill")
        check_number(self, "p", 0.0, 1.0)

    def draw(self, key: PRNGKeyArray, shape: tuple[int, ...], info: SampleInfo | None = None) -> BoxDraws:
        batch, height, width, _ = shape
        keys = [jax.random.fold_in(key, i) for i in range(4)]
        least, most = self.num_holes_range
        applied, count = jax.random.uniform(keys[0], (2, 1, batch), jnp.float32)
        holes = jnp.floor(least + (most + 1 - least) * count).astype(jnp.int32)
        there = (applied < self.p) & (jnp.arange(most, dtype=jnp.int32)[:, None] < holes)
        draws = jax.random.uniform(keys[1], (2, most, batch), jnp.float32)
        heights = lengths("hole_height_range", self.hole_height_range, draws[0], height)
        widths = lengths("hole_width_range", self.hole_width_range, draws[1], width)
        boxes = placed(keys[2], jnp.where(there[None], jnp.stack([heights, widths]), 0), height, width)
        return BoxDraws(jnp.moveaxis(boxes, -1, 0), noise(keys[3], shape) if self.fill == "random" else None)

    def transform(self, images: Images, draws: BoxDraws) -> Images:
        return self.drop(images, jnp.moveaxis(draws.boxes, 0, -1), draws.values)

    def drop(self, images: Images, boxes: Boxes, values: Images | None = None) -> Images:
        """Fill the `boxes`, with `values` instead of `fill` where they are given."""
        return fill_boxes(images, boxes, fill_of(self, "fill", images) if values is None else values)


def fitting(areas: Tries, ratios: Tries, height: int, width: int) -> Int[Array, "2 batch"]:
    """Height and width of the first rectangle that fits, of ten with a share of the area and a ratio each; else 0."""
    pixels = areas * (height * width)
    sides = jnp.round(jnp.sqrt(jnp.stack([pixels * ratios, pixels / ratios]))).astype(jnp.int32)
    fits = (sides[0] < height) & (sides[1] < width)
    first = fits & (jnp.cumsum(fits, axis=0, dtype=jnp.int32) == 1)
    return jnp.sum(jnp.where(first[None], sides, 0), axis=1, dtype=jnp.int32)


def lengths(
    name: str, ends: tuple[float, float], draws: Float[Array, "hole batch"], size: int
) -> Int[Array, "hole batch"]:
    """Heights (or widths) from the range `ends` for uniform `draws`, in images of `size` rows (or columns)."""
    least, most = ends
    if not counts_pixels(ends):
        return jnp.floor(size * (least + (most - least) * draws)).astype(jnp.int32)
    if most > size:
        raise ConfigError(f"CoarseDropout.{name} = {ends} is too large for images of {size} pixels.")
    return jnp.floor(least + (most + 1 - least) * draws).astype(jnp.int32)


def placed(key: PRNGKeyArray, sides: Int[Array, "2 hole batch"], height: int, width: int) -> Boxes:
    """Boxes of the given heights and widths, each at a uniform place inside the image."""
    room = jnp.asarray([height, width], jnp.int32)[:, None, None] - sides
    corners = jnp.floor(jax.random.uniform(key, sides.shape, jnp.float32) * (room + 1).astype(jnp.float32))
    return jnp.concatenate([corners.astype(jnp.int32), sides])


def fill_boxes(images: Images, boxes: Boxes, values: Float[Array, "*batch channel"]) -> Images:
    """`values` inside the boxes, the images outside."""

    def covered(first: Int[Array, "hole batch"], length: Int[Array, "hole batch"], size: int) -> Array:
        positions = jnp.arange(size, dtype=jnp.int32)[None, None]
        return (first[..., None] <= positions) & (positions < (first + length)[..., None])

    rows = covered(boxes[0], boxes[2], images.shape[1])
    columns = covered(boxes[1], boxes[3], images.shape[2])
    inside = jnp.any(rows[..., :, None] & columns[..., None, :], axis=0)
    return jnp.where(inside[..., None], values.astype(images.dtype), images)


def noise(key: PRNGKeyArray, shape: tuple[int, ...]) -> Images:
    """Uniform noise for images of `shape`."""
    return jax.random.uniform(key, shape, jnp.float32)


def fill_of(owner: Transform, name: str, images: Images) -> Float[Array, "1 1 1 channel"]:
    """The constant fill `name` of `owner`, one value for each channel of the images."""
    value = getattr(owner, name)
    channels = images.shape[-1]
    if isinstance(value, tuple) and len(value) != channels:
        raise ConfigError(
            f"{type(owner).__name__}.{name} = {value!r} has {len(value)} channels, the images {channels}."
        )
    each = value if isinstance(value, tuple) else (value,) * channels
    return jnp.asarray(each, images.dtype)[None, None, None, :]


def counts_pixels(ends: tuple[float, ...]) -> bool:
    """Whether all ends of a range are integers."""
    return all(isinstance(end, int) and not isinstance(end, bool) for end in ends)


def check_fill(owner: Transform, name: str) -> None:
    """Raise `ConfigError` unless the field `name` of `owner` is a fill: a number, one per channel, or "random"."""
    value = getattr(owner, name)
    values: tuple[Any, ...] = value if isinstance(value, tuple) and value else (value,)
    good = value == "random" or all(is_number(each) and 0 <= each <= 1 for each in values)
    expected = "it must be a number between 0 and 1, a tuple of one per channel, or 'random'"
    check(good, f"{type(owner).__name__}.{name}", value, expected)
