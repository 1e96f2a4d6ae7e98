"""CIFAR-100 with ResNet-34: SGD 0.1, decay 1e-3, smoothing 0.1, MixUp and CutMix, warm restarts, 400 epochs.

python scripts/train.py --config configs/cifar100_resnet34.py

The published pipeline aims at 70-75 %. Each batch here gets MixUp or CutMix, never one on top of the other.
Test accuracy: not measured yet.
"""

from jax_cifar.augment import HorizontalFlip, RandomCrop
from jax_cifar.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    MixConfig,
    ModelConfig,
    OptimConfig,
    ScheduleConfig,
    TrainConfig,
)


def get_config() -> Config:
    return Config(
        name="cifar100_resnet34",
        data=DataConfig(name="cifar100"),
        augment=(RandomCrop(padding=4), HorizontalFlip()),
        mix=MixConfig(mixup_alpha=1.0, cutmix_alpha=1.0),
        model=ModelConfig(name="resnet34", norm="batch", stem="cifar"),
        optim=OptimConfig(name="sgd", lr=0.1, momentum=0.9, weight_decay=1e-3),
        schedule=ScheduleConfig(name="warm_restarts", t_0=50, t_mult=2),
        train=TrainConfig(epochs=400, batch_size=128, label_smoothing=0.1),
        checkpoint=CheckpointConfig(every=20),
    )
