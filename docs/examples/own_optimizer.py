"""An update rule of one's own: any function from a learning rate to an optax transformation.

python scripts/train.py --config docs/examples/own_optimizer.py:ademamix --optim.clip_norm 1
"""

import functools
from typing import Literal

import optax
import optax.contrib

from jax_cifar.config import Config, DataConfig, OptimConfig, ScheduleConfig, TrainConfig


def centred_adam(learning_rate, b1=0.9):
    """Adam on gradients whose mean over every kernel's inputs is taken off (Yong et al., 2020)."""
    return optax.chain(optax.centralize(), optax.adam(learning_rate, b1=b1))


RULES = {
    "lion": (functools.partial(optax.lion, b1=0.95), 1e-3),
    "ademamix": (optax.contrib.ademamix, 1e-3),
    "centred": (functools.partial(centred_adam, b1=0.85), 3e-3),
}


def get_config(variant: Literal["lion", "ademamix", "centred"] = "lion") -> Config:
    rule, lr = RULES[variant]
    return Config(
        name=f"own_optimizer_{variant}",
        data=DataConfig(name="digits"),
        optim=OptimConfig(name=rule, lr=lr, ema_decay=0.95),
        schedule=ScheduleConfig(name="cosine", unit="run", warmup=1 / 6),
        train=TrainConfig(epochs=3, batch_size=64),
    )
