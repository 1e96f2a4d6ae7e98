"""What torchvision has for the transforms of `jax_cifar.augment`; torchvision may be missing."""

import sys
from typing import Any

from jax_cifar.augment import (
    AutoAugment,
    ColorJitter,
    ElasticTransform,
    HorizontalFlip,
    OneOf,
    RandomAffine,
    RandomCrop,
    RandomErasing,
    RandomResizedCrop,
    RandomRotation,
    Sometimes,
    ToGray,
    Transform,
    TrivialAugmentWide,
)


def load_torchvision() -> Any:
    """`torchvision.transforms.v2`, or None, with a word why on stderr."""
    try:
        from torchvision.transforms import v2  # pyright: ignore[reportMissingImports]
    except (ImportError, RuntimeError) as error:  # RuntimeError: made for another build of torch
        print(f"torchvision is left out ({error}): pip install -e '.[bench]' brings it.", file=sys.stderr)
        return None
    return v2


def torchvision_transform(transform: Transform, v2: Any) -> Any:
    """What torchvision has for `transform`, which may be inside a group; None where it has nothing."""
    blur = {"interpolation": v2.InterpolationMode.BILINEAR}
    match transform:
        case OneOf(transforms, weights, p):
            members = [torchvision_transform(member, v2) for member in transforms]
            return None if None in members else v2.RandomApply([v2.RandomChoice(members, p=weights)], p)
        case Sometimes(inner, p):
            inside = torchvision_transform(inner, v2)
            return None if inside is None else v2.RandomApply([inside], p)
        case RandomCrop(padding, mode, fill):
            return v2.RandomCrop(32, padding, fill=round(255 * fill), padding_mode=mode)
        case HorizontalFlip(p, "random"):
            return v2.RandomHorizontalFlip(p)
        case RandomResizedCrop(scale, ratio):
            return v2.RandomResizedCrop(32, scale, ratio)
        case RandomAffine(degrees, translate, scale, shear, fill):
            return v2.RandomAffine(degrees, translate, scale, shear, fill=round(255 * fill), **blur)
        case RandomRotation(degrees, fill):
            return v2.RandomRotation(degrees, fill=round(255 * fill), **blur)
        case ElasticTransform(alpha, sigma, p, "constant", fill):
            # Its alpha counts half pixels.
            return v2.RandomApply([v2.ElasticTransform(2 * alpha, sigma, fill=round(255 * fill), **blur)], p)
        case ColorJitter(brightness, contrast, saturation, hue):
            return v2.ColorJitter(brightness, contrast, saturation, hue)
        case ToGray(p):
            return v2.RandomGrayscale(p)
        case RandomErasing(p, scale, ratio, float(value)):
            return v2.RandomErasing(p, scale, ratio, round(255 * value))
        case AutoAugment(fill):
            return v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10, fill=round(255 * fill))
        case TrivialAugmentWide(bins, fill):
            return v2.TrivialAugmentWide(bins, fill=round(255 * fill))
    return None
