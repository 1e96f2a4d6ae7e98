"""What the modules of a network return for many images, in a few numbers each."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from jax_cifar.backend.compiler import one_program_at_a_time
from jax_cifar.evaluation.capture import BATCH, batches, make_watched, outputs
from jax_cifar.models.network import Network


class Activations(NamedTuple):
    """The outputs of one module for so many images; all that was seen of a channel counts for it."""

    shape: tuple[int, ...]  # of an image: (height, width, channel), or (feature,)
    mean: float
    sd: float
    silent: float  # share of values that are not above zero: what a ReLU behind it turns to zero
    # share of channels that are above zero in no image, at no place: behind a ReLU they tell nothing and learn nothing
    dead: float


def activations(
    network: Network,
    variables: Mapping[str, Any],
    images: UInt8[np.ndarray, "n height width channel"],
    names: Sequence[str],
    batch_size: int = BATCH,
) -> dict[str, Activations]:
    """Statistics of the outputs of these modules at evaluation, by name, over all images and places.

    Of a module that comes right before a ReLU, or before pooling and a ReLU, `silent` and `dead` are those of the ReLU.
    """
    watched = make_watched(network, names)

    @jax.jit
    def summed(variables: Any, images: Array, counted: Bool[Array, " batch"]) -> dict[str, Any]:
        return {name: _sums(values, counted) for name, values in watched(variables, images).items()}

    shapes = outputs(network, variables)
    totals = {name: _Total(shapes[name].shape[1:]) for name in names}
    for rows, batch in batches(network, images, batch_size):
        counted = np.arange(len(batch)) < rows.stop - rows.start
        with one_program_at_a_time():
            found = jax.device_get(summed(variables, batch, counted))
        for name, sums in found.items():
            totals[name].add(rows.stop - rows.start, *sums)
    return {name: total.read() for name, total in totals.items()}


def _sums(values: Float[Array, "batch ..."], counted: Bool[Array, " batch"]) -> tuple[Array, ...]:
    """Of the images that count: mean, squares about it, how many values are above zero, which channels ever are."""
    mask = counted.reshape(-1, *[1] * (values.ndim - 1))
    count = counted.sum(dtype=values.dtype) * (values.size // len(values))
    mean = jnp.where(mask, values, 0).sum() / count
    squares = jnp.where(mask, jnp.square(values - mean), 0).sum()
    above = (values > 0) & mask
    return mean, squares, above.sum(), above.reshape(-1, values.shape[-1]).any(0)


class _Total:
    """Sums over batches; variances are joined as Chan, Golub and LeVeque do (1979)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape, self.alive = shape, np.zeros(shape[-1:], bool)
        self.count, self.mean, self.squares, self.above = 0, 0.0, 0.0, 0

    def add(self, images: int, mean: np.ndarray, squares: np.ndarray, above: np.ndarray, alive: np.ndarray) -> None:
        """Take in a batch of so many images."""
        count = images * math.prod(self.shape)
        apart, whole = float(mean) - self.mean, self.count + count
        self.squares += float(squares) + apart**2 * self.count * count / whole
        self.mean += apart * count / whole
        self.count, self.above, self.alive = whole, self.above + int(above), self.alive | alive

    def read(self) -> Activations:
        """The statistics of all that was added."""
        silent, dead = 1 - self.above / self.count, 1 - float(self.alive.mean())
        return Activations(self.shape, self.mean, (self.squares / self.count) ** 0.5, silent, dead)
