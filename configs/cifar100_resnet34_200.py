"""CIFAR-100 with ResNet-34 in 200 epochs, final epoch: plain, to compare with published runs, and with mixing.

python scripts/train.py --config configs/cifar100_resnet34_200.py:mixed

Variants: plain (crop and flip) and mixed (also MixUp 0.2 or CutMix 1.0, each for half of the batches).

Batch 128, Nesterov SGD 0.1 and decay 5e-4 are those of weiaicunzai/pytorch-cifar100, whose ResNet-34 reaches 76.76 %
with the rate divided by 5 at epochs 60, 120 and 160 (best epoch by test accuracy). The cosine is that of the model
edadaltocg/resnet34_cifar100 (Hugging Face), 79.78 % after 300 epochs. Test accuracy: not measured yet (python
scripts/benchmark.py speedrun --recipes resnet34-plain resnet34-mixed).
"""

from typing import Literal

from jax_cifar.augment import HorizontalFlip, RandomCrop
from jax_cifar.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvalConfig,
    MixConfig,
    ModelConfig,
    OptimConfig,
    ScheduleConfig,
    TrainConfig,
)


def get_config(variant: Literal["plain", "mixed"] = "plain") -> Config:
    return Config(
        name=f"cifar100_resnet34_200_{variant}",
        data=DataConfig(name="cifar100"),
        augment=(RandomCrop(padding=4), HorizontalFlip()),
        mix=MixConfig(mixup_alpha=0.2, cutmix_alpha=1.0) if variant == "mixed" else MixConfig(),
        model=ModelConfig(name="resnet34"),
        optim=OptimConfig(name="sgd", lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
        schedule=ScheduleConfig(name="cosine"),
        train=TrainConfig(epochs=200, batch_size=128),
        eval=EvalConfig(every=10),
        checkpoint=CheckpointConfig(every=20),
    )
