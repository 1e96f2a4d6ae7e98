"""Transforms that bend images: random displacement of every pixel, and the unequal stretching of a grid.

Names and parameters are Albumentations'; the arithmetic is written from the definitions given below.
"""

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from jax_cifar.augment.base import Fill, Resampling, SampleInfo
from jax_cifar.augment.sampling import Grid, Move, PaddingMode, sample
from jax_cifar.backend.portions import materialize
from jax_cifar.config.checks import Probability, at_least_below, between

Noise = Float[Array, "batch height width 2"]
Stretch = Float[Array, "batch steps 2"]


class NoiseDraws(NamedTuple):
    """The key of every image's noise, which is only made for the images that need it."""

    keys: PRNGKeyArray  # [batch]
    applied: Bool[Array, " batch"]  # without noise nothing moves


@dataclass(frozen=True)
class ElasticTransform(Resampling):
    """Displace every pixel by smooth noise (Simard et al., ICDAR 2003).

    Rows and columns move by `alpha` times noise, uniform from -1 to 1, that a Gaussian of `sigma` pixels has smoothed,
    which leaves about `alpha / (6 * sigma)` pixels of standard deviation. The filter is SciPy's `gaussian_filter`:
    cut off at 4 sigma, the noise mirrored at the border. The defaults are the paper's, for digits of 29 pixels;
    Albumentations' (1 and 50) do not move an image of 32 pixels by a twentieth of one.

    Raises:
        ConfigError: a parameter is out of range.
    """

    alpha: Annotated[float, between(0, 1e6)] = 34.0  # pixels that noise of 1 would displace
    sigma: Annotated[float, between(0.01, 1000)] = (
        4.0  # standard deviation of the filter in pixels: larger is smoother, and moves less
    )
    p: Probability = 0.5  # probability that an image is transformed
    padding_mode: PaddingMode = "constant"  # what comes from outside: `fill`, a mirror image, or the border pixel
    fill: Fill = 0.0  # value of a constant border

    def draw(self, key: PRNGKeyArray, shape: tuple[int, ...], info: SampleInfo | None = None) -> NoiseDraws:
        own = jax.random.fold_in(key, 0)
        keys = jax.vmap(lambda number: jax.random.fold_in(own, number))(jnp.arange(shape[0]))
        return NoiseDraws(keys, draw_applied(key, shape[0], self.p))

    def move(self, draws: NoiseDraws, shape: tuple[int, ...]) -> Move:
        shift = materialize(self.displacement(make_noise(draws, shape)))

        def mapping(grid: Grid) -> Grid:
            return grid.astype(shift.dtype) + sample(shift, grid, padding_mode="edge")

        return Move(mapping, self.padding_mode, self.fill, shift)

    def displacement(self, noise: Noise) -> Noise:
        """By how many pixels (row, column) every place is moved, for uniform `noise` in both directions."""
        rows, columns = (jnp.asarray(smoothing(size, self.sigma), noise.dtype) for size in noise.shape[1:3])
        return self.alpha * jnp.einsum("ij,bjkc,lk->bilc", rows, noise, columns, precision=jax.lax.Precision.HIGHEST)


@dataclass(frozen=True)
class GridDistortion(Resampling):
    """Cut images into `num_steps` equal bands of rows, and of columns, and stretch each band by its own factor.

    The factors are 1 plus a uniform draw up to `distort_limit` either way, then scaled to have mean 1
    (Albumentations' `normalized=True`), so that the border stays in place and nothing comes from outside. Bands are
    measured between the centres of the first and the last pixel.

    Raises:
        ConfigError: a parameter is out of range.
    """

    num_steps: Annotated[int, between(1, 100)] = 5  # bands of rows, and of columns
    distort_limit: Annotated[float, at_least_below(0, 1)] = 0.3  # largest change of a band's size, as a share of it
    p: Probability = 0.5  # probability that an image is transformed

    def draw(self, key: PRNGKeyArray, shape: tuple[int, ...], info: SampleInfo | None = None) -> Stretch:
        limit, draws = self.distort_limit, (shape[0], self.num_steps, 2)
        stretch = jax.random.uniform(jax.random.fold_in(key, 0), draws, jnp.float32, -limit, limit)
        return jnp.where(draw_applied(key, shape[0], self.p)[:, None, None], stretch, 0.0)

    def move(self, draws: Stretch, shape: tuple[int, ...]) -> Move:
        factors = 1 + draws
        change = materialize(factors / jnp.mean(factors, axis=1, keepdims=True) - 1)
        band = jnp.asarray([shape[1] - 1, shape[2] - 1], draws.dtype)[None, None, None, :] / self.num_steps

        def mapping(grid: Grid) -> Grid:
            # The part of every band that lies before a place has changed the way to it.
            grid = grid.astype(change.dtype)
            shift = jnp.zeros_like(grid)
            for step in range(self.num_steps):
                shift += change[:, step, None, None, :] * jnp.clip(grid - step * band, 0, band)
            return grid + shift

        return Move(mapping, padding_mode="edge")


def draw_applied(key: PRNGKeyArray, batch: int, p: float) -> Bool[Array, " batch"]:
    """Which images are transformed, each with probability `p`."""
    return jax.random.uniform(jax.random.fold_in(key, 1), (batch,), jnp.float32) < p


def make_noise(draws: NoiseDraws, shape: tuple[int, ...]) -> Noise:
    """Every image's noise, of `draws.keys`, uniform from -1 to 1; 0 where the transform is not applied."""
    noise = jax.vmap(lambda key: jax.random.uniform(key, (*shape[1:3], 2), jnp.float32, -1.0, 1.0))(draws.keys)
    return jnp.where(draws.applied[:, None, None, None], noise, 0.0).astype(float)


def smoothing(size: int, sigma: float) -> np.ndarray:
    """The Gaussian filter along one axis of `size` pixels, mirrored at the border, as a matrix [size, size]."""
    radius = int(4 * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    places = (np.arange(size)[:, None] + offsets) % (2 * size)
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.arange(size)[:, None], np.minimum(places, 2 * size - 1 - places)), weights / weights.sum())
    return matrix
