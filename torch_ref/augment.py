"""Augmentation and mixing on the device, NCHW, as the transforms of a configuration ask for.

The functions that move or blend pixels take their draws as arguments, so that they can be compared with JAX's given the
same draws; `make_augment` and `make_mixer` draw from PyTorch's global generator.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.distributions import Beta

from jax_cifar.config import MixConfig
from jax_cifar.errors import ConfigError, check

Images = Float[Tensor, "batch channel height width"]
Targets = Float[Tensor, "batch classes"]
Augment = Callable[[Images, Int[Tensor, " batch"], int], Images]
Mixer = Callable[[Images, Targets], tuple[Images, Targets]]


def make_augment(transforms: Sequence[Any]) -> Augment:
    """The function `(images, index, epoch) -> images` that applies transforms of `jax_cifar.augment` in their order.

    `images` hold pixels between 0 and 1, `index` their places in the data set. Raises `ConfigError` for a transform
    that this trainer does not have.
    """
    names = [type(transform).__name__ for transform in transforms]
    for i, name in enumerate(names):
        if name not in _TRANSFORMS:
            raise ConfigError(f"augment[{i}] = {name} is not supported by torch_ref: use {', '.join(_TRANSFORMS)}.")

    def augment(images: Images, index: Int[Tensor, " batch"], epoch: int) -> Images:
        for name, transform in zip(names, transforms, strict=True):
            images = _TRANSFORMS[name](transform, images, index, epoch)
        return images

    return augment


def crop(
    images: Images,
    corners: Int[Tensor, "batch 2"],
    padding: int,
    mode: Literal["constant", "reflect"] = "constant",
    fill: float = 0.0,
) -> Images:
    """The windows whose top left corners lie at `corners` (row, column) of the padded images."""
    height, width = images.shape[2:]
    fits = mode != "reflect" or padding < min(height, width)
    check(fits, "RandomCrop.padding", padding, f"to reflect images of {height}x{width} pixels it must be smaller")
    padded = F.pad(images, (padding,) * 4, mode, fill if mode == "constant" else None)
    rows = corners[:, :1] + torch.arange(height, device=images.device)
    columns = corners[:, 1:] + torch.arange(width, device=images.device)
    batch = torch.arange(len(images), device=images.device)
    # The channel, between the indexed axes, comes out last.
    return padded[batch[:, None, None], :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def flip(images: Images, flipped: Bool[Tensor, " batch"]) -> Images:
    """The images, mirrored left to right where `flipped`."""
    return torch.where(flipped[:, None, None, None], images.flip(-1), images)


def alternating(index: Int[Tensor, " batch"], epoch: int) -> Bool[Tensor, " batch"]:
    """Which images the alternating flip mirrors: the lowest bit of MurmurHash3's finaliser, inverted in odd epochs."""
    bits = index.long()
    bits = ((bits ^ (bits >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
    bits = ((bits ^ (bits >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return ((bits ^ (bits >> 16) ^ epoch) & 1) == 1


def cutout(images: Images, centres: Int[Tensor, "batch 2"], length: int, fill: float = 0.0) -> Images:
    """The images with one square each filled; it begins `length // 2` before its centre (row, column)."""

    def covered(centre: Tensor, size: int) -> Tensor:
        distance = torch.arange(size, device=images.device) - (centre[:, None] - length // 2)
        return (distance >= 0) & (distance < length)

    rows, columns = covered(centres[:, 0], images.shape[2]), covered(centres[:, 1], images.shape[3])
    square = rows[:, :, None] & columns[:, None, :]
    return images.masked_fill(square[:, None], fill)


def mixup(images: Images, targets: Targets, lam: float) -> tuple[Images, Targets]:
    """torchvision's `MixUp`: image and target i keep the share `lam`, the rest is i - 1's."""
    return _blend(images, lam), _blend(targets, lam)


def cutmix(images: Images, targets: Targets, lam: float, centre: tuple[int, int]) -> tuple[Images, Targets]:
    """torchvision's `CutMix`: a box of image i - 1, about 1 - `lam` of the area, around `centre` (row, column)."""
    height, width = images.shape[2:]
    half = 0.5 * math.sqrt(1.0 - lam)
    half_height, half_width = int(half * height), int(half * width)
    top, bottom = max(centre[0] - half_height, 0), min(centre[0] + half_height, height)
    left, right = max(centre[1] - half_width, 0), min(centre[1] + half_width, width)
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = images.roll(1, 0)[..., top:bottom, left:right]
    return mixed, _blend(targets, 1.0 - (bottom - top) * (right - left) / (height * width))


def make_mixer(config: MixConfig) -> Mixer | None:
    """The mixing that `config` asks for, a function `(images, targets) -> (images, targets)`; None if it is off."""
    mixup_on, cutmix_on = config.mixup_alpha > 0, config.cutmix_alpha > 0
    if config.probability == 0 or not (mixup_on or cutmix_on):
        return None
    cutmix_share = config.switch_probability if mixup_on and cutmix_on else float(cutmix_on)

    def mix(images: Images, targets: Targets) -> tuple[Images, Targets]:
        any_draw, cutmix_draw = torch.rand(2).tolist()
        if any_draw >= config.probability:
            return images, targets
        if cutmix_draw >= cutmix_share:
            return mixup(images, targets, _beta(config.mixup_alpha))
        height, width = images.shape[2:]
        centre = int(torch.randint(height, ())), int(torch.randint(width, ()))
        return cutmix(images, targets, _beta(config.cutmix_alpha), centre)

    return mix


def _beta(alpha: float) -> float:
    return float(Beta(alpha, alpha).sample())


def _blend(values: Tensor, share: float) -> Tensor:
    return values.roll(1, 0).mul_(1.0 - share).add_(values.mul(share))


def _random_crop(transform: Any, images: Images, index: Tensor, epoch: int) -> Images:
    corners = torch.randint(2 * transform.padding + 1, (2, len(images)), device=images.device).T
    return crop(images, corners, transform.padding, transform.padding_mode, transform.fill)


def _horizontal_flip(transform: Any, images: Images, index: Tensor, epoch: int) -> Images:
    if transform.mode == "alternate":
        return flip(images, alternating(index, epoch))
    return flip(images, torch.rand(len(images), device=images.device) < transform.p)


def _cutout(transform: Any, images: Images, index: Tensor, epoch: int) -> Images:
    centres = torch.stack([torch.randint(size, (len(images),), device=images.device) for size in images.shape[2:]], 1)
    return cutout(images, centres, transform.length, transform.fill)


# By name, so that nothing here imports jax_cifar.augment and with it jax.
_TRANSFORMS = {"RandomCrop": _random_crop, "HorizontalFlip": _horizontal_flip, "Cutout": _cutout}
