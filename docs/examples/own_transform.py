"""A transform of one's own, alone and inside the library's groups.

python scripts/visualize.py augment --config docs/examples/own_transform.py --out augment.png
"""

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp

from jax_cifar.augment import OneOf, RandomCrop, Sometimes, ToGray, Transform
from jax_cifar.config import Config, DataConfig, TrainConfig
from jax_cifar.config.checks import between


@dataclass(frozen=True)
class Brighten(Transform):
    """Add an amount of its own to the pixels of every image."""

    most: Annotated[float, between(0, 1)] = 0.3  # the largest amount

    def draw(self, key, shape, info=None):
        return jax.random.uniform(key, shape[:1], jnp.float32, 0.0, self.most)

    def transform(self, images, draws):
        return jnp.clip(images + draws[:, None, None, None], 0.0, 1.0)


def get_config() -> Config:
    return Config(
        name="own_transform",
        data=DataConfig(name="digits"),
        augment=(RandomCrop(padding=3), Sometimes(Brighten(0.2)), OneOf((Brighten(), ToGray()))),
        train=TrainConfig(epochs=3, batch_size=64),
    )
