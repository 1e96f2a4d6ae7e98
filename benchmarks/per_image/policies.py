"""AutoAugment and TrivialAugment of one image, by Pillow as torchvision does them."""

import math
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from benchmarks.per_image.base import Reference, Rng, below, reference
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


def directed(name: str, amount: float, positive: bool) -> float:
    """`amount` with its sign, where the operation has a direction."""
    return -amount if name in SIGNED and not positive else amount


@reference.register
def _(transform: AutoAugment) -> Reference:
    fill, magnitudes = (round(255 * transform.fill),) * 3, cache(autoaugment_magnitudes)

    def draw(rng: Rng, shape: tuple[int, ...]) -> tuple[int, list[bool], list[bool]]:
        choice = below(rng, len(CIFAR10_POLICY))
        applied = [rng.random() < step.probability for step in CIFAR10_POLICY[choice]]
        return choice, applied, [rng.random() < 0.5 for _ in applied]

    def apply(image: np.ndarray, draws: tuple[int, Any, Any]) -> np.ndarray:
        table, picture = magnitudes(*image.shape[:2]), Image.fromarray(image)
        for step, applied, positive in zip(CIFAR10_POLICY[draws[0]], *draws[1:], strict=True):
            if applied:
                amount = float(table[OPERATIONS.index(step.operation), step.bin])
                picture = operate(picture, step.operation, directed(step.operation, amount, positive), fill)
        return np.asarray(picture)

    return Reference(draw, apply)


@reference.register
def _(transform: TrivialAugmentWide) -> Reference:
    fill, table = (round(255 * transform.fill),) * 3, trivialaugment_magnitudes(transform.num_magnitude_bins)

    def draw(rng: Rng, shape: tuple[int, ...]) -> tuple[int, int, bool]:
        # The one that TrivialAugment does without is the last.
        return below(rng, OPERATIONS.index("Invert")), below(rng, table.shape[1]), rng.random() < 0.5

    def apply(image: np.ndarray, draws: tuple[int, int, bool]) -> np.ndarray:
        code, position, positive = draws
        amount = directed(OPERATIONS[code], float(table[code, position]), positive)
        return np.asarray(operate(Image.fromarray(image), OPERATIONS[code], amount, fill))

    return Reference(draw, apply)
