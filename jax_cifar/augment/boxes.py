"""Transforms that fill rectangles of an image: Cutout, random erasing and coarse dropout."""

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jax_cifar.augment.base import Fill, Images, SampleInfo, Transform
from jax_cifar.config.checks import Probability, ascending, between, not_empty
from jax_cifar.config.sections import Positive, Side
from jax_cifar.errors import ConfigError, check

Fills = Fill | Annotated[tuple[Fill, ...], not_empty] | Literal["random"]
Shares = Annotated[tuple[Probability, Probability], ascending]
Holes = Annotated[int, between(1, 1000)]
Counts = Annotated[tuple[Side, Side], ascending]
Boxes = Int[Array, "batch hole 4"]  # top, left, height, width; a box without height or width is none
Tries = Float[Array, "batch 10"]

TRIES = 10  # torchvision's


class BoxDraws(NamedTuple):
    """What is filled in every image, and with what if that is drawn too."""

    boxes: Boxes
    values: Images | None = None


@dataclass(frozen=True)
class Cutout(Transform):
    """Fill one square of every image (DeVries and Taylor, arXiv 1708.04552).

    The square's centre is uniform over the image's pixels, so that the border clips some squares, as in the
    paper's code. Centred on row r, it covers the `length` rows from `r - length // 2` on; columns likewise.

    Raises:
        ConfigError: a parameter is out of range.
    """

    length: Side = 8  # side of the square in pixels
    fill: Fill = 0.0  # value inside the square

    def draw(self, key: PRNGKeyArray, shape: tuple[int, ...], info: SampleInfo | None = None) -> Int[Array, "batch 2"]:
        sizes = jnp.asarray(shape[1:3], jnp.int32)[:, None]
        return jax.random.randint(key, (2, shape[0]), 0, sizes, jnp.int32).T

    def transform(self, images: Images, draws: Int[Array, "batch 2"]) -> Images:
        first = draws - self.length // 2
        rows = covered(first[:, 0], self.length, images.shape[1])
        columns = covered(first[:, 1], self.length, images.shape[2])
        square = rows[:, :, None] & columns[:, None, :]
        return jnp.where(square[..., None], jnp.asarray(self.fill, images.dtype), images)


@dataclass(frozen=True)
class RandomErasing(Transform):
    """Fill one rectangle of every image with probability `p` (Zhong et al., arXiv 1708.04896).

    Parameters and rule are torchvision's `RandomErasing`: area and the logarithm of height / width are uniform; a
    rectangle that is not smaller than the image in both directions is drawn again, at most ten times in all, and then
    left out. All ten are drawn at once and the first that fits is taken, which is the same rule.

    Raises:
        ConfigError: a parameter is out of range, or `value` and the images differ in their number of channels.
    """

    p: Probability = 0.5  # probability that an image loses a rectangle
    scale: Shares = (0.02, 0.33)  # least and greatest share of the image's area
    ratio: Annotated[tuple[Positive, Positive], ascending] = (0.3, 3.3)  # least and greatest height / width
    # One number, one per channel, or noise: uniform from 0 to 1 as in the paper, where torchvision, which erases
    # normalised images, draws from the standard normal distribution.
    value: Fills = 0.0

    def draw(self, key: PRNGKeyArray, shape: tuple[int, ...], info: SampleInfo | None = None) -> BoxDraws:
        batch, height, width, _ = shape
        keys = [jax.random.fold_in(key, i) for i in range(4)]
        ends = np.asarray([self.scale, np.log(self.ratio)], np.float32)[:, :, None, None]
        areas, ratios = jax.random.uniform(keys[0], (2, TRIES, batch), jnp.float32, ends[:, 0], ends[:, 1])
        sides = fitting_sides(areas.T, jnp.exp(ratios).T, height, width)
        applied = jax.random.uniform(keys[1], (batch, 1), jnp.float32) < self.p
        boxes = place_boxes(keys[2], jnp.where(applied, sides, 0)[:, None], height, width)
        return BoxDraws(boxes, uniform_noise(keys[3], shape) if self.value == "random" else None)

    def transform(self, images: Images, draws: BoxDraws) -> Images:
        return fill_boxes(images, draws, fill_values("RandomErasing.value", self.value, images))


