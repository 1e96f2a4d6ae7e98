"""A small artificial set that a network learns within seconds: for tests and for trying things out offline.

Ten classes: five figures (stripes across, stripes down, checks, squares, diamonds), each in a warm and in a cold
colour. Mirror images stay in their class. Place, width, brightness and noise vary. Only integers are drawn and
computed, from a stream that NumPy promises never to change, so that every machine makes the same pixels.
"""

from functools import cache

import numpy as np
from jaxtyping import Int, UInt8

from jax_cifar.data.dataset import Dataset, Splits

_FIGURES = ("across", "down", "checks", "squares", "diamonds")
_COLOURS = ("warm", "cold")
_TRAIN_PER_CLASS, _TEST_PER_CLASS = 200, 50
_SIZE = 32


@cache
def load_synthetic() -> Splits:
    """2000 training and 500 test images, 32x32x3 uint8, the same number of every class; classes follow in turn.

    Made once in a process, and read-only.
    """
    names = tuple(f"{colour} {figure}" for figure in _FIGURES for colour in _COLOURS)
    train, test = _make(_TRAIN_PER_CLASS, seed=1), _make(_TEST_PER_CLASS, seed=2)
    return Splits("synthetic", train, test, None, names, "artificial images made on the spot")


def _make(per_class: int, seed: int) -> Dataset:
    classes = len(_FIGURES) * len(_COLOURS)
    count = per_class * classes
    random = np.random.Philox(key=seed)
    labels = np.arange(count) % classes
    figure, cold = np.divmod(labels, len(_COLOURS))
    shift, width, bright = _draws(random, count, 8), 3 + _draws(random, count, 3), 110 + _draws(random, count, 60)
    noise = _draws(random, count * _SIZE * _SIZE * 3, 80).reshape(count, _SIZE, _SIZE, 3)
    mask = _figures(figure, shift, width)
    # Warm figures are mostly red, cold ones mostly blue; the other channels get half of the brightness.
    share = np.where(cold[:, None] == 1, [1, 1, 2], [2, 1, 1])
    colour = (bright[:, None] * share) // 2
    images = mask[..., None] * colour[:, None, None, :] + noise
    images, labels = images.astype(np.uint8), labels.astype(np.int32)
    images.setflags(write=False)
    labels.setflags(write=False)
    return Dataset(images, labels)


def _draws(random: np.random.Philox, count: int, below: int) -> Int[np.ndarray, "n"]:
    return (random.random_raw(count) % np.uint64(below)).astype(np.int64)


def _figures(
    figure: Int[np.ndarray, "n"], shift: Int[np.ndarray, "n"], width: Int[np.ndarray, "n"]
) -> UInt8[np.ndarray, "n 32 32"]:
    """Where the figure covers the image (1) or not (0)."""
    shift, width = shift[:, None, None], width[:, None, None]
    down, right = np.arange(_SIZE)[None, :, None], np.arange(_SIZE)[None, None, :]
    row, column = (down + shift) // width, (right + shift) // width
    height, side = np.abs(down - _SIZE // 2), np.abs(right - _SIZE // 2)
    squares, diamonds = (np.maximum(height, side) + shift) // width, (height + side + shift) // width
    shape = np.broadcast_shapes(row.shape, column.shape)
    drawings = [np.broadcast_to(drawing, shape) for drawing in (row, column, row + column, squares, diamonds)]
    return (np.choose(figure[:, None, None], drawings) % 2).astype(np.uint8)
