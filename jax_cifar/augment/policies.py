"""AutoAugment with the policy found for CIFAR-10, and TrivialAugment: operations of Pillow drawn for every image.

Both are torchvision's, with its magnitudes and its order of operations; `operations.py` does the work.
"""

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jax_cifar.augment.base import Fill, Images, SampleInfo, Transform
from jax_cifar.augment.operations import OPERATIONS, apply_operations
from jax_cifar.config.checks import between


class Step(NamedTuple):
    """One of the two operations of a sub-policy."""

    operation: str
    probability: float
    bin: int = 0  # one of ten magnitudes; AutoContrast, Equalize and Invert have none


# The policy found on reduced CIFAR-10 (arXiv 1805.09501, appendix), in its order.
CIFAR10_POLICY = (
    (Step("Invert", 0.1), Step("Contrast", 0.2, 6)),
    (Step("Rotate", 0.7, 2), Step("TranslateX", 0.3, 9)),
    (Step("Sharpness", 0.8, 1), Step("Sharpness", 0.9, 3)),
    (Step("ShearY", 0.5, 8), Step("TranslateY", 0.7, 9)),
    (Step("AutoContrast", 0.5), Step("Equalize", 0.9)),
    (Step("ShearY", 0.2, 7), Step("Posterize", 0.3, 7)),
    (Step("Color", 0.4, 3), Step("Brightness", 0.6, 7)),
    (Step("Sharpness", 0.3, 9), Step("Brightness", 0.7, 9)),
    (Step("Equalize", 0.6), Step("Equalize", 0.5)),
    (Step("Contrast", 0.6, 7), Step("Sharpness", 0.6, 5)),
    (Step("Color", 0.7, 7), Step("TranslateX", 0.5, 8)),
    (Step("Equalize", 0.3), Step("AutoContrast", 0.4)),
    (Step("TranslateY", 0.4, 3), Step("Sharpness", 0.2, 6)),
    (Step("Brightness", 0.9, 6), Step("Color", 0.2, 8)),
    (Step("Solarize", 0.5, 2), Step("Invert", 0.0)),
    (Step("Equalize", 0.2), Step("AutoContrast", 0.6)),
    (Step("Equalize", 0.2), Step("Equalize", 0.6)),
    (Step("Color", 0.9, 9), Step("Equalize", 0.6)),
    (Step("AutoContrast", 0.8), Step("Solarize", 0.2, 8)),
    (Step("Brightness", 0.1, 3), Step("Color", 0.7, 0)),
    (Step("Solarize", 0.4, 5), Step("AutoContrast", 0.9)),
    (Step("TranslateY", 0.9, 9), Step("TranslateY", 0.7, 9)),
    (Step("AutoContrast", 0.9), Step("Solarize", 0.8, 3)),
    (Step("Equalize", 0.8), Step("Invert", 0.1)),
    (Step("TranslateY", 0.7, 9), Step("AutoContrast", 0.9)),
)
SIGNED = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness")
BINS = 10  # magnitudes that AutoAugment chooses from


class PolicyDraws(NamedTuple):
    """Which sub-policy every image gets, and of its two operations, which happen and in which direction."""

    choice: Int[Array, " batch"]
    applied: Bool[Array, "batch 2"]
    positive: Bool[Array, "batch 2"]


@dataclass(frozen=True)
class AutoAugment(Transform):
    """One of the 25 sub-policies found for CIFAR-10, drawn for every image (Cubuk et al., arXiv 1805.09501).

    Torchvision's `AutoAugment(AutoAugmentPolicy.CIFAR10)`. A sub-policy is two operations in a row; each happens with
    its own probability, at its own magnitude, and where it has a direction, towards either side equally often.

    Works on 256 levels: apply it to raw pixels, before transforms that leave values between them. Images that no
    operation touches keep their values.

    Raises:
        ConfigError: `fill` is out of range, or the images have neither 1 nor 3 channels.
    """

    fill: Fill = 0.0  # value of what comes from outside the image

    def draw(self, key: PRNGKeyArray, shape: tuple[int, ...], info: SampleInfo | None = None) -> PolicyDraws:
        batch = shape[0]
        choice = jax.random.randint(jax.random.fold_in(key, 0), (batch,), 0, len(CIFAR10_POLICY), jnp.int32)
        chance = jax.random.uniform(jax.random.fold_in(key, 1), (2, batch), jnp.float32)
        positive = jax.random.bernoulli(jax.random.fold_in(key, 2), 0.5, (2, batch))
        probabilities = [[step.probability for step in steps] for steps in CIFAR10_POLICY]
        probability = jnp.asarray(probabilities, jnp.float32)[choice]
        return PolicyDraws(choice, probability > chance.T, positive.T)

    def transform(self, images: Images, draws: PolicyDraws) -> Images:
        magnitudes = autoaugment_magnitudes(*images.shape[1:3])
        codes = [[OPERATIONS.index(step.operation) for step in steps] for steps in CIFAR10_POLICY]
        amounts = [
            [magnitudes[OPERATIONS.index(step.operation), step.bin] for step in steps] for steps in CIFAR10_POLICY
        ]
        code, amount = jnp.asarray(codes, jnp.int32)[draws.choice], jnp.asarray(amounts, jnp.float32)[draws.choice]
        operation = jnp.where(draws.applied, code, OPERATIONS.index("Identity"))
        return apply_operations(images, operation, directed(operation, amount, draws.positive), self.fill)


