"""Contrast-limited adaptive histogram equalisation, without a histogram.

OpenCV counts the pixels of every tile into 256 bins, clips the bins, and makes a table of the cumulative sum. A table
is only ever read at the levels of pixels nearby; so here the cumulative sum is counted at those alone, by comparing
each pixel with the pixels of its own and the surrounding tiles. For CIFAR's tiles of 16 pixels that is less work than
filling the bins, and it needs no scatter and no gather.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jax_cifar.augment.base import Images, SampleInfo, Transform
from jax_cifar.augment.colour import Planes, colour_planes
from jax_cifar.augment.portions import change_chosen
from jax_cifar.backend.portions import materialize
from jax_cifar.config.checks import Probability, ascending, at_least, between
from jax_cifar.errors import check

Levels = Int[Array, "batch height width"]
Limit = Annotated[float, at_least(1)]
Tiling = Annotated[int, between(1, 64)]
Tiles = Int[Array, "..."]  # levels of tiles: first the pixels of a tile (or its rows, columns), last the tiles

BINS = 256
ABSENT = 256  # a level above all others: a pixel that is clipped away
CHUNK = 16  # pixels compared at a time
MOST_PIXELS = 2**15 - CHUNK  # of a tile, which are counted, and their places, in 16 bits
# Linear sRGB to CIE XYZ, each row divided by the white point D65 (IEC 61966-2-1; the white point as OpenCV has it).
TO_XYZ = np.array(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
) / np.array([[0.950456], [1.0], [1.088754]])
FROM_XYZ = np.linalg.inv(TO_XYZ)
EDGE = 6 / 29  # where CIE 1976's cube root gives way to a straight line


class ClaheDraws(NamedTuple):
    """Every image's clip limit, and whether it is equalised at all."""

    limits: Float[Array, " batch"]
    applied: Bool[Array, " batch"]


@dataclass(frozen=True)
class CLAHE(Transform):
    """Equalise the lightness of every neighbourhood with probability `p` (Albumentations' `CLAHE`, OpenCV's algorithm).

    Parameters are Albumentations': each image draws its clip limit uniformly between 1 and `clip_limit`, or from the
    pair given. A bin of a tile's histogram holds at most `int(clip_limit * pixels / 256)` pixels and at least 1; with
    8 x 8 tiles on 32 x 32 images, every limit below 32 is therefore 1.

    Colour images change in L of CIE 1976 L*a*b* (sRGB, white point D65), as Albumentations does it with OpenCV. L is
    rounded to the 256 levels that the histogram has; a* and b* are kept as they are. OpenCV's 8-bit conversion
    approximates all three: where it takes the next level, results differ, with tiles of 16 pixels by up to 16 levels.
    Adding the same amount to the three cube roots of X, Y and Z is a change of L alone, so a* and b* need not be
    computed. Colours outside sRGB are clipped. Images of one channel change directly.

    Raises:
        ConfigError: a parameter is out of range, the images have neither 1 nor 3 channels, or a tile has more than
            32,752 pixels.
    """

    # Most pixels of a bin, as a multiple of an even histogram.
    clip_limit: Limit | Annotated[tuple[Limit, Limit], ascending] = 4.0
    tile_grid_size: tuple[Tiling, Tiling] = (8, 8)  # tiles across and down, in OpenCV's order
    p: Probability = 0.5  # probability that an image is equalised

    def draw(self, key: PRNGKeyArray, shape: tuple[int, ...], info: SampleInfo | None = None) -> ClaheDraws:
        batch = shape[:1]
        low, high = self.clip_limit if isinstance(self.clip_limit, tuple) else (1.0, self.clip_limit)
        limits = jax.random.uniform(jax.random.fold_in(key, 0), batch, jnp.float32, low, high)
        applied = jax.random.uniform(jax.random.fold_in(key, 1), batch, jnp.float32) < self.p
        return ClaheDraws(limits, applied)

    def transform(self, images: Images, draws: ClaheDraws) -> Images:
        skipped = 1 - draws.applied.astype(jnp.int32)
        return change_chosen(images, skipped, [self.equalize], [draws.limits])

    def equalize(self, images: Images, limits: Float[Array, " batch"]) -> Images:
        """Equalise all images, each with its own clip limit."""
        planes = colour_planes(images, "CLAHE")
        if planes.shape[0] == 1:
            levels = jnp.round(255.0 * planes[0]).astype(jnp.int32)
            return (self.equalize_levels(levels, limits).astype(planes.dtype) / 255.0).astype(images.dtype)[..., None]
        roots = materialize(to_roots(planes))
        lightness = 1.16 * roots[1] - 0.16
        levels = jnp.round(255.0 * lightness).astype(jnp.int32)
        change = materialize((self.equalize_levels(levels, limits).astype(planes.dtype) / 255.0 - lightness) / 1.16)
        return jnp.moveaxis(from_roots(roots + change[None]), 0, -1).astype(images.dtype)

    def equalize_levels(self, levels: Levels, limits: Float[Array, " batch"]) -> Float[Array, "batch height width"]:
        """OpenCV's algorithm on levels from 0 to 255: the new levels, whole numbers."""
        across, down = self.tile_grid_size
        size = levels.shape[1:]
        if size[0] % down or size[1] % across:  # OpenCV then adds to both sides, a whole grid where nothing is missing
            widths = ((0, 0), (0, down - size[0] % down), (0, across - size[1] % across))
            levels = jnp.pad(levels, widths, mode="reflect")
        height, width = levels.shape[1] // down, levels.shape[2] // across
        expected = f"a tile of {height} x {width} pixels is larger than is counted: use more tiles"
        check(height * width <= MOST_PIXELS, "CLAHE.tile_grid_size", self.tile_grid_size, expected)
        tiles = levels.astype(jnp.int16).reshape(-1, down, height, across, width).transpose(2, 4, 0, 1, 3)
        tiles = materialize(tiles.reshape(height, width, -1))
        held = jnp.clip(jnp.floor(limits * (height * width / BINS)), 1, height * width).astype(jnp.int16)
        kept = clip_bins(tiles, jnp.repeat(held, down * across))
        result = jnp.round(blend_tables(kept, tiles, down, across)).reshape(height, width, -1, down, across)
        return result.transpose(2, 3, 0, 4, 1).reshape(levels.shape)[:, : size[0], : size[1]]


