"""The last step before the network: every channel to mean 0 and standard deviation 1."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from jax_cifar.augment.base import Drawn, Images, SampleInfo, is_number
from jax_cifar.errors import ConfigError, check


@dataclass(frozen=True)
class Normalize(Drawn):
    """`(images - mean) / std` for every channel, for pixels, mean and std in units of the full range (0 to 1).

    Nothing in it is random: key and info are not used.

    Raises:
        ConfigError: `std` is not positive, or `mean`, `std` and the images differ in their number of channels.
    """

    mean: tuple[float, ...]  # of every channel over the training images
    std: tuple[float, ...]  # of every channel over the training images

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            numbers = isinstance(values, tuple) and len(values) > 0 and all(is_number(value) for value in values)
            check(numbers, f"Normalize.{name}", values, "it must be a tuple of one finite number per channel")
        check(min(self.std) > 0, "Normalize.std", self.std, "every value must be greater than 0")
        check(len(self.std) == len(self.mean), "Normalize.std", self.std, f"mean has {len(self.mean)} channels")

    def draw(self, key: PRNGKeyArray, shape: tuple[int, ...], info: SampleInfo | None = None) -> tuple[()]:
        return ()

    def transform(self, images: Images, draws: tuple[()] = ()) -> Images:
        channels = images.shape[-1]
        if len(self.mean) != channels:
            raise ConfigError(f"Normalize.mean = {self.mean!r} has {len(self.mean)} channels, the images {channels}.")
        mean = jnp.asarray(self.mean, images.dtype)[None, None, None, :]
        std = jnp.asarray(self.std, images.dtype)[None, None, None, :]
        return (images - mean) / std
