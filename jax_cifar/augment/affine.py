"""Transforms that move pixels by an affine map: rotation, translation, zoom, shear, and the resized crop.

Parameters, their meaning and the arithmetic are those of torchvision's transforms of the same names. Sampling is always
bilinear (torchvision's default for the first two is nearest) and the size of the images stays as it is.
"""

import math
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jax_cifar.augment.base import Fill, Resampling, SampleInfo
from jax_cifar.augment.sampling import Grid, Move, affine_map
from jax_cifar.config.checks import Probability, ascending, between
from jax_cifar.config.sections import NotNegative, Positive
from jax_cifar.errors import check

Range = tuple[float, float]
Degrees = NotNegative | Annotated[Range, ascending]  # a single number d stands for (-d, d)
Ratios = Annotated[tuple[Positive, Positive], ascending]
Share = Annotated[Positive, between(0, 1)]
TRIES = 10  # boxes that torchvision's RandomResizedCrop draws before it falls back on the middle of the image


class AffineDraws(NamedTuple):
    """What happens to each image, in this order: shear, rotation and scale around its centre, then translation."""

    degrees: Float[Array, " batch"]  # clockwise
    translate: Float[Array, "batch 2"]  # pixels to the right and down
    scale: Float[Array, " batch"]  # above 1 enlarges
    shear: Float[Array, "batch 2"]  # degrees along the columns' and along the rows' axis (torchvision's x and y)


class CropDraws(NamedTuple):
    """The part of each image that is enlarged, in whole pixels (row, column)."""

    corners: Int[Array, "batch 2"]  # top left
    sizes: Int[Array, "batch 2"]


@dataclass(frozen=True)
class RandomAffine(Resampling):
    """Rotate, translate, scale and shear around the centre (torchvision's `RandomAffine`).

    Angles in degrees, clockwise. A single number d stands for the range (-d, d). Translation is by whole pixels.

    Raises:
        ConfigError: a parameter is out of range.
    """

    degrees: Degrees  # rotation; 0 for none
    translate: tuple[Probability, Probability] | None = None  # largest share of the width, and of the height, to move
    scale: Ratios | None = None  # range of the factor
    shear: float | Range | tuple[float, float, float, float] | None = None  # range of x, or of x and of y
    fill: Fill = 0.0  # value of what comes from outside

    def __post_init__(self) -> None:
        super().__post_init__()
        steepest = max(map(abs, self.shears()))
        check(steepest < 90, "RandomAffine.shear", self.shear, "every angle must be below 90 degrees")

    def shears(self) -> tuple[float, ...]:
        """Least and largest shear along x, then along y."""
        if isinstance(self.shear, tuple):
            return (*self.shear, 0.0, 0.0)[:4]
        return (*symmetric(self.shear or 0.0), 0.0, 0.0)

    def draw(self, key: PRNGKeyArray, shape: tuple[int, ...], info: SampleInfo | None = None) -> AffineDraws:
        batch, height, width, _ = shape
        keys = [jax.random.fold_in(key, i) for i in range(4)]
        reach = self.translate or (0.0, 0.0)
        reach = jnp.asarray([reach[0] * width, reach[1] * height], jnp.float32)[None, :]
        low_x, high_x, low_y, high_y = self.shears()
        low, high = (jnp.asarray([ends], jnp.float32) for ends in ((low_x, low_y), (high_x, high_y)))
        return AffineDraws(
            degrees=uniform(keys[0], batch, symmetric(self.degrees)),
            translate=jnp.round(jax.random.uniform(keys[1], (batch, 2), jnp.float32, -reach, reach)),
            scale=uniform(keys[2], batch, self.scale or (1.0, 1.0)),
            shear=jax.random.uniform(keys[3], (batch, 2), jnp.float32, low, high),
        )

    def move(self, draws: AffineDraws, shape: tuple[int, ...]) -> Move:
        matrix = inverse_matrix(draws, shape[1], shape[2])
        return Move(lambda grid: affine_map(matrix, grid), fill=self.fill)


@dataclass(frozen=True)
class RandomRotation(Resampling):
    """Rotate around the centre (torchvision's `RandomRotation` with `expand=False`).

    Angles in degrees, counter-clockwise. A single number d stands for the range (-d, d).

    Raises:
        ConfigError: a parameter is out of range.
    """

    degrees: Degrees  # rotation
    fill: Fill = 0.0  # value of what comes from outside

    def draw(self, key: PRNGKeyArray, shape: tuple[int, ...], info: SampleInfo | None = None) -> Float[Array, " batch"]:
        return uniform(key, shape[0], symmetric(self.degrees))

    def move(self, draws: Float[Array, " batch"], shape: tuple[int, ...]) -> Move:
        still = jnp.zeros((shape[0], 2), draws.dtype)
        matrix = inverse_matrix(AffineDraws(-draws, still, jnp.ones_like(draws), still), shape[1], shape[2])
        return Move(lambda grid: affine_map(matrix, grid), fill=self.fill)


