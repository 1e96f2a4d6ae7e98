"""Where the references are listed, and the draws that they share."""

from collections.abc import Callable
from functools import singledispatch
from typing import Any, NamedTuple

import numpy as np

from jax_cifar.errors import ConfigError

Rng = np.random.Generator


class Reference(NamedTuple):
    """A transform of one image [height, width, 3], uint8 or floating from 0 to 1, in two steps."""

    draw: Callable[[Rng, tuple[int, ...]], Any]  # for an image of this shape
    apply: Callable[[np.ndarray, Any], np.ndarray]  # the image is left alone, the result may be a view of it


@singledispatch
def reference(transform: Any) -> Reference:
    """What does to one image what `transform` does to each of a batch; raises `ConfigError` where there is none."""
    raise ConfigError(f"{type(transform).__name__} has no reference in benchmarks/per_image: write one there.")


def between(rng: Rng, ends: tuple[float, float]) -> float:
    """A uniform draw; several times quicker than `rng.uniform`."""
    return ends[0] + (ends[1] - ends[0]) * rng.random()


def below(rng: Rng, count: int) -> int:
    """One of the first `count` integers."""
    return int(count * rng.random())


def levels(fill: Any, image: np.ndarray) -> Any:
    """Values from 0 to 1 in the unit of `image`."""
    return np.rint(255 * np.asarray(fill)).astype(np.uint8) if image.dtype == np.uint8 else fill
