"""A network of one's own: any linen module that takes `(images, train)` and returns logits.

python scripts/train.py --config docs/examples/own_network.py --model.features 32
"""

import flax.linen as nn

from jax_cifar.config import Config, DataConfig, OptimConfig, TrainConfig


class Net(nn.Module):
    """Two convolutions; flax's own BatchNorm and Dropout."""

    num_classes: int = 10  # filled in from the data
    features: int = 16
    dropout: float = 0.2

    @nn.compact
    def __call__(self, images, train):
        x = images
        for stage in range(2):
            x = nn.Conv(self.features * 2**stage, (3, 3), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
            x = nn.max_pool(x, (4, 4), (4, 4))
        x = nn.Dropout(self.dropout, deterministic=not train)(x.reshape(x.shape[0], -1))
        return nn.Dense(self.num_classes)(x)


def get_config() -> Config:
    return Config(
        name="own_network",
        data=DataConfig(name="digits"),
        model=Net(),
        optim=OptimConfig(lr=0.05, nesterov=True),
        train=TrainConfig(epochs=3, batch_size=64),
    )
