"""MixUp and CutMix: each image is mixed with its neighbour in the batch, and its label with the neighbour's.

mix = make_mixer(MixConfig(mixup_alpha=1.0))
images, targets = mix(key, images, targets)

Both are the same sum, `own * image + (1 - own) * partner`; they differ in where an image keeps its own pixels. So one
pass over the images serves either, or none, and a batch gets exactly one of them without a branch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jax_cifar.augment.base import Images, check_floating
from jax_cifar.config import MixConfig
from jax_cifar.config.checks import check_fields
from jax_cifar.config.sections import Positive

Targets = Float[Array, "batch classes"]
Mixer = Callable[[PRNGKeyArray, Images, Targets], tuple[Images, Targets]]


class Share(NamedTuple):
    """How much an image keeps of itself; the rest is its partner's."""

    pixels: Float[Array, "height width"]
    label: Float[Array, ""]


@dataclass(frozen=True)
class MixUp:
    """Blend whole images, with one lambda ~ Beta(alpha, alpha) per batch (Zhang et al., arXiv 1710.09412).

    The partner of image i is image i - 1, as in torchvision's `MixUp`. Targets are one-hot or soft, [batch, classes].

    Raises:
        ConfigError: `alpha` is not positive.
    """

    alpha: Positive = 1.0  # small: nearly always one of the two images alone; 1: every share is equally likely

    def __post_init__(self) -> None:
        check_fields(self)

    def share(self, key: PRNGKeyArray, height: int, width: int) -> Share:
        """Draw the share of one batch of `height` x `width` images."""
        return mixup_share(draw_beta(key, self.alpha), height, width)


@dataclass(frozen=True)
class CutMix:
    """Paste one box of the partner into every image; one box per batch (Yun et al., arXiv 1905.04899).

    The box has about the share 1 - lambda of the area, lambda ~ Beta(alpha, alpha), and a uniform centre; the border
    clips it. The label's weight is the share of pixels that an image really keeps. Partner and arithmetic are those
    of torchvision's `CutMix`. Targets are one-hot or soft, [batch, classes].

    Raises:
        ConfigError: `alpha` is not positive.
    """

    alpha: Positive = 1.0  # small: the box is nearly nothing or nearly all; 1: every area is equally likely

    def __post_init__(self) -> None:
        check_fields(self)

    def share(self, key: PRNGKeyArray, height: int, width: int) -> Share:
        """Draw the share of one batch of `height` x `width` images."""
        lam = draw_beta(jax.random.fold_in(key, 0), self.alpha)
        sizes = jnp.asarray([height, width], jnp.int32)
        centre = jax.random.randint(jax.random.fold_in(key, 1), (2,), 0, sizes, jnp.int32)
        return cutmix_share(lam, centre, height, width)


def make_mixer(config: MixConfig) -> Mixer | None:
    """The mixing that `config` asks for, a function `(key, images, targets) -> (images, targets)`; None if it is off.

    A batch is mixed with probability `config.probability`. With both methods on it gets exactly one of them, CutMix
    with probability `config.switch_probability`.
    """
    mixup_on, cutmix_on = config.mixup_alpha > 0, config.cutmix_alpha > 0
    if config.probability == 0 or not (mixup_on or cutmix_on):
        return None

    def mix(key: PRNGKeyArray, images: Images, targets: Targets) -> tuple[Images, Targets]:
        size = images.shape[1:3]
        keys = [jax.random.fold_in(key, i) for i in range(4)]
        untouched = share = Share(jnp.ones(size, jnp.float32), jnp.ones((), jnp.float32))
        if mixup_on:
            share = MixUp(config.mixup_alpha).share(keys[0], *size)
        if cutmix_on:
            boxed = CutMix(config.cutmix_alpha).share(keys[1], *size)
            share = choose_share(keys[2], config.switch_probability, boxed, share) if mixup_on else boxed
        return mix_with_partner(images, targets, choose_share(keys[3], config.probability, share, untouched))

    return mix


def mix_with_partner(images: Images, targets: Targets, share: Share) -> tuple[Images, Targets]:
    """Mix image and target i with i - 1 (the first with the last), keeping `share` of i."""
    check_floating("images", images, "divide pixels by 255")
    check_floating("targets", targets, "use jax.nn.one_hot(labels, num_classes)")
    pixels = share.pixels.astype(images.dtype)[None, :, :, None]
    label = share.label.astype(targets.dtype)
    images = pixels * images + (1 - pixels) * jnp.roll(images, 1, axis=0)
    targets = label * targets + (1 - label) * jnp.roll(targets, 1, axis=0)
    return images, targets


def mixup_share(lam: Float[Array, ""], height: int, width: int) -> Share:
    """The same share everywhere."""
    return Share(jnp.broadcast_to(lam, (height, width)), lam)


def cutmix_share(lam: Float[Array, ""], centre: Int[Array, "2"], height: int, width: int) -> Share:
    """Nothing inside the box around `centre` (row, column), all outside; the label's is that of the pixels.

    Half a side is `0.5 * sqrt(1 - lam)` of the image's, truncated; so the sides are even before the border clips them.
    """
    half = 0.5 * jnp.sqrt(1 - lam)
    rows, columns = box_side(centre[0], half * height, height), box_side(centre[1], half * width, width)
    box = rows[:, None] & columns[None, :]
    pasted = jnp.sum(box, dtype=lam.dtype)
    return Share(1 - box.astype(lam.dtype), 1 - pasted / (height * width))


def box_side(middle: Int[Array, ""], half: Float[Array, ""], size: int) -> Bool[Array, " size"]:
    """Which of `size` rows or columns lie less than the truncated `half` from `middle` (below it: at most)."""
    positions = jnp.arange(size, dtype=middle.dtype)
    half = jnp.floor(half).astype(positions.dtype)
    return (middle - half <= positions) & (positions < middle + half)


def choose_share(key: PRNGKeyArray, probability: float, first: Share, second: Share) -> Share:
    """`first` with the given probability, else `second`."""
    chosen = jax.random.uniform(key, (), jnp.float32) < probability
    return jax.tree.map(lambda a, b: jnp.where(chosen, a, b), first, second)


def draw_beta(key: PRNGKeyArray, alpha: float) -> Float[Array, ""]:
    """One float32 draw of Beta(alpha, alpha), for every alpha > 0, exact.

    If T is Student's t with 2 alpha degrees of freedom, `(1 + T / sqrt(2 alpha + T^2)) / 2` has this distribution, and
    Bailey's polar method (Math. Comp. 62, 1994) makes T from two uniforms. `jax.random.beta` draws from the same
    distribution with a rejection loop, which is slow to compile and leaves the device waiting.
    """
    u = jax.random.uniform(jax.random.fold_in(key, 0), (), jnp.float32)
    cosine = jnp.cos(2 * jnp.pi * jax.random.uniform(jax.random.fold_in(key, 1), (), jnp.float32))
    square = jnp.expm1(-jnp.log(u) / alpha) * cosine**2  # T^2 / (2 alpha)
    return 0.5 + 0.5 * jnp.sign(cosine) / jnp.sqrt(1 + 1 / square)
