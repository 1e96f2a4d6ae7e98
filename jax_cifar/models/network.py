"""A network together with what it sees: raw pixels become normalised images of the side it is judged at."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from jax_cifar.config.checks import Probability, above, check_fields, not_empty
from jax_cifar.config.sections import Count
from jax_cifar.errors import check


@dataclass(frozen=True)
class InputSpec:
    """What a network sees, and what its classes are called: all that prediction needs to know of a data set."""

    image_shape: tuple[Count, Count, Count]  # height, width, channel of the images it is given
    mean: tuple[Probability, ...]  # of every channel over the training images, in units of the full range (0 to 1)
    std: tuple[Annotated[Probability, above(0)], ...]  # likewise the standard deviation
    side: Count | None  # pixels that images are downsampled to; None: as they are
    label_names: Annotated[tuple[str, ...], not_empty]

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("mean", "std"):
            values, channels = getattr(self, name), self.image_shape[2]
            check(len(values) == channels, name, values, f"it must have one number for each of {channels} channels")
        smallest = min(self.image_shape[:2])
        check(self.side is None or self.side <= smallest, "side", self.side, f"the images have {smallest} pixels")
        names = self.label_names
        check(len(set(names)) == len(names), "label_names", names, "every class needs a name of its own")

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.label_names)


@dataclass(frozen=True)
class Network:
    """A linen module, called as `model.apply(variables, inputs(images), train)`, and what it sees of images."""

    model: nn.Module
    spec: InputSpec

    def at_side(self, side: int | None) -> "Network":
        """The same network, looking at images of another side."""
        return dataclasses.replace(self, spec=dataclasses.replace(self.spec, side=side))

    def inputs(
        self, images: Float[Array, "batch height width channel"]
    ) -> Float[Array, "batch new_height new_width channel"]:
        """What the network sees of raw pixels between 0 and 1."""
        return downsample(normalize(images, self.spec.mean, self.spec.std), self.spec.side)

    def logits(
        self, variables: Any, images: UInt8[Array, "batch height width channel"]
    ) -> Float[Array, "batch num_classes"]:
        """Logits at evaluation, in float32 (float64 with float64 parameters)."""
        return self.model.apply(variables, self.inputs(images.astype(jnp.float32) / 255), train=False)  # pyright: ignore[reportReturnType]


def normalize(
    images: Float[Array, "batch height width channel"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Array, "batch height width channel"]:
    """`(images - mean) / std` for every channel, for pixels, mean and std in units of the full range (0 to 1)."""
    shift, scale = (jnp.asarray(values, images.dtype)[None, None, None, :] for values in (mean, std))
    return (images - shift) / scale


def downsample(
    images: Float[Array, "batch height width channel"], side: int | None
) -> Float[Array, "batch new_height new_width channel"]:
    """Images of `side` x `side` pixels, by antialiased bilinear filtering; None: as they are.

    As `torch.nn.functional.interpolate(mode="bilinear", antialias=True)`.
    """
    if side is None:
        return images
    batch, _, _, channels = images.shape
    return jax.image.resize(images, (batch, side, side, channels), "linear", antialias=True)


def compute_dtype(name: str) -> Any:
    """The dtype of activations that `train.dtype` names; "auto" is bfloat16 on GPU and TPU, float32 on a CPU."""
    if name == "auto":
        # XLA's CPU convolutions know no bfloat16 and would only cast back and forth.
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)
