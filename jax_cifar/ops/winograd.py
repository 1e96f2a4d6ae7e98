"""3x3 convolution of stride 1 by Winograd's F(m x m, 3x3): (m + 2)^2 products for m x m outputs, not 9 m^2.

Larger tiles take fewer products for an output, but sums of more terms, and the last of them hold but a part of one.

Source: Lavin and Gray, arXiv 1509.09308. A tile of the image and a 3x3 kernel each become a square of numbers by the
matrices of a scheme; the products of the two, summed over the channels, become the outputs. Tiles of all images
together make a matrix product for each number of the square.

A transformed array is [numbers of the square, ...], column after column, so that their products are one batched one,
and XLA has few loops to compile, each of which costs it as much however small it is (experiments.md). But a batched
product of small matrices keeps a single core busy: so there is an array of some columns for every core, and nothing is
overwritten that would make one of their products wait for another (`_products`).
"""

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from math import prod
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jax_cifar.backend.portions import map_chunks, sum_chunks
from jax_cifar.backend.threads import cpu_count

Matrix = tuple[tuple[float, ...], ...]
Padding = tuple[tuple[int, int], tuple[int, int]]


class Scheme(NamedTuple):
    """The matrices of F(m x m, 3x3), whose tiles are m + 2 pixels wide and m apart."""

    cost: float  # of a number of the tiles, in time; F(2x2, 3x3)'s is 1
    kernel: Matrix  # G of the paper
    image: Matrix  # B transposed
    output: Matrix  # A transposed

    @property
    def outputs(self) -> int:
        """m: outputs of a tile, in a row or a column."""
        return len(self.output)

    @property
    def turned(self) -> "Scheme":
        """For kernels turned by 180 degrees: instead of their numbers those of the images change places."""
        order = [self.kernel.index(row[::-1]) for row in self.kernel]
        output = tuple(tuple(row[i] for i in order) for row in self.output)
        return self._replace(image=tuple(self.image[i] for i in order), output=output)

    def numbers(self, height: int, width: int) -> int:
        """Numbers of a channel's tiles for this many outputs, of which the last tiles may hold but a part."""
        return len(self.image) ** 2 * -(-height // self.outputs) * -(-width // self.outputs)


def scheme_of(cost: float, *points: Fraction | int) -> Scheme:
    """F(m x m, 3x3) by the values of polynomials at 0, these m points and infinity.

    With every point goes its inverse: so a kernel turned by 180 degrees has the kernel's numbers, in another order.
    """
    finite = [Fraction(0), *map(Fraction, points)]
    kernel, image = [], []
    for point in finite:
        others = [other for other in finite if other != point]
        kernel.append([1 / point / 2, Fraction(1, 2), point / 2] if point else [1, 0, 0])
        scale = 2 * point if point else Fraction(1)
        image.append([*_coefficients(others, scale / prod(point - other for other in others)), 0])
    kernel.append([0, 0, 1])
    image.append(_coefficients(finite, 1))
    last = len(points) - 1
    output = [[*(point**power for point in finite), power == last] for power in range(len(points))]
    return Scheme(cost, *(tuple(tuple(map(float, row)) for row in matrix) for matrix in (kernel, image, output)))


def _coefficients(roots: Sequence[Fraction], highest: Fraction | int) -> list[Fraction | int]:
    """Of the polynomial with these roots, from the constant to the highest."""
    result: list[Fraction | int] = [highest]
    for root in roots:
        result = [low - root * high for low, high in zip([0, *result], [*result, 0], strict=True)]
    return result


HALF, THIRD, FIFTH = (Fraction(1, part) for part in (2, 3, 5))
# Points whose rounding errors are least, of those that were tried. Root mean squares in float32, as a share of the
# deviation, of outputs and of kernel gradients, 64 channels: the definition 2e-7 and 3e-7; these 3e-7 and 6e-7, 6e-7
# and 1.3e-6, 8e-7 and 1.7e-6, 2.0e-6 and 4.6e-6. By 1/2 and 2 for 2/3 and 3/2 F(4x4, 3x3) makes 1.1e-6 and 2.5e-6.
SCHEMES = (
    scheme_of(1, 1, -1),
    scheme_of(1.15, 1, -HALF, -2),
    scheme_of(1.25, 2 * THIRD, -2 * THIRD, 3 * HALF, -3 * HALF),
    scheme_of(1.4, 1, 2 * FIFTH, 5 * HALF, -2 * THIRD, -3 * HALF),
)

# The transformed tiles of one chunk of the batch should stay in a CPU's cache; the optimum is flat.
CHUNK_BYTES = 4 * 2**20


def winograd_conv(
    x: Float[Array, "batch height width in_channel"],
    kernel: Float[Array, "3 3 in_channel out_channel"],
    padding: Padding,
) -> Float[Array, "batch out_height out_width out_channel"]:
    """Cross-correlate images, padded by ((top, bottom), (left, right)) zeros, with a 3x3 kernel."""
    scheme = scheme_for(*_outputs(x, padding))
    return _convolve(x, _kernel_numbers(kernel, scheme), padding, scheme, contract=1)


def winograd_turned_conv(
    x: Float[Array, "batch height width out_channel"],
    kernel: Float[Array, "3 3 in_channel out_channel"],
    padding: Padding,
) -> Float[Array, "batch out_height out_width in_channel"]:
    """`winograd_conv` with the kernel turned by 180 degrees and its channels exchanged, as the input gradient needs."""
    scheme = scheme_for(*_outputs(x, padding))
    return _convolve(x, _kernel_numbers(kernel, scheme), padding, scheme.turned, contract=2)


def winograd_kernel_gradient(
    x: Float[Array, "batch height width in_channel"],
    grad: Float[Array, "batch out_height out_width out_channel"],
    padding: Padding,
) -> Float[Array, "3 3 in_channel out_channel"]:
    """Gradient of `winograd_conv` with respect to the kernel, from that with respect to its output."""
    height, width = grad.shape[1:3]
    scheme = scheme_for(height, width)
    step = scheme.outputs

    def gradient(images: Array, grad: Array) -> list[Array]:
        grad = jnp.pad(grad, ((0, 0), (0, -height % step), (0, -width % step), (0, 0)))
        by_row, tiles = _tiles(scheme.image, _pad(images, height, width, padding, step), height, width, step)
        grad_by_row, spread = _tiles(_transposed(scheme.output), grad, height, width, step)
        return _products(tiles, spread, (1, 1), [by_row, grad_by_row])

    channels = (x.shape[-1], grad.shape[-1])
    # Every chunk reads and writes the whole sum: with many channels, larger chunks.
    size = max(CHUNK_BYTES, len(scheme.image) ** 2 * channels[0] * channels[1] * x.dtype.itemsize)
    tiles = scheme.numbers(height, width) * max(channels) * x.dtype.itemsize
    totals = sum_chunks(gradient, (x, grad), max(1, size // tiles))
    columns = [column for total in totals for column in _columns(total, scheme)]
    by_row = _combine(_transposed(scheme.kernel), columns, axis=1)
    return _combine(_transposed(scheme.kernel), list(by_row))


def _outputs(x: Array, padding: Padding) -> tuple[int, int]:
    (_, height, width, _), ((top, bottom), (left, right)) = x.shape, padding
    return height + top + bottom - 2, width + left + right - 2


def scheme_for(height: int, width: int) -> Scheme:
    """The scheme that takes least time for so many outputs, by its numbers and what each costs."""
    return min(SCHEMES, key=lambda scheme: scheme.cost * scheme.numbers(height, width))


def _convolve(x: Array, factors: list[Array], padding: Padding, scheme: Scheme, contract: int) -> Array:
    (height, width), step = _outputs(x, padding), scheme.outputs
    rows, columns = -(-height // step), -(-width // step)

    def convolve(images: Array) -> Array:
        by_row, tiles = _tiles(scheme.image, _pad(images, height, width, padding, step), height, width, step)
        by_column = []
        for numbers in _products(tiles, factors, (2, contract), [by_row]):
            products = _columns(numbers, scheme)
            # Each row sliced, not all transposed, which XLA would make a copy for.
            combined = _combine(scheme.output, [products[:, i] for i in range(len(scheme.image))], axis=1)
            # Rows first, and kept: columns, added as they are interleaved, would read the products against the grain.
            by_column.extend(lax.optimization_barrier(combined))
        parts = _combine(scheme.output, by_column, axis=2)
        whole = parts.reshape(step, len(images), rows, columns, step, -1).transpose(1, 2, 0, 3, 4, 5)
        return whole.reshape(len(images), step * rows, step * columns, -1)[:, :height, :width]

    tiles = scheme.numbers(height, width) * x.shape[-1] * x.dtype.itemsize
    return map_chunks(convolve, x, max(1, CHUNK_BYTES // tiles))


def _products(left: list[Array], right: list[Array], contract: tuple[int, int], sources: list[Array]) -> list[Array]:
    """Batched products over one dimension of each, at once as far as XLA's threads go.

    What a product writes, XLA may put in the place of what another one reads, or of what that is made of, `sources`:
    then one waits for the other. So all of it is kept until the last product is there, by a branch that reads it and is
    never taken: no optimization knows that no number is both above one and below zero.
    """
    dimensions = (((contract[0],), (contract[1],)), ((0,), (0,)))
    products = [lax.dot_general(*pair, dimensions) for pair in zip(left, right, strict=True)]
    if len(products) == 1:
        return products
    number = products[0][0, 0, 0]

    def read(products: list[Array], inputs: list[Array]) -> list[Array]:
        first = sum(array[(0,) * array.ndim] for array in inputs)
        return [products[0].at[0, 0, 0].set(first), *products[1:]]

    def keep(products: list[Array], _inputs: list[Array]) -> list[Array]:
        return products

    return lax.cond((number > 1) & (number < 0), read, keep, products, [*left, *right, *sources])


def _kernel_numbers(kernel: Array, scheme: Scheme) -> list[Array]:
    """The kernel transformed: [numbers of some columns, in_channel, out_channel]."""
    by_row = lax.optimization_barrier(_combine(scheme.kernel, list(kernel)))
    return _numbers(scheme.kernel, [by_row[:, i] for i in range(3)])


def _tiles(matrix: Matrix, images: Array, height: int, width: int, step: int) -> tuple[Array, list[Array]]:
    """Tiles `step` rows and columns apart: their rows transformed, and the columns of these.

    The second are [numbers of some columns, tiles, channel].
    """
    taps = range(len(matrix[0]))
    by_row = _combine(matrix, [images[:, i : i + height : step] for i in taps])
    by_row = lax.optimization_barrier(by_row)  # else XLA would compute it anew for every column
    return by_row, _numbers(matrix, [by_row[:, :, :, j : j + width : step] for j in taps])


def _numbers(matrix: Matrix, terms: Sequence[Array]) -> list[Array]:
    """matrix @ terms, in an array for each core, which has the numbers of some columns: [numbers, ..., last]."""
    side = len(matrix)
    arrays = min(side, cpu_count())
    bounds = [side * i // arrays for i in range(arrays + 1)]
    squares = [_combine(matrix[first:last], terms) for first, last in pairwise(bounds)]
    return [square.reshape(len(square) * side, -1, square.shape[-1]) for square in squares]


def _pad(images: Array, height: int, width: int, padding: Padding, step: int) -> Array:
    """Zeros around images, and behind the last row and column as far as the last tile reaches."""
    (top, bottom), (left, right) = padding
    return jnp.pad(images, ((0, 0), (top, bottom + -height % step), (left, right + -width % step), (0, 0)))


def _columns(numbers: Array, scheme: Scheme) -> Array:
    """[columns, rows, ...] of what is [numbers of some columns, ...]."""
    return numbers.reshape(-1, len(scheme.image), *numbers.shape[1:])


def _combine(matrix: Matrix, terms: Sequence[Array], axis: int = 0) -> Array:
    """matrix @ terms, written out without the zeros, along a new axis."""
    sums = []
    for row in matrix:
        parts = [term if factor == 1 else factor * term for factor, term in zip(row, terms, strict=True) if factor]
        sums.append(sum(parts[1:], start=parts[0]))
    return jnp.stack(sums, axis)


def _transposed(matrix: Matrix) -> Matrix:
    return tuple(zip(*matrix, strict=True))