@dataclass(frozen=True)
class RandomResizedCrop(Resampling):
    """Cut a box of random area, shape and place, and enlarge it to the full size (torchvision's `RandomResizedCrop`).

    Area and aspect ratio are drawn until the box fits, at most ten times; if none fits, the box is the largest one in
    the middle whose ratio is in range.

    Raises:
        ConfigError: a parameter is out of range.
    """

    scale: Annotated[tuple[Share, Share], ascending] = (0.08, 1.0)  # range of the box's area: share of the image's
    ratio: Ratios = (3 / 4, 4 / 3)  # range of width / height; its logarithm is uniform

    def draw(self, key: PRNGKeyArray, shape: tuple[int, ...], info: SampleInfo | None = None) -> CropDraws:
        batch, height, width, _ = shape
        keys = [jax.random.fold_in(key, i) for i in range(3)]
        area = uniform(keys[0], (batch, TRIES), self.scale)
        log_ratio = uniform(keys[1], (batch, TRIES), (math.log(self.ratio[0]), math.log(self.ratio[1])))
        sizes, found = self.sizes(area, log_ratio, height, width)
        room = jnp.asarray([[height, width]], jnp.int32) - sizes
        corners = jax.random.randint(keys[2], (batch, 2), 0, room + 1, jnp.int32)
        return CropDraws(jnp.where(found[:, None], corners, room // 2), sizes)

    def sizes(
        self, area: Float[Array, "batch tries"], log_ratio: Float[Array, "batch tries"], height: int, width: int
    ) -> tuple[Int[Array, "batch 2"], Array]:
        """Height and width of every image's box, and whether one of its tries fitted."""
        pixels = area * (height * width)
        rows = jnp.round(jnp.sqrt(pixels * jnp.exp(-log_ratio))).astype(jnp.int32)
        columns = jnp.round(jnp.sqrt(pixels * jnp.exp(log_ratio))).astype(jnp.int32)
        fits = (rows > 0) & (rows <= height) & (columns > 0) & (columns <= width)
        first = jnp.argmax(fits, axis=1, keepdims=True)
        drawn = jnp.concatenate([jnp.take_along_axis(size, first, axis=1) for size in (rows, columns)], axis=1)
        found = jnp.any(fits, axis=1)
        return jnp.where(found[:, None], drawn, jnp.asarray([self.middle(height, width)], jnp.int32)), found

    def middle(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the largest box whose ratio is in range."""
        if width / height < self.ratio[0]:
            return round(width / self.ratio[0]), width
        if width / height > self.ratio[1]:
            return height, round(height * self.ratio[1])
        return height, width

    def move(self, draws: CropDraws, shape: tuple[int, ...]) -> Move:
        corners, sizes = draws
        size, first, last = (values.astype(float)[:, None, None, :] for values in (sizes, corners, corners + sizes - 1))
        zoom = size / jnp.asarray(shape[1:3], size.dtype)[None, None, None, :]

        def mapping(grid: Grid) -> Grid:
            # Half a pixel is the distance from a pixel's edge, where boxes begin, to its centre.
            return jnp.clip(first + (grid.astype(zoom.dtype) + 0.5) * zoom - 0.5, first, last)

        return Move(mapping, padding_mode="edge")


def inverse_matrix(draws: AffineDraws, height: int, width: int) -> Float[Array, "batch 2 3"]:
    """From output to input places, (row, column, 1): torchvision's inverse affine matrix around the image's centre."""
    shear_x, shear_y = draws.shear[:, 0], draws.shear[:, 1]
    cos, sin = cos_sin(draws.degrees)
    cos_x, sin_x = cos_sin(shear_x)
    cos_y, _ = cos_sin(shear_y)
    turned_cos, turned_sin = (values / cos_y for values in cos_sin(draws.degrees - shear_y))
    slope = sin_x / cos_x
    row_row, row_column = turned_cos / draws.scale, -turned_sin / draws.scale
    column_row, column_column = (turned_cos * slope + sin) / draws.scale, (cos - turned_sin * slope) / draws.scale
    middle_row, middle_column = (height - 1) / 2, (width - 1) / 2
    from_column, from_row = middle_column + draws.translate[:, 0], middle_row + draws.translate[:, 1]
    to_row = middle_row - row_row * from_row - row_column * from_column
    to_column = middle_column - column_row * from_row - column_column * from_column
    rows = jnp.stack([row_row, row_column, to_row], axis=-1)
    return jnp.stack([rows, jnp.stack([column_row, column_column, to_column], axis=-1)], axis=1)


def cos_sin(degrees: Float[Array, " batch"]) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """Cosine and sine, exact at the multiples of 90 degrees, so that a quarter turn moves pixels onto pixels."""
    quarters = jnp.round(degrees / 90)
    rest = (degrees - 90 * quarters) * (math.pi / 180)
    cos, sin = jnp.cos(rest), jnp.sin(rest)
    odd, beyond = quarters % 2 == 1, quarters % 4 >= 2
    cos, sin = jnp.where(odd, -sin, cos), jnp.where(odd, cos, sin)
    return jnp.where(beyond, -cos, cos), jnp.where(beyond, -sin, sin)


def uniform(key: PRNGKeyArray, shape: int | tuple[int, ...], ends: Range) -> Array:
    """Float32 draws between the two `ends`."""
    return jax.random.uniform(key, shape if isinstance(shape, tuple) else (shape,), jnp.float32, *ends)


def symmetric(value: float | Range) -> Range:
    """The range that a parameter stands for: itself, or (-value, value)."""
    return value if isinstance(value, tuple) else (-value, value)
