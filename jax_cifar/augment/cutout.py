"""Transforms that remove a part of each image."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from jax_cifar.augment.base import Drawn, Images, SampleInfo, check_integer, check_number


@dataclass(frozen=True)
class Cutout(Drawn):
    """Fill one square of every image (DeVries and Taylor, arXiv 1708.04552).

    The square's centre is uniform over the image's pixels, so that the border clips some squares, as in the
    paper's code. Centred on row r, it covers the `length` rows from `r - length // 2` on; columns likewise.

    Raises:
        ConfigError: a parameter is out of range.
    """

    length: int = 8  # side of the square in pixels
    fill: float = 0.0  # value inside the square

    def __post_init__(self) -> None:
        check_integer(self, "length", least=1)
        check_number(self, "fill", 0.0, 1.0)

    def draw(self, key: PRNGKeyArray, shape: tuple[int, ...], info: SampleInfo | None = None) -> Int[Array, "batch 2"]:
        sizes = jnp.asarray(shape[1:3], jnp.int32)[:, None]
        return jax.random.randint(key, (2, shape[0]), 0, sizes, jnp.int32).T

    def transform(self, images: Images, draws: Int[Array, "batch 2"]) -> Images:
        return self.erase(images, draws.T)

    def erase(self, images: Images, centres: Int[Array, "2 batch"]) -> Images:
        """Fill the squares around `centres` (row, column)."""
        inside_row = self.covered(centres[0], images.shape[1])
        inside_column = self.covered(centres[1], images.shape[2])
        square = inside_row[:, :, None] & inside_column[:, None, :]
        return jnp.where(square[..., None], jnp.asarray(self.fill, images.dtype), images)

    def covered(self, centre: Int[Array, " batch"], size: int) -> Bool[Array, "batch size"]:
        """Which of `size` rows or columns a square around `centre` covers."""
        positions = jnp.arange(size, dtype=centre.dtype)[None, :]
        first = (centre - self.length // 2)[:, None]
        return (first <= positions) & (positions < first + self.length)