def clip_bins(tiles: Tiles, held: Int[Array, " tiles"]) -> Tiles:
    """`tiles` with `ABSENT` for every pixel beyond the `held` first ones of its level."""
    levels = tiles.reshape(-1, tiles.shape[2])
    place = jnp.arange(levels.shape[0], dtype=jnp.int16)[:, None]
    rank = count_pixels(levels, levels, lambda other, at: (other == levels) & (at < place))
    return materialize(jnp.where(rank < held[None], levels, ABSENT).reshape(tiles.shape))


def blend_tables(kept: Tiles, tiles: Tiles, down: int, across: int) -> Float[Array, "..."]:
    """Read every pixel of `tiles` in the tables of the four tiles nearest to it, and blend by the distance to them.

    Which four they are depends on the quarter of its own tile that a pixel lies in. The quarters of an odd number of
    rows or columns overlap; what lies in the middle is the first half's.
    """
    height, width = tiles.shape[:2]
    rows, columns = halves(height), halves(width)
    corners = [(i, j) for i in (0, 1) for j in (0, 1)]
    around = kept.reshape(height * width, -1, down, across)
    around = materialize(jnp.pad(around, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge"))

    def beside(i: int, j: int) -> Tiles:
        """For every tile the one that lies `i - 1` further down and `j - 1` further across; at the border itself."""
        return around[:, :, i : i + down, j : j + across].reshape(height * width, -1)

    levels = jnp.concatenate([tiles[rows[i], columns[j]].reshape(-1, tiles.shape[2]) for i, j in corners], axis=1)
    others = [jnp.concatenate([beside(i + k, j + m) for i, j in corners], axis=1) for k, m in corners]
    tables = materialize(read_tables(materialize(jnp.stack(others, axis=1)), materialize(levels[:, None])))
    total = jnp.zeros_like(tables[:, 0])
    for number, (k, m) in enumerate(corners):
        weights = [np.outer(tent(height)[i + k, rows[i]], tent(width)[j + m, columns[j]]) for i, j in corners]
        # Each product but the first is fused with its sum, and rounded once: which, is not left to the compiler.
        weight = np.stack(weights, -1).reshape(-1, 4).repeat(tiles.shape[2], axis=1)
        total = materialize(total + weight * tables[:, number])
    quarters = total.reshape(rows[0].stop, columns[0].stop, 2, 2, -1)
    upper = jnp.concatenate([quarters[:, :, 0, 0], quarters[:, width % 2 :, 0, 1]], axis=1)
    lower = jnp.concatenate([quarters[:, :, 1, 0], quarters[:, width % 2 :, 1, 1]], axis=1)
    return jnp.concatenate([upper, lower[height % 2 :]])


def halves(size: int) -> tuple[slice, slice]:
    """The first and the second half of a number of rows or columns; both hold the one in the middle."""
    return slice(0, -(-size // 2)), slice(size // 2, size)


def count_pixels(others: Tiles, levels: Tiles, counted: Callable[[Array, Array], Array]) -> Tiles:
    """For every pixel of `levels`, how many of the `others` are `counted(other, place of the other)`.

    The first axis of both goes over the pixels of a tile. The last one lists tiles side by side, which fill the vector
    registers; a sum of sixteen pixels is short enough to be written out.
    """
    missing = -others.shape[0] % CHUNK
    others = jnp.pad(others, ((0, missing), *[(0, 0)] * (others.ndim - 1)), constant_values=ABSENT)
    chunks = others.reshape(-1, CHUNK, *others.shape[1:])
    places = jnp.arange(others.shape[0], dtype=jnp.int16).reshape(chunks.shape[:2] + (1,) * (others.ndim - 1))

    def add(total: Array, chunk: tuple[Array, Array]) -> tuple[Array, None]:
        found = [counted(other[None], place[None]).astype(jnp.int16) for other, place in zip(*chunk, strict=True)]
        return total + functools.reduce(jnp.add, found), None

    start = jnp.zeros((levels.shape[0], *others.shape[1:]), jnp.int16)
    return jax.lax.scan(add, start, (chunks, places))[0]


def read_tables(kept: Tiles, levels: Tiles) -> Float[Array, "..."]:
    """The tables of the tiles `kept`, read at `levels`: the cumulative sum of the clipped bins, scaled to 0 to 255.

    What was clipped is handed out again: to all bins alike, the rest one by one to every `step`-th bin.
    """
    below = count_pixels(kept, levels, lambda other, place: other <= levels)
    clipped = materialize(jnp.sum(kept == ABSENT, axis=0, keepdims=True, dtype=jnp.int32))
    share, rest = clipped // BINS, clipped % BINS
    step = jnp.maximum(BINS // jnp.maximum(rest, 1), 1)
    share, rest, step = (materialize(values.astype(jnp.float32)) for values in (share, rest, step))
    level = levels.astype(jnp.float32)
    steps = jnp.floor((level + 0.5) / step) + 1.0  # level // step + 1; the half keeps it off the edge of a whole number
    handed_out = share * (level + 1.0) + jnp.minimum(rest, steps)
    total = below.astype(jnp.float32) + handed_out
    return jnp.round(jnp.minimum(total * np.float32((BINS - 1) / kept.shape[0]), 255.0))


def tent(size: int) -> Float[np.ndarray, "3 size"]:
    """Weight of the tile before, of the own tile and of the one after, at every row (or column) of a tile."""
    place = np.arange(size, dtype=np.float32) / size - 0.5
    return np.stack([np.maximum(-place, 0), 1 - np.abs(place), np.maximum(place, 0)]).astype(np.float32)


def to_roots(planes: Planes) -> Planes:
    """CIE 1976's cube roots of X, Y and Z, each relative to white, of sRGB planes."""
    linear = materialize(jnp.where(planes <= 0.04045, planes / 12.92, power((planes + 0.055) / 1.055, 2.4)))
    xyz = multiply(TO_XYZ, linear)
    return jnp.where(xyz > EDGE**3, power(jnp.maximum(xyz, EDGE**3), 1 / 3), xyz / (3 * EDGE**2) + 4 / 29)


def from_roots(roots: Planes) -> Planes:
    """The way back, clipped to the colours that sRGB has."""
    xyz = jnp.where(roots > EDGE, roots * roots * roots, 3 * EDGE**2 * (roots - 4 / 29))
    linear = multiply(FROM_XYZ, xyz)
    curved = 1.055 * power(jnp.maximum(linear, 0.0031308), 1 / 2.4) - 0.055
    return jnp.clip(jnp.where(linear <= 0.0031308, 12.92 * linear, curved), 0.0, 1.0)


def power(base: Array, exponent: float) -> Array:
    """`base ** exponent` for positive `base`: XLA's own is several times slower on the CPU."""
    return jnp.exp(exponent * jnp.log(base))


def multiply(matrix: Float[np.ndarray, "3 3"], planes: Planes) -> Planes:
    """A 3 x 3 matrix times every pixel, written out: a matrix product would lose digits to TF32 or bfloat16."""
    return jnp.stack([sum(float(weight) * plane for weight, plane in zip(row, planes, strict=True)) for row in matrix])
