"""The operations of AutoAugment, RandAugment and TrivialAugment, one of them for every image of a batch.

An operation has a magnitude in the unit that torchvision hands to Pillow: slope, pixels, degrees, change of a factor,
bits, or threshold. A branch for every image would compute all fifteen operations for each. So they form families:

1. a nearest-neighbour affine map: ShearX, ShearY, TranslateX, TranslateY, Rotate;
2. a blend with another image: Color (its grey one), Sharpness (its smoothed one);
3. a function of each level: Brightness, Contrast, Posterize, Solarize, Invert;
4. and 5. a table of 256 entries per image and channel: AutoContrast, Equalize.

All of it works on levels from 0 to 255, as Pillow does, and with Pillow's roundings, which are documented where they
happen: on images of 8 bits the result is Pillow's, pixel for pixel. Other values are first rounded to the nearest one.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_cifar.augment.base import Images
from jax_cifar.augment.portions import change_chosen
from jax_cifar.backend.portions import materialize
from jax_cifar.errors import ConfigError

# The first fourteen in the order of torchvision's TrivialAugmentWide.
OPERATIONS = (
    "Identity",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
    "Invert",
)

FAMILIES = (
    ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"),
    ("Color", "Sharpness"),
    ("Brightness", "Contrast", "Posterize", "Solarize", "Invert"),
    ("AutoContrast",),
    ("Equalize",),
    ("Identity",),
)

Levels = Int[Array, "batch channel height width"]  # pixels from 0 to 255; channels apart are several times faster
Tables = Int[Array, "batch channel 256"]  # what every level becomes
PerImage = Float[Array, " batch"]
Chosen = Int[Array, " batch"]  # positions in OPERATIONS

_BITS = 16  # Pillow's affine map counts in 1/65536 of a pixel
_UNIT = 2**_BITS


def apply_operations(
    images: Images, operation: Int[Array, "batch rounds"], magnitude: Float[Array, "batch rounds"], fill: float = 0.0
) -> Images:
    """Apply to every image its own `operation`, a position in `OPERATIONS`, in each of the rounds one after another.

    Magnitudes are those of torchvision's `_apply_op`: the slope of a shear; the pixels of a translation (truncated);
    degrees of a rotation; Brightness, Color, Contrast and Sharpness: the factor minus 1; Posterize: bits to keep;
    Solarize: the level from which on pixels are inverted. The others have none. Places that come from outside the
    image take the value `fill`. An image with Identity in all rounds is returned as it is, not rounded to 256 levels.

    Raises:
        ConfigError: the images have neither one channel nor three.
    """
    if images.shape[-1] not in (1, 3):
        raise ConfigError(f"images of {images.shape[-1]} channels cannot be augmented: they must be grey or RGB.")
    levels = materialize(jnp.round(jnp.moveaxis(images, 3, 1).astype(jnp.float32) * 255).astype(jnp.int32))

    def apply_next(levels: Levels, own: tuple[Chosen, PerImage]) -> tuple[Levels, None]:
        return apply_round(levels, *own, round(fill * 255)), None

    levels, _ = jax.lax.scan(apply_next, levels, (operation.T, magnitude.T.astype(jnp.float32)))
    untouched = jnp.all(operation == OPERATIONS.index("Identity"), axis=1)
    return jnp.where(untouched[:, None, None, None], images, jnp.moveaxis(levels, 1, 3).astype(images.dtype) / 255)


def apply_round(levels: Levels, chosen: Chosen, amount: PerImage, fill: int) -> Levels:
    """One operation per image, each family on its own images."""

    def geometric(levels: Levels, own: tuple[Chosen, PerImage]) -> Levels:
        return move_pixels(levels, matrices(*own, *levels.shape[2:]), fill)

    def blended(levels: Levels, own: tuple[Chosen, PerImage]) -> Levels:
        return enhance(levels, own[0], 1 + own[1])

    def pointwise(levels: Levels, own: tuple[Chosen, PerImage]) -> Levels:
        return change_levels(levels, *own)

    def stretched(levels: Levels, own: tuple[Chosen, PerImage]) -> Levels:
        return look_up(levels, materialize(autocontrast(levels)))

    def equalized(levels: Levels, own: tuple[Chosen, PerImage]) -> Levels:
        return look_up(levels, materialize(equalize(levels)))

    changes = (geometric, blended, pointwise, stretched, equalized)
    families = [[name in family for family in FAMILIES].index(True) for name in OPERATIONS]
    family = jnp.asarray(families, jnp.int32)[chosen]
    return change_chosen(levels, family, changes, [(chosen, amount)] * len(changes))


def where_chosen(chosen: Chosen, name: str, value: PerImage, otherwise: float = 0.0) -> PerImage:
    """`value` for the images whose operation is `name`."""
    return jnp.where(chosen == OPERATIONS.index(name), value, jnp.asarray(otherwise, value.dtype))


def matrices(chosen: Chosen, amount: PerImage, height: int, width: int) -> Int[Array, "batch 2 3"]:
    """Where an output pixel comes from, in 1/65536 of a pixel: (x, y) = matrix @ (column, row, 1).

    As in torchvision, shears leave the top left corner in its place and rotations the centre; Pillow takes pixel
    (0, 0) to be at (0.5, 0.5), and rounds each of the six numbers on its own. Sine and cosine are float32 here, double
    in Pillow: a number may come out one unit away, which moves a pixel in under one image of a hundred.
    """
    angle = jnp.deg2rad(where_chosen(chosen, "Rotate", amount))
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    by_row = where_chosen(chosen, "ShearX", amount) - sine
    by_column = where_chosen(chosen, "ShearY", amount) + sine
    rotated = chosen == OPERATIONS.index("Rotate")
    x0 = jnp.where(rotated, 0.5 - width / 2, 0.5)  # the first pixel, seen from the fixed point
    y0 = jnp.where(rotated, 0.5 - height / 2, 0.5)
    right = where_chosen(chosen, "TranslateX", amount).astype(jnp.int32)
    down = where_chosen(chosen, "TranslateY", amount).astype(jnp.int32)

    def fixed(value: Array) -> Array:
        return jnp.floor(value * _UNIT + 0.5).astype(jnp.int32)

    # The first pixel's own place, half a pixel, is taken out of the products: whole units, which are added exactly.
    x = fixed((cosine - 1) * x0 + by_row * y0) + _UNIT // 2 - right * _UNIT
    y = fixed((cosine - 1) * y0 + by_column * x0) + _UNIT // 2 - down * _UNIT
    rows = jnp.stack([fixed(cosine), fixed(by_row), x], -1), jnp.stack([fixed(by_column), fixed(cosine), y], -1)
    return jnp.stack(rows, 1)


def move_pixels(levels: Levels, matrix: Int[Array, "batch 2 3"], fill: int) -> Levels:
    """Take every pixel from the place that `matrix` gives, and `fill` from outside."""
    batch, channels, height, width = levels.shape
    rows = jnp.arange(height, dtype=jnp.int32)[None, None, :, None]
    columns = jnp.arange(width, dtype=jnp.int32)[None, None, None, :]
    terms = matrix[..., None, None, None]
    x, y = ((terms[:, i, 0] * columns + terms[:, i, 1] * rows + terms[:, i, 2]) >> _BITS for i in (0, 1))
    inside = ((x >= 0) & (x < width) & (y >= 0) & (y < height)).reshape(batch, 1, -1)
    source = jnp.where(inside, (y * width + x).reshape(batch, 1, -1), 0)
    moved = jnp.take_along_axis(levels.reshape(batch, channels, -1), source, axis=2)
    return jnp.where(inside, moved, fill).reshape(levels.shape)


def enhance(levels: Levels, chosen: Chosen, factor: PerImage) -> Levels:
    """Color and Sharpness: blend the image with its grey or its smoothed one."""
    is_sharpness = (chosen == OPERATIONS.index("Sharpness"))[:, None, None, None]
    is_color = (chosen == OPERATIONS.index("Color"))[:, None, None, None]
    other = jnp.where(is_sharpness, smooth(levels), jnp.where(is_color, grey(levels), levels))
    return blend_levels(other, levels, factor[:, None, None, None])


def blend_levels(start: Int[Array, "..."], end: Int[Array, "..."], factor: Float[Array, "..."]) -> Int[Array, "..."]:
    """Pillow's `Image.blend`: `start + factor * (end - start)` in float32, clipped and truncated.

    Truncation shows the last bit, so that product and sum must be rounded one by one, as Pillow's are. The inner clip
    changes no value: it keeps the compiler from fusing the two into one operation with one rounding.
    """
    product = jnp.clip(factor * (end - start).astype(jnp.float32), -1e4, 1e4)
    return jnp.clip(start.astype(jnp.float32) + product, 0, 255).astype(jnp.int32)


def grey(levels: Levels) -> Levels:
    """Pillow's conversion to "L": ITU-R 601-2 luma with weights in 1/65536, rounded. One channel is already grey."""
    if levels.shape[1] == 1:
        return levels
    luma = (19595 * levels[:, :1] + 38470 * levels[:, 1:2] + 7471 * levels[:, 2:] + 2**15) >> 16
    return jnp.broadcast_to(luma, levels.shape)


