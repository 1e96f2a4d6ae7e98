"""Transforms that change colours and move nothing: colour jitter and grey.

Channels are taken apart first, so that the arithmetic runs over whole planes of pixels.
"""

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jax_cifar.augment.base import Images, SampleInfo, Transform
from jax_cifar.backend.portions import materialize
from jax_cifar.config.checks import Probability, ascending, between
from jax_cifar.config.sections import NotNegative
from jax_cifar.errors import ConfigError

Planes = Float[Array, "channel batch height width"]
PerImage = Float[Array, " batch"]
Factor = NotNegative | Annotated[tuple[NotNegative, NotNegative], ascending]
Turn = Annotated[float, between(-0.5, 0.5)]

NAMES = ("brightness", "contrast", "saturation", "hue")
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
JITTER_WEIGHTS = (0.2989, 0.587, 0.114)  # torchvision's
LUMA_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow and OpenCV have them


class JitterDraws(NamedTuple):
    """How every image changes; the axis `change` goes over brightness, contrast, saturation and hue."""

    factors: Float[Array, "batch change"]
    order: Int[Array, "batch change"]  # the changes' numbers, first to last


@dataclass(frozen=True)
class ColorJitter(Transform):
    """Change brightness, contrast, saturation and hue, in a random order (torchvision's `ColorJitter`).

    Each image has its own four factors and its own order. A number x stands for the range from max(0, 1 - x) to
    1 + x, for hue from -x to x; a pair is the range itself. The arithmetic is torchvision's for floating images: the
    first three blend with black, with the image's mean grey, with its grey version, and clip to [0, 1]; hue turns the
    colour circle, where 1 is a full turn. Images of one channel keep saturation and hue, as they have none.

    Whatever the order, hue changes once; so the three blends take their turns before it and again after it, each image
    in one of the two, and the costly part runs once instead of in every one of four rounds.

    Raises:
        ConfigError: a parameter is out of range, or the images have neither 1 nor 3 channels.
    """

    brightness: Factor = 0.0  # factor of all values
    contrast: Factor = 0.0  # factor of the distance to the mean grey
    saturation: Factor = 0.0  # factor of the distance to the pixel's own grey
    # Share of a turn of the colour circle, at most 0.5 either way.
    hue: Annotated[float, between(0, 0.5)] | Annotated[tuple[Turn, Turn], ascending] = 0.0

    def draw(self, key: PRNGKeyArray, shape: tuple[int, ...], info: SampleInfo | None = None) -> JitterDraws:
        batch = shape[0]
        ends = np.asarray([self.factor_range(name) for name in NAMES], np.float32)[:, :, None]
        factors = jax.random.uniform(jax.random.fold_in(key, 0), (4, batch), jnp.float32, ends[:, 0], ends[:, 1])
        order = jnp.argsort(jax.random.uniform(jax.random.fold_in(key, 1), (4, batch), jnp.float32), axis=0)
        return JitterDraws(factors.T, order.T)

    def factor_range(self, name: str) -> tuple[float, float]:
        """The range of the factor `name`."""
        value = getattr(self, name)
        if isinstance(value, tuple):
            return value
        return (-value, value) if name == "hue" else (max(0.0, 1.0 - value), 1.0 + value)

    def transform(self, images: Images, draws: JitterDraws) -> Images:
        # What this jitter leaves alone (its range is the neutral factor) is skipped, whatever its factor says.
        planes = materialize(colour_planes(images, "ColorJitter"))
        coloured = planes.shape[0] == 3
        on = [self.factor_range(name) != ((0.0, 0.0) if name == "hue" else (1.0, 1.0)) for name in NAMES]
        blends = [kind for kind in (BRIGHTNESS, CONTRAST, SATURATION) if on[kind] and (coloured or kind != SATURATION)]
        if not (blends or (on[HUE] and coloured)):
            return images
        place, factors = jnp.argsort(draws.order, axis=1), draws.factors.astype(planes.dtype)
        for after in (False, True) if on[HUE] and coloured else (False,):
            if after:
                planes = materialize(turn_hue(planes, factors[:, HUE]))
            for turn in range(len(blends)):
                now = whose_turn(place, blends, turn)
                if on[HUE] and coloured:
                    now = {kind: mask & ((place[:, kind] > place[:, HUE]) == after) for kind, mask in now.items()}
                planes = materialize(blend_planes(planes, factors, now))
        return jnp.moveaxis(planes, 0, -1).astype(images.dtype)


