"""Images inside the page: mistakes with what was said of them, and filters, each as PNG in the file itself."""

import base64
import io
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from jax_cifar.telemetry.html.charts import percent
from jax_cifar.telemetry.html.markup import Markup, tag

MOST_SIDE = 64  # pixels of an image in the page
MOST_FILTERS = 128
FILTER_SIDE = 24  # pixels of a filter, about


class Mistake(NamedTuple):
    """An image that was taken for something else."""

    pixels: UInt8[np.ndarray, "height width channel"]  # one channel is grey, three are RGB
    true: str
    said: str
    probability: float  # of what was said
    index: int  # in its part of the data set


def png_address(pixels: UInt8[np.ndarray, "height width channel"]) -> str:
    """A PNG file as the address that holds it."""
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def mistake_grid(mistakes: Sequence[Mistake]) -> Markup:
    """The images, each with its true class and what was said of it."""
    return tag("ul", map(_mistake, mistakes), class_="mistakes")


def _mistake(mistake: Mistake) -> Markup:
    height, width, channels = mistake.pixels.shape
    pixels = mistake.pixels if channels in (1, 3) else mistake.pixels[..., :1]
    step = math.ceil(max(height, width) / MOST_SIDE)
    image = tag(
        "img",
        src=png_address(np.ascontiguousarray(pixels[::step, ::step])),
        alt=f"Test image {mistake.index}, of the class {mistake.true}",
        class_="pixels",
    )
    sure = f"{percent(mistake.probability)} sure"
    lines = tag("p", mistake.said, class_="said"), tag("p", sure), tag("p", "is ", mistake.true, class_="quiet")
    return tag("li", image, lines)


def filter_image(filters: Sequence[Float[np.ndarray, "height width channel"]]) -> Markup:
    """Filters of values 0 to 1 beside each other; of more than three channels the mean is shown, grey."""
    filters = [each if each.shape[-1] in (1, 3) else each.mean(axis=-1, keepdims=True) for each in filters]
    shown = np.stack([np.repeat(each, 3, axis=-1) if each.shape[-1] == 1 else each for each in filters[:MOST_FILTERS]])
    scale = max(1, FILTER_SIDE // shown.shape[1])
    tiles = (255 * np.clip(shown, 0, 1)).round().astype(np.uint8).repeat(scale, axis=1).repeat(scale, axis=2)
    height, width = tiles.shape[1:3]
    images = (tag("img", src=png_address(tile), alt="", width=width, height=height) for tile in tiles)
    return tag("div", images, class_="filters", role="img", aria_label=f"{len(tiles)} filters of the first convolution")