def smooth(levels: Levels) -> Levels:
    """Pillow's `ImageFilter.SMOOTH`: 3 x 3 weights of 1, 5 in the middle, over 13. The border stays as it is."""
    rows = levels[:, :, :-2] + levels[:, :, 1:-1] + levels[:, :, 2:]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * levels[:, :, 1:-1, 1:-1]
    # No multiple of 1/13 is closer than 1/26 to where rounding turns.
    return levels.at[:, :, 1:-1, 1:-1].set(jnp.floor(total.astype(jnp.float32) / 13 + 0.5).astype(jnp.int32))


def look_up(levels: Levels, table: Tables) -> Levels:
    """Replace every level by its entry in the table of its image and channel."""
    flat = levels.reshape(*levels.shape[:2], -1)
    return jnp.take_along_axis(table, flat, axis=2).reshape(levels.shape)


def quotient(numerator: Int[Array, "..."], denominator: Int[Array, "..."]) -> Int[Array, "..."]:
    """`numerator // denominator` of numbers from 0 to 2^22, in float32: integer division is slow on a CPU.

    The half keeps whole quotients further from where they would be rounded down than float32 can err.
    """
    return jnp.floor((numerator.astype(jnp.float32) + 0.5) / denominator.astype(jnp.float32)).astype(jnp.int32)