@dataclass(frozen=True)
class ToGray(Transform):
    """Replace colours by their grey, with probability `p` (Albumentations' `ToGray`, its weighted average).

    The weights are those of Pillow and OpenCV, 0.299, 0.587 and 0.114; all channels get the same value.

    Raises:
        ConfigError: `p` is out of range, or the images have neither 1 nor 3 channels.
    """

    p: Probability = 0.5  # probability that an image becomes grey

    def draw(self, key: PRNGKeyArray, shape: tuple[int, ...], info: SampleInfo | None = None) -> Bool[Array, " batch"]:
        return jax.random.uniform(key, shape[:1], jnp.float32) < self.p

    def transform(self, images: Images, draws: Bool[Array, " batch"]) -> Images:
        grey = grey_of(colour_planes(images, "ToGray"), LUMA_WEIGHTS).astype(images.dtype)
        return jnp.where(draws[:, None, None, None], grey[..., None], images)


def colour_planes(images: Images, owner: str) -> Planes:
    """The channels of `images`, 1 or 3, one plane each; half precision becomes float32."""
    if images.shape[-1] not in (1, 3):
        raise ConfigError(f"{owner} changes images of 1 or 3 channels, these have {images.shape[-1]}: leave it out.")
    dtype = images.dtype if jnp.finfo(images.dtype).bits >= 32 else jnp.float32
    return jnp.moveaxis(images.astype(dtype), -1, 0)


def grey_of(planes: Planes, weights: tuple[float, float, float]) -> Float[Array, "batch height width"]:
    """The weighted sum of red, green and blue; of one channel, itself."""
    if planes.shape[0] == 1:
        return planes[0]
    return weights[0] * planes[0] + weights[1] * planes[1] + weights[2] * planes[2]


def whose_turn(place: Int[Array, "batch change"], kinds: list[int], turn: int) -> dict[int, Bool[Array, " batch"]]:
    """For each of `kinds`, the images in which it is number `turn` among `kinds`; `place` is each one's position."""
    places = jnp.stack([place[:, kind] for kind in kinds])
    return {kind: jnp.sum(places < place[None, :, kind], axis=0, dtype=jnp.int32) == turn for kind in kinds}


def blend_planes(
    planes: Planes, factors: Float[Array, "batch change"], now: dict[int, Bool[Array, " batch"]]
) -> Planes:
    """`factor * image + (1 - factor) * other`, clipped to [0, 1]; images with no blend `now` keep every bit.

    The other image is black for brightness, the mean grey for contrast, the grey image for saturation.
    """
    grey = grey_of(planes, JITTER_WEIGHTS)
    factor, other = jnp.ones_like(factors[:, 0])[:, None, None], jnp.zeros_like(grey)
    for kind, mask in now.items():
        mask = mask[:, None, None]
        factor = jnp.where(mask, factors[:, kind, None, None], factor)
        if kind != BRIGHTNESS:
            towards = jnp.mean(grey, axis=(1, 2), keepdims=True) if kind == CONTRAST else grey
            other = jnp.where(mask, towards, other)
    return jnp.clip(factor[None] * planes + ((1.0 - factor) * other)[None], 0.0, 1.0)


def turn_hue(planes: Planes, turns: PerImage) -> Planes:
    """Add `turns` to the hue of RGB planes; value and saturation of HSV stay.

    The way back from HSV is one formula for all six sectors: with chroma c, value v and hue h in sixths of a turn, a
    channel is v - c * clip(min(k, 4 - k), 0, 1), k = (n + h) mod 6, n = 5, 3, 1 for red, green, blue.
    """
    red, green, blue = planes[0], planes[1], planes[2]
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    divisor = jnp.where(chroma == 0, 1.0, chroma)
    hue = jnp.where(
        value == red,
        (green - blue) / divisor,
        jnp.where(value == green, 2.0 + (blue - red) / divisor, 4.0 + (red - green) / divisor),
    )
    hue = hue + 6.0 * turns[:, None, None]

    def channel(n: float) -> Array:
        k = n + hue
        k = k - 6.0 * jnp.floor(k / 6.0)
        return value - chroma * jnp.clip(jnp.minimum(k, 4.0 - k), 0.0, 1.0)

    return jnp.stack([channel(5.0), channel(3.0), channel(1.0)])
