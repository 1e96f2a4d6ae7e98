"""The plain CIFAR-10 baseline: SimpleCNN, SGD 0.02 with momentum 0.9, batch 128, 10 epochs, no augmentation.

python scripts/train.py --config configs/cifar10_simple_cnn.py
    --model.norm batch        with batch-norm
    --schedule.name cosine    with a cosine schedule
python scripts/train.py --config configs/cifar10_simple_cnn.py:augmented

Variants: plain, test accuracy 71.56 % (sd 0.74, n = 5 seeds) with the kernels of 23 November; training took 86.2 s
(n = 2) and 91.4 s (n = 3) on 30 November, on 2 CPU cores with jax 0.10.2 (RESULTS.md). Published for this recipe:
71.87 %. augmented (also random crops and flips, warm-up + cosine, 20 epochs), 80.03 % (sd 0.28, n = 3 seeds), 506 s on
23 November; not timed since.
"""

import dataclasses
from typing import Literal

from jax_cifar.augment import HorizontalFlip, RandomCrop
from jax_cifar.config import Config, DataConfig, ModelConfig, OptimConfig, ScheduleConfig, TrainConfig

# Told at the start of training, by name; as in RESULTS.md.
REACHES = {
    "cifar10_simple_cnn": "71.56 % of the test images (sd 0.74, n = 5), in 86.2 to 91.4 s of training on 2 cores",
    "cifar10_simple_cnn_augmented": "80.03 % of the test images (sd 0.28, n = 3), in 506 s of training on 2 cores "
    "with the kernels of 23 November",
}


def get_config(variant: Literal["plain", "augmented"] = "plain") -> Config:
    config = Config(
        name="cifar10_simple_cnn",
        data=DataConfig(name="cifar10"),
        model=ModelConfig(name="simple_cnn", norm="none"),
        optim=OptimConfig(name="sgd", lr=0.02, momentum=0.9),
        schedule=ScheduleConfig(name="constant"),
        train=TrainConfig(epochs=10, batch_size=128),
    )
    if variant == "plain":
        return config
    return dataclasses.replace(
        config,
        name="cifar10_simple_cnn_augmented",
        augment=(RandomCrop(padding=4), HorizontalFlip()),
        schedule=ScheduleConfig(name="cosine", unit="run", warmup=1 / 20),
        train=dataclasses.replace(config.train, epochs=20),
    )
