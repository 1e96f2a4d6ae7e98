"""Reading images between their pixels: the one sampler that every geometric transform shares.

A grid tells for every output pixel the place in the input that it shows. Places are in pixels of the input, (row,
column), pixel centres at the integers 0 to size - 1.

grid = affine_map(matrix, pixel_grid(batch, height, width))
images = sample(images, grid, fill=0.5)
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_cifar.backend.portions import materialize

Images = Float[Array, "batch height width channel"]
Grid = Float[Array, "batch height width 2"]  # (row, column) of the place that each output pixel shows
Cover = Float[Array, "batch height width 1"]  # share of each output pixel that lies on the input
PaddingMode = Literal["constant", "reflect", "edge"]


class Move(NamedTuple):
    """A transform that only moves pixels, as far as it can be told without the images."""

    mapping: Callable[[Grid], Grid]  # places in its output, between pixels too -> places in its input
    padding_mode: PaddingMode = "constant"  # what lies outside of its input
    fill: float = 0.0  # value of a constant border
    shift: Grid | None = None  # what `mapping` adds to every pixel's own place, where that is known without sampling


def pixel_grid(batch: int, height: int, width: int) -> Grid:
    """Every output pixel's own place: sampled there, images stay as they are, to the last bit."""
    rows = jnp.broadcast_to(jnp.arange(height, dtype=jnp.float32)[None, :, None], (batch, height, width))
    columns = jnp.broadcast_to(jnp.arange(width, dtype=jnp.float32)[None, None, :], (batch, height, width))
    return jnp.stack([rows, columns], axis=-1)


def affine_map(matrix: Float[Array, "batch 2 3"], grid: Grid) -> Grid:
    """`matrix @ (row, column, 1)` at every place of `grid`: from output places to input places.

    Written as products and sums: a matrix product may round to bfloat16 or TF32 on an accelerator, 1/8 of a pixel.
    """
    grid = grid.astype(widest(matrix, grid))
    terms = materialize(matrix).astype(grid.dtype)[:, None, None, :, :]
    return terms[..., 0] * grid[..., :1] + terms[..., 1] * grid[..., 1:] + terms[..., 2]


def sample(images: Images, grid: Grid, padding_mode: PaddingMode = "constant", fill: float = 0.0) -> Images:
    """The values of `images` at the places of `grid`, bilinear: each weighs the four pixels around it.

    Outside lies `fill` (`constant`), the border pixel (`edge`) or the mirror image without the edge (`reflect`); places
    less than a pixel outside of a `constant` border are part pixel, part fill (torch's `grid_sample` with zeros).
    """
    places, covered = settle(grid, images.shape[1], images.shape[2], padding_mode)
    return cover(interpolate(images, places), covered, fill).astype(images.dtype)


def resample(images: Images, moves: Sequence[Move]) -> Images:
    """Apply `moves` one after another, the first to `images`, in a single look at their pixels.

    The mappings are chained from the last to the first. What an intermediate result would have had filled is filled,
    with the `fill` of the move that reached beyond it. One thing differs from sampling after every move: pixels
    are interpolated once, so that the result is sharper.
    """
    batch, height, width, _ = images.shape
    grid = pixel_grid(batch, height, width)
    borders = []
    for move in reversed(moves):
        if move.shift is not None and not borders:  # whole pixels: the shift need not be sampled
            places = grid.astype(move.shift.dtype) + move.shift
        else:
            places = move.mapping(grid)
        grid, covered = settle(places, height, width, move.padding_mode)
        borders.append((covered, move.fill))
    values = interpolate(images, grid)
    for covered, fill in reversed(borders):
        values = cover(values, covered, fill)
    return values.astype(images.dtype)


def settle(grid: Grid, height: int, width: int, padding_mode: PaddingMode) -> tuple[Grid, Cover]:
    """The places on the input that show what `grid` shows, and the share of each that is not `constant` border."""
    last = jnp.asarray([height - 1, width - 1], grid.dtype)[None, None, None, :]
    covered = jnp.ones((*grid.shape[:3], 1), grid.dtype)
    if padding_mode == "constant":
        # What a bilinear look at an image of ones, with zeros around it, would see.
        covered = jnp.prod(jnp.clip(jnp.minimum(grid, last - grid) + 1, 0, 1), axis=-1, keepdims=True)
    elif padding_mode == "reflect":
        # A triangle wave: up to the last pixel and back again. An image of one pixel has nothing else to show.
        period = jnp.maximum(2 * last, 1)
        phase = grid - period * jnp.floor(grid / period)
        grid = jnp.minimum(phase, period - phase)
    return jnp.clip(grid, 0, last), covered


def interpolate(images: Images, places: Grid) -> Images:
    """Bilinear values at `places`, all of them on the images; in float32 or better."""
    dtype = widest(images, places)
    # Worked out a second time, a place beside a pixel may be rounded to its other side: share and pixel must agree.
    places = materialize(places)
    first = jnp.floor(places)
    share = (places - first).astype(dtype)
    top_left = first.astype(jnp.int32)
    sizes = jnp.asarray(images.shape[1:3], jnp.int32)[None, None, None, :]
    # Past the last pixel the share is 0: the pixel itself serves as its own neighbour.
    bottom_right = jnp.minimum(top_left + 1, sizes - 1)
    row, column = share[..., :1], share[..., 1:]

    def line(rows: Int[Array, "batch height width"]) -> Images:
        left = pick(images, jnp.stack([rows, top_left[..., 1]], axis=-1)).astype(dtype)
        right = pick(images, jnp.stack([rows, bottom_right[..., 1]], axis=-1)).astype(dtype)
        return mix(left, right, column)

    return mix(line(top_left[..., 0]), line(bottom_right[..., 0]), row)


def pick(images: Images, pixels: Int[Array, "batch height width 2"]) -> Images:
    """The pixels (row, column) of `images`.

    A gather over flattened pixels: on a CPU it takes a fiftieth of the time of a contraction with one-hot weights.
    """
    batch, height, width, channels = images.shape
    index = (pixels[..., 0] * width + pixels[..., 1]).reshape(batch, -1, 1)
    values = jnp.take_along_axis(images.reshape(batch, height * width, channels), index, axis=1, mode="clip")
    return values.reshape(*pixels.shape[:3], channels)


def cover(values: Images, covered: Cover, fill: float) -> Images:
    """`fill` wherever `values` are not `covered`."""
    return mix(jnp.asarray(fill, values.dtype)[None, None, None, None], values, covered.astype(values.dtype))


def mix(first: Array, second: Array, share: Array) -> Array:
    """`share` of `second`, the rest of `first`: exact at shares 0 and 1, and never above 1 for values up to 1."""
    return first * (1 - share) + second * share


def widest(*values: Array) -> jnp.dtype:
    """The floating dtype to compute with: float32, or float64 where one of `values` has it."""
    return max(jnp.dtype(jnp.float32), *(value.dtype for value in values), key=lambda dtype: dtype.itemsize)
