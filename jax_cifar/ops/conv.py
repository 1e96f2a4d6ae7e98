"""Two-dimensional convolution that is fast on CPU, gradients included, also inside `lax.scan`.

XLA's CPU backend has a fast convolution for NHWC images and HWIO kernels only. It rearranges other layouts in the entry
computation, never in a loop body, and JAX writes both gradients of a convolution in other layouts: inside a scan they
fall back to naive loops. Here both gradients are therefore written as NHWC/HWIO convolutions, and that of a kernel of
many channels as matrix products. 3x3 convolutions between many channels go by Winograd's algorithm, all three ways.
GPU and TPU keep JAX's own; the platform that is lowered for decides. So does a program for an unknown number of images.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import sequential_vmap
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jax_cifar.backend.portions import sum_chunks
from jax_cifar.ops.winograd import winograd_conv, winograd_kernel_gradient, winograd_turned_conv

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]
Images = Float[Array, "_ _ _ _"]  # batch, height, width, channel, each of its own size
Kernel = Float[Array, "_ _ _ _"]  # height, width, in_channel, out_channel

# One chunk of the kernel gradient, with its shifted copies, should stay in a CPU's cache; the optimum is flat.
CHUNK_BYTES = 4 * 2**20
# Up to this many channels on one side a convolution whose images are these channels beats products for the rows.
MAX_CHANNELS_AS_IMAGES = 24
# Up to this many inputs per output (4x4 of RGB: 48) a product with explicit patches beats XLA's CPU convolution.
MAX_PATCH_SIZE = 48
# Winograd's algorithm saves products, which are as many as inputs times outputs, for transforms, which are as many as
# inputs and outputs: so it pays where in * out / (in + out) is at least this, which 32 inputs and outputs make 16.
# XLA's convolution is worse with few results of many channels, as input gradients have them, too, and for kernel
# gradients.
WINOGRAD_CHANNELS = 16
WINOGRAD_FEWER_CHANNELS = 9  # as many outputs as inputs, or fewer
WINOGRAD_INPUT_GRADIENT_CHANNELS = 12
WINOGRAD_KERNEL_GRADIENT_CHANNELS = 9


def conv2d(
    x: Float[Array, "batch height width in_channel"],
    kernel: Float[Array, "kernel_height kernel_width in_channel out_channel"],
    strides: Pair = (1, 1),
    padding: Padding = ((0, 0), (0, 0)),
) -> Float[Array, "batch out_height out_width out_channel"]:
    """Cross-correlate images with a kernel, as `torch.nn.functional.conv2d`; the caller adds the bias.

    Padding is ((top, bottom), (left, right)) zeros in pixels. Differentiable once, in reverse mode only.
    Shard it through `jax.jit`; `jax.shard_map` needs check_vma=False.
    """
    return _conv(x, kernel, strides, padding)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv(x: Images, kernel: Kernel, strides: Pair, padding: Padding) -> Images:
    options = {"strides": strides, "padding": padding}
    if not isinstance(x.shape[0], int):
        # Of a program that is exported for any number of images, which cannot be cut in parts, and for any platform.
        return _stock_conv(x, kernel, **options)
    cpu, default = partial(_cpu_conv, **options), partial(_even_conv, **options)
    return lax.platform_dependent(x, kernel, cpu=cpu, default=default)


def _forward(x: Images, kernel: Kernel, strides: Pair, padding: Padding) -> tuple[Images, tuple[Images, Kernel]]:
    return _conv(x, kernel, strides, padding), (x, kernel)


def _backward(strides: Pair, padding: Padding, saved: tuple[Images, Kernel], grad: Images) -> tuple[Images, Kernel]:
    options = {"strides": strides, "padding": padding}
    return lax.platform_dependent(
        *saved, grad, cpu=partial(_cpu_gradients, **options), default=partial(_stock_gradients, **options)
    )


_conv.defvjp(_forward, _backward)


def _stock_conv(x: Images, kernel: Kernel, strides: Pair, padding: Padding, dilation: Pair = (1, 1)) -> Images:
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, strides, padding, lhs_dilation=dilation, dimension_numbers=layout)


def _even_conv(x: Images, kernel: Kernel, strides: Pair, padding: Padding) -> Images:
    """JAX's own with as many zeros on both sides, and then cut: cuDNN has no other, and XLA would first make a copy."""
    if strides != (1, 1) or all(low == high for low, high in padding):
        return _stock_conv(x, kernel, strides, padding)
    rows, columns = (max(sides) for sides in padding)
    y = _stock_conv(x, kernel, strides, ((rows, rows), (columns, columns)))
    (top, bottom), (left, right) = padding
    height, width = y.shape[1:3]
    return y[:, rows - top : height - (rows - bottom), columns - left : width - (columns - right)]


