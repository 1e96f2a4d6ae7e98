"""Augmentation on the device: transforms of a batch of images, and the mixing of two images with their labels.

augment = compose((RandomCrop(padding=4), HorizontalFlip(), Normalize(mean, std)))
images = augment(key, images, SampleInfo(index, epoch))
mix = make_mixer(config.mix)
if mix is not None:
    images, targets = mix(key, images, targets)
"""

from jax_cifar.augment.affine import RandomAffine, RandomResizedCrop, RandomRotation
from jax_cifar.augment.base import SampleInfo, Transform, compose
from jax_cifar.augment.boxes import CoarseDropout, RandomErasing
from jax_cifar.augment.clahe import CLAHE
from jax_cifar.augment.colour import ColorJitter, ToGray
from jax_cifar.augment.crop_flip import HorizontalFlip, RandomCrop
from jax_cifar.augment.cutout import Cutout
from jax_cifar.augment.groups import OneOf, Sometimes
from jax_cifar.augment.mixing import CutMix, MixUp, cutmix, make_mixer, mixup
from jax_cifar.augment.normalize import Normalize
from jax_cifar.augment.policies import AutoAugment, TrivialAugmentWide
from jax_cifar.augment.resize import downsample
from jax_cifar.augment.warp import ElasticTransform, GridDistortion

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
    "Normalize",
    "OneOf",
    "RandomAffine",
    "RandomCrop",
    "RandomErasing",
    "RandomResizedCrop",
    "RandomRotation",
    "SampleInfo",
    "Sometimes",
    "ToGray",
    "Transform",
    "TrivialAugmentWide",
    "compose",
    "cutmix",
    "downsample",
    "make_mixer",
    "mixup",
]
