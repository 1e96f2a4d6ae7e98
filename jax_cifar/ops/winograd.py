"""3x3 convolution of stride 1 by Winograd's F(2x2, 3x3): 16 products per 2x2 outputs, where the definition takes 36.

Source: Lavin and Gray, arXiv 1509.09308. A tile of 4x4 pixels and a 3x3 kernel each become 4x4 numbers by the matrices
below; the products of the two, summed over the channels, become 2x2 outputs. Tiles of all images together make 16
matrix products. Rounding errors are about those of the definition: the matrices hold nothing but 0, 1 and 1/2.

A transformed array is a list over the columns of the 4x4 numbers, each [4 rows, ...]: so the products are four batched
ones, and XLA has few, large loops to compile.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jax_cifar.backend.portions import map_chunks, sum_chunks

Matrix = Sequence[Sequence[float]]
Padding = tuple[tuple[int, int], tuple[int, int]]

KERNEL: Matrix = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))  # G of the paper
IMAGE: Matrix = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))  # B transposed
OUTPUT: Matrix = ((1, 1, 1, 0), (0, 1, -1, -1))  # A transposed
# Turning a kernel by 180 degrees exchanges the first and the last of its four numbers, in rows and in columns.
TURNED_IMAGE: Matrix = (IMAGE[3], IMAGE[1], IMAGE[2], IMAGE[0])
TURNED_OUTPUT: Matrix = tuple((row[3], row[1], row[2], row[0]) for row in OUTPUT)

# The transformed tiles of one chunk of the batch should stay in a CPU's cache; the optima are flat.
CHUNK_BYTES = 8 * 2**20
GRADIENT_CHUNK_BYTES = 4 * 2**20


def winograd_conv(
    x: Float[Array, "batch height width in_channel"],
    kernel: Float[Array, "3 3 in_channel out_channel"],
    padding: Padding,
) -> Float[Array, "batch out_height out_width out_channel"]:
    """Cross-correlate images, padded by ((top, bottom), (left, right)) zeros, with a 3x3 kernel."""
    return _convolve(x, _kernel_numbers(kernel), padding, IMAGE, OUTPUT, contract=1)


def winograd_turned_conv(
    x: Float[Array, "batch height width out_channel"],
    kernel: Float[Array, "3 3 in_channel out_channel"],
    padding: Padding,
) -> Float[Array, "batch out_height out_width in_channel"]:
    """`winograd_conv` with the kernel turned by 180 degrees and its channels exchanged, as the input gradient needs."""
    return _convolve(x, _kernel_numbers(kernel), padding, TURNED_IMAGE, TURNED_OUTPUT, contract=2)


def winograd_kernel_gradient(
    x: Float[Array, "batch height width in_channel"],
    grad: Float[Array, "batch out_height out_width out_channel"],
    padding: Padding,
) -> Float[Array, "3 3 in_channel out_channel"]:
    """Gradient of `winograd_conv` with respect to the kernel, from that with respect to its output."""
    height, width = grad.shape[1:3]

    def gradient(images: Array, grad: Array) -> Array:
        grad = jnp.pad(grad, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
        pairs = zip(
            _tiles(IMAGE, _pad(images, height, width, padding), height, width),
            _tiles(_transposed(OUTPUT), grad, height, width),
            strict=True,
        )
        return jnp.stack([lax.dot_general(tiles, spread, (((1,), (1,)), ((0,), (0,)))) for tiles, spread in pairs])

    channels = (x.shape[-1], grad.shape[-1])
    # Every chunk reads and writes the whole sum: with many channels, larger chunks.
    size = max(GRADIENT_CHUNK_BYTES, 16 * channels[0] * channels[1] * x.dtype.itemsize)
    total = sum_chunks(gradient, (x, grad), _images_in(size, max(channels), height, width, x.dtype.itemsize))
    by_column = _combine(_transposed(KERNEL), list(total))
    return jnp.stack([jnp.stack(_combine(_transposed(KERNEL), list(column))) for column in by_column], 1)


def _images_in(size: int, channels: int, height: int, width: int, itemsize: int) -> int:
    """How many images have transformed tiles of `size` bytes together; at least one."""
    return max(1, size // (16 * -(-height // 2) * -(-width // 2) * channels * itemsize))


def _convolve(x: Array, factors: list[Array], padding: Padding, image: Matrix, output: Matrix, contract: int) -> Array:
    height, width = (size + low + high - 2 for size, (low, high) in zip(x.shape[1:3], padding, strict=True))
    rows, columns = -(-height // 2), -(-width // 2)

    def convolve(images: Array) -> Array:
        tiles = _tiles(image, _pad(images, height, width, padding), height, width)
        sums = (((2,), (contract,)), ((0,), (0,)))
        products = [lax.dot_general(t, factor, sums) for t, factor in zip(tiles, factors, strict=True)]
        by_column = lax.optimization_barrier(_combine(output, products))
        parts = [jnp.stack(_combine(output, list(column))) for column in by_column]
        whole = jnp.stack(parts, -2).reshape(2, len(images), rows, columns, 2, -1).transpose(1, 2, 0, 3, 4, 5)
        return whole.reshape(len(images), 2 * rows, 2 * columns, -1)[:, :height, :width]

    return map_chunks(convolve, x, _images_in(CHUNK_BYTES, x.shape[-1], height, width, x.dtype.itemsize))


def _kernel_numbers(kernel: Array) -> list[Array]:
    """The kernel transformed: four times [4, in_channel, out_channel]."""
    by_row = lax.optimization_barrier(jnp.stack(_combine(KERNEL, list(kernel))))
    return _combine(KERNEL, [by_row[:, i] for i in range(3)])


def _tiles(matrix: Matrix, images: Array, height: int, width: int) -> list[Array]:
    """Tiles at every second row and column, transformed: four times [4, tiles, channel]."""
    taps = range(len(matrix[0]))
    by_row = jnp.stack(_combine(matrix, [images[:, i : i + height : 2] for i in taps]))
    by_row = lax.optimization_barrier(by_row)  # else XLA would compute it anew for every column
    tiles = _combine(matrix, [by_row[:, :, :, j : j + width : 2] for j in taps])
    return [t.reshape(4, -1, t.shape[-1]) for t in tiles]


def _pad(images: Array, height: int, width: int, padding: Padding) -> Array:
    """Zeros around images, and behind the last row and column where an odd number is to come out."""
    (top, bottom), (left, right) = padding
    return jnp.pad(images, ((0, 0), (top, bottom + height % 2), (left, right + width % 2), (0, 0)))


def _combine(matrix: Matrix, terms: Sequence[Array]) -> list[Array]:
    """matrix @ terms, written out without the zeros."""
    sums = []
    for row in matrix:
        parts = [term if factor == 1 else factor * term for factor, term in zip(row, terms, strict=True) if factor]
        sums.append(sum(parts[1:], start=parts[0]))
    return sums


def _transposed(matrix: Matrix) -> Matrix:
    return tuple(zip(*matrix, strict=True))