def _cpu_conv(x: Images, kernel: Kernel, strides: Pair, padding: Padding) -> Images:
    inputs, outputs = kernel.shape[2:]
    least = WINOGRAD_CHANNELS if outputs > inputs else WINOGRAD_FEWER_CHANNELS
    if _suits_winograd(kernel, strides, padding, least):
        return winograd_conv(x, kernel, padding)
    if kernel[..., 0].size <= MAX_PATCH_SIZE:
        return _patch_conv(x, kernel, strides, padding)
    return _stock_conv(x, kernel, strides, padding)


def _suits_winograd(kernel: Kernel, strides: Pair, padding: Padding, least: float) -> bool:
    height, width, inputs, outputs = kernel.shape
    wide = kernel.dtype.itemsize >= 4 and inputs * outputs >= least * (inputs + outputs)
    return wide and (height, width) == (3, 3) and strides == (1, 1) and min(map(min, padding)) >= 0


def _stock_gradients(x: Images, kernel: Kernel, grad: Images, strides: Pair, padding: Padding) -> tuple[Images, Kernel]:
    def gradients(x: Images, kernel: Kernel, grad: Images) -> tuple[Images, Kernel]:
        _, vjp = jax.vjp(partial(_even_conv, strides=strides, padding=padding), x, kernel)
        return vjp(grad)

    # The vmap of jax 0.7 has no rule for them: there the members of a batch go one after another.
    one_by_one = jax.__version_info__ < (0, 8)
    return (sequential_vmap(gradients) if one_by_one else gradients)(x, kernel, grad)


def _patch_conv(x: Images, kernel: Kernel, strides: Pair, padding: Padding) -> Images:
    """Convolution as one matrix product with [batch, out_height, out_width, kernel_height * kernel_width * channel]."""
    kernel_height, kernel_width, _, out_channel = kernel.shape
    patches = _shifts(_columns(_pad(x, padding), kernel_width, strides[1]), kernel_height, strides[0], axis=1)
    return jnp.concatenate(patches, -1) @ kernel.reshape(-1, out_channel)


def _cpu_gradients(x: Images, kernel: Kernel, grad: Images, strides: Pair, padding: Padding) -> tuple[Images, Kernel]:
    x_grad = _input_gradient(x.shape[1:3], kernel, grad, strides, padding)
    return x_grad, _kernel_gradient(x, kernel, grad, strides, padding)


def _input_gradient(
    image_size: tuple[int, ...], kernel: Kernel, grad: Images, strides: Pair, padding: Padding
) -> Images:
    """Correlate the output gradient, spread out by the strides, with the kernel turned by 180 degrees."""
    edges = []
    for size, taps, out, stride, (low, high) in zip(
        image_size, kernel.shape[:2], grad.shape[1:3], strides, padding, strict=True
    ):
        unread = size + low + high - taps - stride * (out - 1)
        edges.append((taps - 1 - low, taps - 1 - high + unread))
    padding = tuple(edges)
    if _suits_winograd(kernel, strides, padding, WINOGRAD_INPUT_GRADIENT_CHANNELS):
        return winograd_turned_conv(grad, kernel, padding)
    return _stock_conv(grad, kernel[::-1, ::-1].swapaxes(2, 3), (1, 1), padding, dilation=strides)