class TrivialDraws(NamedTuple):
    """Every image's operation, the position of its magnitude, and its direction."""

    operation: Int[Array, " batch"]
    bins: Int[Array, " batch"]
    positive: Bool[Array, " batch"]


@dataclass(frozen=True)
class TrivialAugmentWide(Transform):
    """One operation at one magnitude for every image, all of them equally likely (arXiv 2103.10158).

    Torchvision's `TrivialAugmentWide`: fourteen operations, one of which does nothing, over its wide ranges. The paper
    adds crop, flip and Cutout. Works on 256 levels: apply it to raw pixels.

    Raises:
        ConfigError: a parameter is out of range, or the images have neither 1 nor 3 channels.
    """

    # Magnitudes between the weakest and the strongest, both included.
    num_magnitude_bins: Annotated[int, between(2, 1000)] = 31
    fill: Fill = 0.0  # value of what comes from outside the image

    def draw(self, key: PRNGKeyArray, shape: tuple[int, ...], info: SampleInfo | None = None) -> TrivialDraws:
        shape, count = shape[:1], OPERATIONS.index("Invert")  # which TrivialAugment does without
        operation = jax.random.randint(jax.random.fold_in(key, 0), shape, 0, count, jnp.int32)
        bins = jax.random.randint(jax.random.fold_in(key, 1), shape, 0, self.num_magnitude_bins, jnp.int32)
        return TrivialDraws(operation, bins, jax.random.bernoulli(jax.random.fold_in(key, 2), 0.5, shape))

    def transform(self, images: Images, draws: TrivialDraws) -> Images:
        amount = jnp.asarray(trivialaugment_magnitudes(self.num_magnitude_bins))[draws.operation, draws.bins]
        magnitude = directed(draws.operation, amount, draws.positive)
        return apply_operations(images, draws.operation[:, None], magnitude[:, None], self.fill)


def directed(operation: Int[Array, "..."], amount: Float[Array, "..."], positive: Bool[Array, "..."]) -> Array:
    """The magnitudes with their signs; those without a direction stay as they are."""
    signed = jnp.asarray([name in SIGNED for name in OPERATIONS])[operation]
    return jnp.where(signed & ~positive, -amount, amount)


def autoaugment_magnitudes(height: int, width: int) -> Float[np.ndarray, "operation bin"]:
    """Torchvision's ten magnitudes of every operation. Translations are a share of the image."""
    ranges = {
        "ShearX": (0.0, 0.3),
        "ShearY": (0.0, 0.3),
        "TranslateX": (0.0, 150 / 331 * width),
        "TranslateY": (0.0, 150 / 331 * height),
        "Rotate": (0.0, 30.0),
        **dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), (0.0, 0.9)),
    }
    return magnitude_table(ranges, least_bits=4, bins=BINS)


def trivialaugment_magnitudes(bins: int) -> Float[np.ndarray, "operation bin"]:
    """The magnitudes of torchvision's `TrivialAugmentWide`. Translations are in pixels, of images of any size."""
    ranges = {
        "ShearX": (0.0, 0.99),
        "ShearY": (0.0, 0.99),
        "TranslateX": (0.0, 32.0),
        "TranslateY": (0.0, 32.0),
        "Rotate": (0.0, 135.0),
        **dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), (0.0, 0.99)),
    }
    return magnitude_table(ranges, least_bits=2, bins=bins)


def magnitude_table(
    ranges: dict[str, tuple[float, float]], least_bits: int, bins: int
) -> Float[np.ndarray, "operation bin"]:
    """One row per operation: evenly spaced; Posterize whole bits from 8 down, Solarize thresholds from 255 down."""
    table = np.zeros((len(OPERATIONS), bins), np.float32)
    for name, (low, high) in (ranges | {"Solarize": (255.0, 0.0)}).items():
        table[OPERATIONS.index(name)] = linspace(low, high, bins)
    table[OPERATIONS.index("Posterize")] = 8 - np.rint(np.arange(bins) * (8 - least_bits) / (bins - 1))
    return table


def linspace(low: float, high: float, count: int) -> Float[np.ndarray, " count"]:
    """`torch.linspace` in float32, to the last bit: thresholds and truncated pixels depend on it.

    It steps up from `low` in the first half and down from `high` in the second, by fused multiply-adds, which are
    products and sums rounded once.
    """
    low32, high32 = np.float32(low), np.float32(high)
    step = np.float64((high32 - low32) / np.float32(count - 1))
    up = np.arange(count)
    return np.where(up < count // 2, low32 + step * up, high32 - step * up[::-1]).astype(np.float32)
