"""The references of benchmarks/per_image, one image after another, with draws that a transform of ours was given."""

from typing import Any

import jax
import numpy as np

from benchmarks.per_image import reference
from jax_cifar.augment.warp import NoiseDraws, make_noise


def one_by_one(transform: Any, images: np.ndarray, draws: Any) -> np.ndarray:
    """What the reference of `transform` makes of every image with its own part of `draws`."""
    if isinstance(draws, NoiseDraws):  # keys that the noise is made of later
        draws = make_noise(draws, images.shape)
    apply, draws = reference(transform).apply, jax.tree.map(np.asarray, draws)
    return np.stack([apply(image, jax.tree.map(lambda each, i=i: each[i], draws)) for i, image in enumerate(images)])


def run(transform: Any, images: np.ndarray, draws: Any) -> np.ndarray:
    """What `transform` makes of `images` with `draws`, compiled."""
    return np.asarray(jax.jit(transform.transform)(jax.numpy.asarray(images), jax.tree.map(jax.numpy.asarray, draws)))


def unit(images: np.ndarray) -> np.ndarray:
    """8-bit images as floating ones, from 0 to 1."""
    return images.astype(np.float32) / np.float32(255)
