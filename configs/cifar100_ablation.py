"""CIFAR-100, five optimizers on a network of two convolutions with BatchNorm, 5 epochs each and no augmentation.

python scripts/train.py --config configs/cifar100_ablation.py:adam

Variants, with the loss published for each, and test loss and accuracy here (one seed; RESULTS.md):
adam (rate 1e-3) 2.82, here 2.343 and 39.54 %; sgd (0.01, momentum 0.9) 2.765, here 2.361 and 39.98 %; sgd_decay (the
same, decay 5e-4) 2.80, here 2.342 and 39.77 %; adamw (1e-3) 2.8445, here 2.347 and 39.28 %; adamw_slow (1e-4) 3.1575,
here 2.678 and 34.41 %.
"""

from typing import Literal

from jax_cifar.config import Config, DataConfig, ModelConfig, OptimConfig, ScheduleConfig, TrainConfig

OPTIMIZERS = {
    "adam": OptimConfig(name="adam", lr=1e-3),
    "sgd": OptimConfig(name="sgd", lr=0.01, momentum=0.9),
    "sgd_decay": OptimConfig(name="sgd", lr=0.01, momentum=0.9, weight_decay=5e-4),
    "adamw": OptimConfig(name="adamw", lr=1e-3, weight_decay=0.01),
    "adamw_slow": OptimConfig(name="adamw", lr=1e-4, weight_decay=0.01),
}


def get_config(variant: Literal["adam", "sgd", "sgd_decay", "adamw", "adamw_slow"] = "adam") -> Config:
    return Config(
        name=f"cifar100_ablation_{variant}",
        data=DataConfig(name="cifar100"),
        model=ModelConfig(name="simple_cnn", norm="batch"),
        optim=OPTIMIZERS[variant],
        schedule=ScheduleConfig(name="constant"),
        train=TrainConfig(epochs=5, batch_size=128),
    )