@dataclass(frozen=True)
class CoarseDropout(Transform):
    """Fill several rectangles of every image with probability `p` (parameters of Albumentations' `CoarseDropout`).

    Number, heights, widths and places are uniform, both ends of a range included; rectangles lie inside the image and
    may overlap. A range of integers counts pixels; a range with a float counts shares of the image's side, rounded
    down to pixels.

    Raises:
        ConfigError: a parameter is out of range, a hole is larger than the images, or `fill` and the images differ in
            their number of channels.
    """

    num_holes_range: Annotated[tuple[Holes, Holes], ascending] = (1, 2)  # least and most rectangles
    hole_height_range: Counts | Shares = (0.1, 0.2)  # integers: pixels; floats: shares of the height
    hole_width_range: Counts | Shares = (0.1, 0.2)  # integers: pixels; floats: shares of the width
    fill: Fills = 0.0  # one number, one per channel, or noise, uniform from 0 to 1
    p: Probability = 0.5  # probability that an image loses rectangles

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("hole_height_range", "hole_width_range"):
            ends = getattr(self, name)
            check(not counts_pixels(ends) or ends[0] > 0, f"CoarseDropout.{name}", ends, "0 pixels are no hole")

    def draw(self, key: PRNGKeyArray, shape: tuple[int, ...], info: SampleInfo | None = None) -> BoxDraws:
        batch, height, width, _ = shape
        keys = [jax.random.fold_in(key, i) for i in range(4)]
        least, most = self.num_holes_range
        applied, count = jax.random.uniform(keys[0], (2, batch, 1), jnp.float32)
        holes = jnp.floor(least + (most + 1 - least) * count).astype(jnp.int32)
        there = (applied < self.p) & (jnp.arange(most, dtype=jnp.int32)[None, :] < holes)
        for_height, for_width = jnp.moveaxis(jax.random.uniform(keys[1], (2, most, batch), jnp.float32), -1, 1)
        heights = hole_sides("hole_height_range", self.hole_height_range, for_height, height)
        widths = hole_sides("hole_width_range", self.hole_width_range, for_width, width)
        sides = jnp.where(there[..., None], jnp.stack([heights, widths], axis=-1), 0)
        boxes = place_boxes(keys[2], sides, height, width)
        return BoxDraws(boxes, uniform_noise(keys[3], shape) if self.fill == "random" else None)

    def transform(self, images: Images, draws: BoxDraws) -> Images:
        return fill_boxes(images, draws, fill_values("CoarseDropout.fill", self.fill, images))


def fitting_sides(areas: Tries, ratios: Tries, height: int, width: int) -> Int[Array, "batch 2"]:
    """Height and width of the first rectangle that fits, of ten with a share of the area and a ratio each; else 0."""
    pixels = areas * (height * width)
    sides = jnp.round(jnp.sqrt(jnp.stack([pixels * ratios, pixels / ratios], axis=-1))).astype(jnp.int32)
    fits = (sides[..., 0] < height) & (sides[..., 1] < width)
    first = fits & (jnp.cumsum(fits, axis=1, dtype=jnp.int32) == 1)
    return jnp.sum(jnp.where(first[..., None], sides, 0), axis=1, dtype=jnp.int32)


def hole_sides(
    name: str, ends: tuple[float, float], draws: Float[Array, "batch hole"], size: int
) -> Int[Array, "batch hole"]:
    """Heights (or widths) from the range `ends` for uniform `draws`, in images of `size` rows (or columns)."""
    least, most = ends
    if not counts_pixels(ends):
        return jnp.floor(size * (least + (most - least) * draws)).astype(jnp.int32)
    if most > size:
        raise ConfigError(f"CoarseDropout.{name} = {ends} is too large for images of {size} pixels.")
    return jnp.floor(least + (most + 1 - least) * draws).astype(jnp.int32)


def place_boxes(key: PRNGKeyArray, sides: Int[Array, "batch hole 2"], height: int, width: int) -> Boxes:
    """Boxes of the given heights and widths, each at a uniform place inside the image."""
    batch, holes, _ = sides.shape
    room = jnp.asarray([height, width], jnp.int32)[None, None, :] - sides
    places = jnp.moveaxis(jax.random.uniform(key, (2, holes, batch), jnp.float32), (0, 1, 2), (2, 1, 0))
    corners = jnp.floor(places * (room + 1).astype(jnp.float32)).astype(jnp.int32)
    return jnp.concatenate([corners, sides], axis=-1)


def fill_boxes(images: Images, draws: BoxDraws, values: Float[Array, "1 1 1 channel"]) -> Images:
    """The images outside the boxes; inside what was drawn for them or else `values`."""
    top, left, height, width = jnp.moveaxis(draws.boxes, -1, 0)
    rows, columns = covered(top, height, images.shape[1]), covered(left, width, images.shape[2])
    inside = jnp.any(rows[..., :, None] & columns[..., None, :], axis=1)
    values = values if draws.values is None else draws.values
    return jnp.where(inside[..., None], values.astype(images.dtype), images)


def covered(first: Int[Array, "*batch"], length: Int[Array, "*batch"] | int, size: int) -> Bool[Array, "*batch size"]:
    """Which of `size` rows or columns the `length` ones from `first` on are."""
    positions = jnp.arange(size, dtype=first.dtype).reshape((1,) * first.ndim + (size,))
    distance = positions - first[..., None]
    return (distance >= 0) & (distance < jnp.broadcast_to(length, first.shape)[..., None])


def uniform_noise(key: PRNGKeyArray, shape: tuple[int, ...]) -> Images:
    """Uniform noise for images of `shape`."""
    return jax.random.uniform(key, shape, jnp.float32)


def fill_values(name: str, fill: float | tuple[float, ...] | str, images: Images) -> Float[Array, "1 1 1 channel"]:
    """The constant fill of the field `name`, one value for each channel of the images; 0 where it is drawn."""
    channels = images.shape[-1]
    if isinstance(fill, tuple) and len(fill) != channels:
        raise ConfigError(f"{name} = {fill!r} has {len(fill)} channels, the images {channels}.")
    each = fill if isinstance(fill, tuple) else (0.0 if isinstance(fill, str) else fill,) * channels
    return jnp.asarray(each, images.dtype)[None, None, None, :]


def counts_pixels(ends: tuple[float, float]) -> bool:
    """Whether both ends of a range are integers."""
    return all(isinstance(end, int) for end in ends)
