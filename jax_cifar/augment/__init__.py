"""Augmentation on the device: transforms of a batch of images, and the mixing of two images with their labels.

augment = compose((RandomCrop(padding=4), HorizontalFlip(), Sometimes(ColorJitter(0.2, 0.2))))
images = augment(key, images, SampleInfo(index, epoch))
mix = make_mixer(MixConfig(mixup_alpha=1.0))
if mix is not None:
    images, targets = mix(key, images, targets)

Images are batches [batch, height, width, channel] of floating pixels from 0 to 1; targets are one-hot or soft, [batch,
classes]. How to write a transform of one's own: see `base.py`.
"""

from jax_cifar.augment.affine import RandomAffine, RandomResizedCrop, RandomRotation
from jax_cifar.augment.base import Resampling, SampleInfo, Transform, compose
from jax_cifar.augment.boxes import CoarseDropout, Cutout, RandomErasing
from jax_cifar.augment.clahe import CLAHE
from jax_cifar.augment.colour import ColorJitter, ToGray
from jax_cifar.augment.crop_flip import HorizontalFlip, RandomCrop
from jax_cifar.augment.groups import OneOf, Sometimes
from jax_cifar.augment.mixing import CutMix, MixUp, make_mixer
from jax_cifar.augment.policies import AutoAugment, TrivialAugmentWide
from jax_cifar.augment.warp import ElasticTransform, GridDistortion
from jax_cifar.errors import ConfigError

__all__ = [
    "CLAHE",
    "AutoAugment",
    "CoarseDropout",
    "ColorJitter",
    "CutMix",
    "Cutout",
    "ElasticTransform",
    "GridDistortion",
    "HorizontalFlip",
    "MixUp",
    "OneOf",
    "RandomAffine",
    "RandomCrop",
    "RandomErasing",
    "RandomResizedCrop",
    "RandomRotation",
    "Resampling",
    "SampleInfo",
    "Sometimes",
    "ToGray",
    "Transform",
    "TrivialAugmentWide",
    "compose",
    "make_mixer",
]


def __getattr__(name: str) -> object:
    if name == "Normalize":
        raise ConfigError(
            "Normalize is no transform of jax_cifar.augment: images are normalised by the run itself, with the "
            "training images' statistics. A Normalize among the transforms would do it twice: leave it out."
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