def change_levels(levels: Levels, chosen: Chosen, amount: PerImage) -> Levels:
    """The operations that change every level without a look at the others, but for Contrast at their mean."""
    limit = amount[:, None, None, None]
    mean = jnp.mean(grey(levels)[:, 0].astype(jnp.float32), axis=(1, 2))  # exact up to 256 x 256 pixels
    mean = materialize(jnp.floor(mean + 0.5).astype(jnp.int32))[:, None, None, None]
    bits = jnp.clip(limit.astype(jnp.int32), 0, 8)
    changed = {
        "Brightness": blend_levels(jnp.zeros_like(levels), levels, 1 + limit),
        "Contrast": blend_levels(mean, levels, 1 + limit),
        "Posterize": (levels >> (8 - bits)) << (8 - bits),
        "Solarize": jnp.where(levels.astype(jnp.float32) < limit, levels, 255 - levels),
        "Invert": 255 - levels,
    }
    result = levels
    for name, values in changed.items():
        result = jnp.where((chosen == OPERATIONS.index(name))[:, None, None, None], values, result)
    return result


def equalize(levels: Levels) -> Tables:
    """Tables that spread the levels of each channel evenly (`ImageOps.equalize`).

    A level becomes the number of pixels below it, in steps of a 255th of those below the highest level. Steps are
    truncated to whole pixels: in small images the brightest levels would pass 255, and all become 255.
    """
    batch, channels = levels.shape[:2]
    start = 256 * jnp.arange(batch * channels, dtype=jnp.int32).reshape(batch, channels, 1, 1)
    counts = jnp.zeros(batch * channels * 256, jnp.int32).at[start + levels].add(1).reshape(batch, channels, 256)
    level = jnp.arange(256, dtype=jnp.int32)[None, None, :]
    below = jnp.cumsum(counts, axis=-1) - counts
    highest = jnp.max(levels, axis=(2, 3))[..., None]
    step = jnp.sum(jnp.where(level < highest, counts, 0), axis=-1, keepdims=True, dtype=jnp.int32) // 255
    spread = jnp.minimum(quotient(step // 2 + below, jnp.maximum(step, 1)), 255)
    return jnp.where(step > 0, spread, level)


def autocontrast(levels: Levels) -> Tables:
    """Tables that stretch each channel's lowest and highest level to 0 and 255 (`ImageOps.autocontrast`, no cutoff).

    Pillow truncates `level * scale - lowest * scale`, in double precision, so that a result that ought to be a whole
    number may end up one below it: often 254 for the highest level. That is reproduced: see `double_roundings`.
    """
    level = jnp.arange(256, dtype=jnp.int32)[None, None, :]
    lowest = jnp.min(levels, axis=(2, 3))[..., None]
    highest = jnp.max(levels, axis=(2, 3))[..., None]
    span = jnp.maximum(highest - lowest, 1)
    scaled = 255 * jnp.maximum(level - lowest, 0)
    stretched = jnp.minimum(quotient(scaled, span), 255)
    errors = jnp.asarray(double_roundings())[span[..., 0]]
    error = errors - jnp.take_along_axis(errors, lowest, axis=-1)
    # Doubles just below `stretched` are this far apart, in units of 2^-52: beyond half of it, one of them is nearer.
    gap = jnp.asarray(_GAP_BELOW)[stretched]
    falls_short = (stretched * span == scaled) & (2 * error.astype(jnp.float32) < -gap)
    return jnp.where(highest > lowest, stretched - falls_short.astype(jnp.int32), level)


# For the whole numbers from 0 to 255, the distance to the double below.
_GAP_BELOW = (2.0 ** (np.frexp(np.arange(256) - 0.5)[1] - 1)).astype(np.float32)


@functools.cache
def double_roundings() -> Int[np.ndarray, "256 256"]:
    """[span, level]: what double precision adds to `level * (255 / span)`, in units of 2^-52, up to a constant.

    The constant depends on the remainder of `255 * level / span` alone. It cancels in the difference of two levels
    that are a whole number apart, the only one that is asked for.
    """
    span = np.arange(256)[:, None].clip(1)
    whole, rest = np.divmod(255 * np.arange(256)[None, :], span)
    product = np.arange(256)[None, :] * (255.0 / span)
    return ((product - whole) * 2.0**52 - np.rint(rest / span * 2.0**52)).astype(np.int32)
