"""What augmentation does to images and what convolutions see in them, as arrays to be drawn."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Float, UInt8

from jax_cifar.augment import SampleInfo, Sometimes, compose, make_mixer
from jax_cifar.config import Config
from jax_cifar.errors import CheckpointError
from jax_cifar.evaluation.capture import capture
from jax_cifar.ops.conv import conv2d
from jax_cifar.run.load import Run
from jax_cifar.training.keys import Purpose, purpose_key, run_key

NEIGHBOURS = 1 << 16  # a row's number plus this draws for what the row is mixed with
# Kernel size, stride and padding of the convolutions that are shown beside each other.
SETTINGS = tuple((size, stride, padding) for size in (3, 5, 9) for stride in (1, 2) for padding in (0, size // 2))


class Row(NamedTuple):
    """Pictures that belong together: one original, and what was made of it."""

    label: str
    original: Float[np.ndarray, "height width channel"]
    results: Float[np.ndarray, "columns height width channel"]


class Panel(NamedTuple):
    """One picture with its title: [height, width, 1 or 3], or a map [height, width] of any range."""

    title: str
    image: np.ndarray


def augmentation_rows(config: Config, images: UInt8[np.ndarray, "n height width channel"], columns: int) -> list[Row]:
    """A row for each transform of the configuration, one for its mixing, and one for all of it together.

    Row i shows image i (modulo n) of those given and `columns` independent draws of what becomes of it.
    """
    key, transforms, mixer = run_key(config.train.seed), config.augment, make_mixer(config.mix)
    pixels = jnp.asarray(images, jnp.float32) / 255
    info = SampleInfo(jnp.arange(columns), jnp.zeros((), jnp.int32))

    def draws(row: int, chosen: Sequence[Any]) -> jax.Array:
        same = jnp.repeat(pixels[row % len(pixels)][None], columns, axis=0)
        return compose(chosen)(purpose_key(key, Purpose.AUGMENT, row), same, info)

    def mixed(row: int, chosen: Sequence[Any]) -> np.ndarray:
        """Image `row` after transforms and mixing with one after the other of its neighbours, as a batch of two."""
        results = draws(row, chosen)
        if mixer is not None:
            neighbours = pixels[(row + 1 + np.arange(columns)) % len(pixels)]
            neighbours = compose(chosen)(purpose_key(key, Purpose.AUGMENT, NEIGHBOURS + row), neighbours, info)
            pairs = [jnp.stack(pair) for pair in zip(results, neighbours, strict=True)]
            keys = [purpose_key(key, Purpose.MIX, row * columns + column) for column in range(columns)]
            results = jnp.stack([mixer(own, pair, jnp.eye(2))[0][0] for own, pair in zip(keys, pairs, strict=True)])
        return np.asarray(results)

    rows = [(describe(transform), np.asarray(draws(i, (transform,)))) for i, transform in enumerate(transforms)]
    if mixer is not None:
        rows.append(("mixing", mixed(len(rows), ())))
    rows.append(("all together", mixed(len(rows), transforms)))
    return [Row(label, np.asarray(pixels[i % len(pixels)]), results) for i, (label, results) in enumerate(rows)]


def describe(transform: Any) -> str:
    """Name of a transform; a group's with those of its members."""
    members = getattr(transform, "transforms", ()) or ([transform.inner] if isinstance(transform, Sometimes) else [])
    inside = ", ".join(map(describe, members))
    return type(transform).__name__ + (f"({inside})" if inside else "")


def edge_kernel(size: int) -> Float[np.ndarray, "size size"]:
    """A filter for vertical edges: the derivative along the row of a Gaussian whose sigma is a fifth of `size`."""
    positions = np.arange(size) - (size - 1) / 2
    bell = np.exp(-(positions**2) / (2 * (size / 5) ** 2))
    kernel = np.outer(bell, -positions * bell)
    return kernel / np.abs(kernel).sum()


def filter_panels(image: UInt8[np.ndarray, "height width channel"]) -> list[Panel]:
    """The image, and what one filter for vertical edges makes of it at several sizes, strides and paddings.

    A filter that is larger than the padded image is left out.
    """
    grey = jnp.asarray(image, jnp.float32).mean(-1)[None, :, :, None] / 255
    panels = [Panel(f"image, {image.shape[0]} x {image.shape[1]}", image / 255)]
    for size, stride, padding in SETTINGS:
        if size > min(image.shape[:2]) + 2 * padding:
            continue
        kernel = jnp.asarray(edge_kernel(size), jnp.float32)[:, :, None, None]
        result = np.asarray(conv2d(grey, kernel, (stride, stride), ((padding, padding), (padding, padding))))
        height, width = result.shape[1:3]
        panels.append(
            Panel(f"{size}x{size}, stride {stride}, padding {padding}: {height} x {width}", result[0, ..., 0])
        )
    return panels


def first_kernel(run: Run, channels: int) -> tuple[str, Float[np.ndarray, "height width channel filters"]]:
    """Name and weights of a network's first convolution: the one whose kernel reads so many channels.

    Raises `CheckpointError` for a network without.
    """
    params: dict[str, Any] = dict(flatten_dict(run.variables["params"], sep="/"))
    names = [name for name, leaf in params.items() if leaf.ndim == 4 and leaf.shape[2] == channels]
    if not names:
        raise CheckpointError(f"{run.config.name} has no first convolution to show.")
    return names[0], np.asarray(params[names[0]], np.float32)


def filter_tiles(
    kernel: Float[np.ndarray, "height width channel filters"],
) -> list[Float[np.ndarray, "height width channel"]]:
    """The filters of a kernel, each brought to the range 0 to 1."""
    filters = np.moveaxis(kernel, -1, 0)
    return [(each - each.min()) / max(each.max() - each.min(), 1e-12) for each in filters]


def first_layer_panels(run: Run, image: UInt8[np.ndarray, "height width channel"]) -> tuple[list[Panel], list[Panel]]:
    """The filters of a network's first convolution, and what they make of an image.

    Raises `CheckpointError` for a network without.
    """
    name, kernel = first_kernel(run, image.shape[-1])
    path = name.rpartition("/")[0]
    outputs = capture(run, image[None], path)[path][0]
    filters = [Panel(f"filter {i}", tile) for i, tile in enumerate(filter_tiles(kernel))]
    return filters, [Panel(f"map {i}", outputs[..., i]) for i in range(outputs.shape[-1])]