def _kernel_gradient(x: Images, kernel: Kernel, grad: Images, strides: Pair, padding: Padding) -> Kernel:
    """Sum over pixels of input shifted by each tap times output gradient, in chunks of the batch that fit the cache."""
    if _suits_winograd(kernel, strides, padding, WINOGRAD_KERNEL_GRADIENT_CHANNELS):
        return winograd_kernel_gradient(x, grad, padding)
    accumulate = x.dtype if x.dtype.itemsize >= 4 else jnp.float32
    (_, kernel_width, in_channel, out_channel), (height, width) = kernel.shape, grad.shape[1:3]
    turned = _covers(grad, x) and (out_channel < in_channel or not _covers(x, grad))
    images, other = (grad, x) if turned else (x, grad)
    few = images.shape[3] <= MAX_CHANNELS_AS_IMAGES
    if few and _covers(images, other) and strides == (1, 1) and kernel.shape[:2] != (1, 1):
        gradient = _gradient_by_output_channel if turned else _gradient_by_channel
        size = x[0].size + grad[0].size
    else:
        gradient, size = _gradient_by_row, height * width * (kernel_width * in_channel + out_channel)
    limit = max(1, CHUNK_BYTES // (size * x.dtype.itemsize))
    part = partial(gradient, shape=kernel.shape, strides=strides, padding=padding, accumulate=accumulate)
    return sum_chunks(part, (x, grad), limit).astype(kernel.dtype)


def _gradient_by_row(
    x: Images, grad: Images, shape: tuple[int, ...], strides: Pair, padding: Padding, accumulate: DTypeLike
) -> Kernel:
    """A product for every row of the kernel: the columns of the row's pixels times the gradient."""
    kernel_height, kernel_width, in_channel, out_channel = shape
    columns = _columns(_pad(x, padding), kernel_width, strides[1])
    rows = [row.reshape(-1, row.shape[-1]) for row in _shifts(columns, kernel_height, strides[0], axis=1)]
    pixels = grad.reshape(-1, out_channel)
    product = partial(jnp.matmul, preferred_element_type=accumulate)
    if columns.shape[-1] < out_channel:
        return jnp.stack([product(row.T, pixels) for row in rows]).reshape(shape)
    # The barrier keeps the transposed copy: XLA would fold it into each product, and read it against the grain.
    left = lax.optimization_barrier(pixels.T)
    by_row = jnp.stack([product(left, row) for row in rows])
    return by_row.reshape(kernel_height, out_channel, kernel_width, in_channel).transpose(0, 2, 3, 1)


def _gradient_by_channel(
    x: Images, grad: Images, shape: tuple[int, ...], strides: Pair, padding: Padding, accumulate: DTypeLike
) -> Kernel:
    """A convolution: every input channel as an image, whose channels are the images of the batch, with the gradient."""
    # The barriers keep the copies: XLA's convolution is fast in this layout only.
    by_channel = lax.optimization_barrier(x.transpose(3, 1, 2, 0))
    kernel = lax.optimization_barrier(grad.transpose(1, 2, 0, 3))
    layout = ("NHWC", "HWIO", "NHWC")
    total = lax.conv_general_dilated(
        by_channel, kernel, strides, padding, dimension_numbers=layout, preferred_element_type=accumulate
    )
    return total.transpose(1, 2, 0, 3)


def _gradient_by_output_channel(
    x: Images, grad: Images, shape: tuple[int, ...], strides: Pair, padding: Padding, accumulate: DTypeLike
) -> Kernel:
    """The same with both sides exchanged: seen from the gradient, every tap lies on the other side."""
    (top, bottom), (left, right) = padding
    rows, columns = shape[0] - 1, shape[1] - 1
    padding = ((rows - top, rows - bottom), (columns - left, columns - right))
    turned = _gradient_by_channel(grad, x, shape, strides, padding, accumulate)
    return turned[::-1, ::-1].swapaxes(2, 3)


def _covers(images: Images, kernel: Images) -> bool:
    """Whether a convolution of these images with such a kernel is fast: XLA is naive where the kernel is larger."""
    return images.shape[1] >= kernel.shape[1] and images.shape[2] >= kernel.shape[2]


def _pad(x: Images, padding: Padding) -> Images:
    edges = ((0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0))
    return lax.pad(x, jnp.zeros((), x.dtype), edges)


def _columns(x: Images, taps: int, stride: int) -> Images:
    """What the taps along the width read, side by side: [batch, height, out_width, taps * channel]."""
    return jnp.concatenate(_shifts(x, taps, stride, axis=2), -1)


def _shifts(x: Images, taps: int, stride: int, axis: int) -> list[Images]:
    """What each tap along one axis reads: every stride-th row from the tap on, as many as the window has positions."""
    span = stride * ((x.shape[axis] - taps) // stride) + 1
    return [lax.slice_in_dim(x, tap, tap + span, stride, axis) for tap in range(taps)]
