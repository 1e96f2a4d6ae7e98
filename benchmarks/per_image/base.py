"""Where the references are listed, and the draws that they share."""

from collections.abc import Callable
from functools import singledispatch
from typing import Any

import numpy as np

from jax_cifar.errors import ConfigError

Rng = np.random.Generator
Change = Callable[[Rng, np.ndarray], np.ndarray]  # of one image, uint8 [height, width, 3], which it leaves alone


@singledispatch
def reference(transform: Any) -> Change:
    """What does to one image what `transform` does to each of a batch; raises `ConfigError` where there is none."""
    raise ConfigError(f"{type(transform).__name__} has no reference in benchmarks/per_image: write one there.")


def with_probability(p: float, change: Change) -> Change:
    """`change` with probability `p`, else the image as it is."""
    return lambda rng, image: change(rng, image) if rng.random() < p else image


def between(rng: Rng, ends: tuple[float, float]) -> float:
    """A uniform draw; several times quicker than `rng.uniform`."""
    return ends[0] + (ends[1] - ends[0]) * rng.random()


def below(rng: Rng, count: int) -> int:
    """One of the first `count` integers."""
    return int(count * rng.random())
