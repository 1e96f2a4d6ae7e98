"""SimpleCNN with random crops and flips: the baseline of `cifar10_simple_cnn.py`, 20 epochs, cosine schedule.

python scripts/train.py --config configs/cifar10_simple_cnn_augmented.py

Test accuracy 80.03 % (sd 0.28, n = 3 seeds), 506 s of training on 2 CPU cores, jax 0.10.2 (RESULTS.md).
"""

import dataclasses
import runpy
from pathlib import Path

from jax_cifar.augment import HorizontalFlip, RandomCrop
from jax_cifar.config import Config, ScheduleConfig

baseline = runpy.run_path(str(Path(__file__).with_name("cifar10_simple_cnn.py")))["get_config"]


def get_config() -> Config:
    config = baseline()
    return dataclasses.replace(
        config,
        name="cifar10_simple_cnn_augmented",
        augment=(RandomCrop(padding=4), HorizontalFlip()),
        schedule=ScheduleConfig(name="cosine", warmup=1),
        train=dataclasses.replace(config.train, epochs=20),
    )
