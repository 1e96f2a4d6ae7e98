"""Random crop and horizontal flip: transforms that move whole pixels."""

from dataclasses import dataclass
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from jax_cifar.augment.base import Fill, Images, SampleInfo, Transform
from jax_cifar.config.checks import Probability, between
from jax_cifar.errors import ConfigError, check


@dataclass(frozen=True)
class RandomCrop(Transform):
    """Pad every side, then cut a window of the original size at a uniformly drawn place (torchvision's `RandomCrop`).

    Each image has its own place, one of `(2 * padding + 1) ** 2`.

    Raises:
        ConfigError: a parameter is out of range, or the images are smaller than `padding`; for `reflect`, not larger.
    """

    padding: Annotated[int, between(0, 4096)] = 4  # pixels added to every side
    padding_mode: Literal["constant", "reflect"] = "constant"  # border: `fill`, or a mirror image without the edge
    fill: Fill = 0.0  # value of a constant border

    def draw(self, key: PRNGKeyArray, shape: tuple[int, ...], info: SampleInfo | None = None) -> Int[Array, "batch 2"]:
        return jax.random.randint(key, (2, shape[0]), 0, 2 * self.padding + 1, jnp.int32).T

    def transform(self, images: Images, draws: Int[Array, "batch 2"]) -> Images:
        """The windows whose top left corners lie at `draws` (row, column) of the padded images."""
        height, width = images.shape[1:3]
        if self.padding_mode == "reflect" and self.padding >= min(height, width):
            raise ConfigError(
                f"RandomCrop.padding = {self.padding} is too large to reflect images of {(height, width)} pixels: "
                f"use at most {min(height, width) - 1}, or padding_mode='constant'."
            )
        expected = f"a crop of images of {height}x{width} pixels could miss the image"
        check(self.padding <= min(height, width), "RandomCrop.padding", self.padding, expected)
        widths = ((0, 0), (self.padding, self.padding), (self.padding, self.padding), (0, 0))
        if self.padding_mode == "reflect":
            padded = jnp.pad(images, widths, mode="reflect")
        else:
            padded = jnp.pad(images, widths, constant_values=self.fill)

        def window(image: Array, row: Array, column: Array) -> Array:
            return jax.lax.dynamic_slice(image, (row, column, jnp.zeros_like(row)), images.shape[1:])

        return jax.vmap(window)(padded, draws[:, 0], draws[:, 1])


@dataclass(frozen=True)
class HorizontalFlip(Transform):
    """Mirror images left to right.

    `random` flips each image with probability `p` (torchvision's `RandomHorizontalFlip`). `alternate` flips half of the
    images in the first epoch and from then on each image in every other epoch, so that two epochs in a row always show
    both views (airbench, arXiv 2404.00498). Which half comes from a hash of the image's index in the data set, the
    same in every run: the key, which changes from step to step, is not used.

    Raises:
        ConfigError: a parameter is out of range, or `alternate` is called without `info`.
    """

    p: Probability = 0.5  # random: probability of a flip
    mode: Literal["random", "alternate"] = "random"  # independent draws, or every image in every other epoch

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode == "alternate":
            check(self.p == 0.5, "HorizontalFlip.p", self.p, "mode 'alternate' has no probability, leave p out")

    def draw(self, key: PRNGKeyArray, shape: tuple[int, ...], info: SampleInfo | None = None) -> Bool[Array, " batch"]:
        if self.mode == "random":
            return jax.random.uniform(key, shape[:1], jnp.float32) < self.p
        if info is not None:
            return alternating(info.index, info.epoch)
        raise ConfigError(
            "HorizontalFlip.mode = 'alternate' depends on the epoch and on each image's index: "
            "pass info=SampleInfo(index, epoch), or use mode='random'."
        )

    def transform(self, images: Images, draws: Bool[Array, " batch"]) -> Images:
        return jnp.where(draws[:, None, None, None], images[:, :, ::-1], images)


def alternating(index: Int[Array, " batch"], epoch: Int[Array, ""]) -> Bool[Array, " batch"]:
    """Which images the alternating flip mirrors: a random bit of the index, inverted in odd epochs.

    The bit is the lowest of MurmurHash3's 32-bit finaliser (public domain), in which every bit of the index changes
    every bit of the result with a probability close to one half.
    """
    bits = index.astype(jnp.uint32)
    bits = (bits ^ (bits >> 16)) * np.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * np.uint32(0xC2B2AE35)
    bits = bits ^ (bits >> 16)
    return ((bits ^ epoch.astype(jnp.uint32)) & 1) == 1
