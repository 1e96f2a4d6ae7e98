"""Augmentation on the device: transforms of a batch of images, and the mixing of two images with their labels.

augment = compose((RandomCrop(padding=4), HorizontalFlip(), Normalize(mean, std)))
images = augment(key, images, SampleInfo(index, epoch))
mix = make_mixer(config.mix)
if mix is not None:
    images, targets = mix(key, images, targets)
"""

from jax_cifar.augment.affine import RandomAffine, RandomResizedCrop, RandomRotation
from jax_cifar.augment.base import SampleInfo, Transform, compose
from jax_cifar.augment.erasing import Cutout
from jax_cifar.augment.geometric import HorizontalFlip, RandomCrop
from jax_cifar.augment.mixing import CutMix, MixUp, cutmix, make_mixer, mixup
from jax_cifar.augment.normalize import Normalize
from jax_cifar.augment.policies import AutoAugment, TrivialAugmentWide
from jax_cifar.augment.warp import ElasticTransform, GridDistortion

__all__ = [
    "AutoAugment",
    "CutMix",
    "Cutout",
    "ElasticTransform",
    "GridDistortion",
    "HorizontalFlip",
    "MixUp",
    "Normalize",
    "RandomAffine",
    "RandomCrop",
    "RandomResizedCrop",
    "RandomRotation",
    "SampleInfo",
    "Transform",
    "TrivialAugmentWide",
    "compose",
    "cutmix",
    "make_mixer",
    "mixup",
]
