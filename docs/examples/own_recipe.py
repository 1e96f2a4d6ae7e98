"""A recipe of one's own, with variants, made of what another config file defines.

python scripts/train.py --config docs/examples/own_recipe.py:wide
"""

import dataclasses
from typing import Literal

import own_network

from jax_cifar.augment import RandomCrop
from jax_cifar.config import Config, ScheduleConfig


def get_config(variant: Literal["small", "wide"] = "small") -> Config:
    config = own_network.get_config()
    return dataclasses.replace(
        config,
        name=f"own_recipe_{variant}",
        augment=(RandomCrop(padding=3),),
        model=own_network.Net(features=16 if variant == "small" else 32),
        schedule=ScheduleConfig(name="cosine", unit="run", warmup=1 / 3),
    )
