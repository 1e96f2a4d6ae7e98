"""A network together with what it sees: raw pixels become normalised images of the side it is judged at."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from jax_cifar.config.spec import InputSpec


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
