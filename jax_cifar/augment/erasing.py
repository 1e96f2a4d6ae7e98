"""Transforms that remove a part of each image."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from jax_cifar.augment.base import Images, SampleInfo, Transform, check_integer, check_number


@dataclass(frozen=True)
class Cutout(Transform):
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

    def __call__(self, key: PRNGKeyArray, images: Images, info: SampleInfo | None = None) -> Images:
        sizes = jnp.asarray(images.shape[1:3], jnp.int32)[:, None]
        return self.erase(images, jax.random.randint(key, (2, images.shape[0]), 0, sizes, jnp.int32))

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
