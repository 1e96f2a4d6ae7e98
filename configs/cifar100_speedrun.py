"""CIFAR-100 to 75 % without test-time augmentation in as little time as possible: SpeedrunNet with Muon.

python scripts/train.py --config configs/cifar100_speedrun.py

For GPU and TPU; a CPU takes hours. Network and rates are those of configs/cifar10_speedrun.py:96 (its sources and what
differs from them stand there), with the milder augmentation of its 94, for half as many epochs: airbench96's recipe
reaches 79.27 % here after 37 epochs of SGD, with test-time augmentation (Jordan, arXiv 2404.00498). Accuracy and time:
not measured yet (python scripts/benchmark.py speedrun --recipes cifar100-75).
"""

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

SCALE = 9 / 11.5  # of airbench94's rates, for twice its width


def get_config() -> Config:
    return Config(
        name="cifar100_speedrun",
        data=DataConfig(name="cifar100"),
        augment=(HorizontalFlip(mode="alternate"), RandomCrop(padding=2, padding_mode="reflect")),
        model=ModelConfig(name="speedrun_net", width=128, convs_per_group=3),
        optim=OptimConfig(
            name="muon",
            lr=SCALE * 0.24,
            momentum=0.6,
            aux_lr=SCALE * 106.0,
            aux_momentum=0.85,
            lr_multipliers=((r"^head/", 1.66 / 106 / 2),),
        ),
        schedule=ScheduleConfig(name="triangular", pct_start=0.0, start_factor=1.0, end_factor=0.0),
        train=TrainConfig(
            epochs=18, batch_size=2000, label_smoothing=0.2, resolutions=((24, 1 / 3), (28, 1 / 3), (32, 1 / 3))
        ),
        eval=EvalConfig(batch_size=2000, every=0),
        checkpoint=CheckpointConfig(every=0),
    )
