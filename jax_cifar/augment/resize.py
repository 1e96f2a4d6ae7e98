"""Whole images made smaller: what training at a low resolution looks at."""

import jax
from jaxtyping import Array, Float


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
