"""A loss of one's own: a function (logits, targets) -> one loss an image; targets are classes, or soft with mixing.

python scripts/train.py --config docs/examples/own_loss.py --mix.mixup_alpha 0.2
"""

import jax
import jax.numpy as jnp

from jax_cifar.config import Config, DataConfig, OptimConfig, TrainConfig


def focal(logits, targets, gamma=2.0):
    """Cross-entropy weighted by (1 - p)^gamma, p the probability of the class (Lin et al., 2017)."""
    if targets.ndim == 1:
        targets = jax.nn.one_hot(targets, logits.shape[-1])
    logs = jax.nn.log_softmax(logits)
    return -jnp.sum(targets * (1 - jnp.exp(logs)) ** gamma * logs, axis=-1)


def get_config() -> Config:
    return Config(
        name="own_loss",
        data=DataConfig(name="digits"),
        optim=OptimConfig(lr=0.05),
        train=TrainConfig(epochs=3, batch_size=64, loss=focal),
    )
