"""CIFAR-10 in as little time as possible: SpeedrunNet with Muon, in two sizes chosen by the backend.

python scripts/train.py --config configs/cifar10_speedrun.py

GPU and TPU: the airbench94_muon recipe (8 epochs, batch 2000, widths 64/256/256). Accuracy and time: not measured yet.
CPU: widths 16/64/64, one convolution per group, 4 epochs, batch 500. Test accuracy 81.05 % (sd 0.31, n = 3 seeds),
82.9 % with mirror-translate TTA; 148 s of training on 2 CPU cores, jax 0.10.2 (RESULTS.md).
"""

import dataclasses

import jax

from jax_cifar.augment import HorizontalFlip, RandomCrop
from jax_cifar.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    ScheduleConfig,
    TrainConfig,
)


def full() -> Config:
    """The GPU and TPU recipe (KellerJordan/cifar10-airbench, airbench94_muon).

    Its rates for biases and head, 0.053 and 0.67, are for the summed loss and logits divided by 256. For the mean over
    2000 images that is 106 for the biases, and with logits divided by 9 it is 0.67 * 2000 * (9 / 256) ** 2 = 1.66 for
    the head.
    """
    return Config(
        name="cifar10_speedrun",
        data=DataConfig(name="cifar10"),
        augment=(HorizontalFlip(mode="alternate"), RandomCrop(padding=2, padding_mode="reflect")),
        model=ModelConfig(name="speedrun_net", width=64),
        optim=OptimConfig(
            name="muon",
            lr=0.24,
            momentum=0.6,
            aux_lr=106.0,
            aux_momentum=0.85,
            lr_multipliers=((r"^head/", 1.66 / 106),),
        ),
        schedule=ScheduleConfig(name="triangular", pct_start=0.0, start_factor=1.0, end_factor=0.0),
        train=TrainConfig(epochs=8, batch_size=2000, label_smoothing=0.2),
        eval=EvalConfig(batch_size=2000, every=0, tta="mirror-translate"),
        checkpoint=CheckpointConfig(every=0),
    )


def small() -> Config:
    """The CPU recipe: the same with a narrow net and smaller batches."""
    config = full()
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, width=16, convs_per_group=1),
        optim=dataclasses.replace(config.optim, aux_lr=30.0, lr_multipliers=((r"^head/", 0.05),)),
        train=dataclasses.replace(config.train, epochs=4, batch_size=500),
        eval=dataclasses.replace(config.eval, every=1),
    )


def get_config() -> Config:
    return small() if jax.default_backend() == "cpu" else full()
