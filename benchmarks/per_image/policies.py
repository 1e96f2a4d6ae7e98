"""AutoAugment and TrivialAugment of one image, by Pillow as torchvision does them."""

import math
from functools import cache

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from benchmarks.per_image.base import Change, Rng, below, reference
from benchmarks.per_image.geometry import NEAREST, affine
from jax_cifar.augment import AutoAugment, TrivialAugmentWide
from jax_cifar.augment.operations import OPERATIONS
from jax_cifar.augment.policies import CIFAR10_POLICY, SIGNED, autoaugment_magnitudes, trivialaugment_magnitudes


def operate(picture: Image.Image, name: str, amount: float, fill: tuple[int, ...] = (0, 0, 0)) -> Image.Image:
    """The operation `name` of AutoAugment and TrivialAugment by Pillow, at torchvision's magnitude."""
    match name:
        case "ShearX":
            return affine(picture, (1, amount, 0, 0, 1, 0), fill)
        case "ShearY":
            return affine(picture, (1, 0, 0, amount, 1, 0), fill)
        case "TranslateX":
            return affine(picture, (1, 0, -int(amount), 0, 1, 0), fill)
        case "TranslateY":
            return affine(picture, (1, 0, 0, 0, 1, -int(amount)), fill)
        case "Rotate":
            return picture.rotate(amount, NEAREST, fillcolor=fill)
        case "Posterize":
            return ImageOps.posterize(picture, int(amount))
        case "Solarize":
            return ImageOps.solarize(picture, math.ceil(amount))
        case "AutoContrast":
            return ImageOps.autocontrast(picture)
        case "Equalize":
            return ImageOps.equalize(picture)
        case "Invert":
            return ImageOps.invert(picture)
        case "Identity":
            return picture
    return getattr(ImageEnhance, name)(picture).enhance(1 + amount)


def directed(rng: Rng, name: str, amount: float) -> float:
    """`amount`, half of the time with the other sign where the operation has a direction."""
    return -amount if name in SIGNED and rng.random() < 0.5 else amount


@reference.register
def _(transform: AutoAugment) -> Change:
    fill, magnitudes = (round(255 * transform.fill),) * 3, cache(autoaugment_magnitudes)

    def change(rng: Rng, image: np.ndarray) -> np.ndarray:
        table, picture = magnitudes(*image.shape[:2]), Image.fromarray(image)
        for step in CIFAR10_POLICY[below(rng, len(CIFAR10_POLICY))]:
            if rng.random() < step.probability:
                amount = float(table[OPERATIONS.index(step.operation), step.bin])
                picture = operate(picture, step.operation, directed(rng, step.operation, amount), fill)
        return np.asarray(picture)

    return change


@reference.register
def _(transform: TrivialAugmentWide) -> Change:
    fill, table = (round(255 * transform.fill),) * 3, trivialaugment_magnitudes(transform.num_magnitude_bins)

    def change(rng: Rng, image: np.ndarray) -> np.ndarray:
        code = below(rng, OPERATIONS.index("Invert"))  # the one that TrivialAugment does without is the last
        amount = float(table[code, below(rng, table.shape[1])])
        picture = operate(Image.fromarray(image), OPERATIONS[code], directed(rng, OPERATIONS[code], amount), fill)
        return np.asarray(picture)

    return change
