"""CIFAR-100 with everything that has paid off since: ResNet-18 or -34, 300 epochs, aimed above the published 82 %.

python scripts/train.py --config configs/cifar100_resnet_modern.py:resnet34

Nesterov SGD 0.1 with decay 5e-4, not on biases and norms; five epochs of warm-up, then cosine; TrivialAugment, crop,
flip and erasing; MixUp 0.2 or CutMix 1.0 on every other batch; smoothing 0.1; residual branches that start at zero; and
the average of the weights is what is judged. Test accuracy: not measured yet.
"""

from typing import Literal

from jax_cifar.augment import HorizontalFlip, RandomCrop, RandomErasing, TrivialAugmentWide
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


def get_config(variant: Literal["resnet18", "resnet34"] = "resnet34") -> Config:
    return Config(
        name=f"cifar100_resnet_modern_{variant}",
        data=DataConfig(name="cifar100"),
        augment=(
            RandomCrop(padding=4, padding_mode="reflect"),
            HorizontalFlip(),
            TrivialAugmentWide(),
            RandomErasing(p=0.25),
        ),
        mix=MixConfig(mixup_alpha=0.2, cutmix_alpha=1.0, probability=0.5),
        model=ModelConfig(name=variant, zero_init_residual=True),
        optim=OptimConfig(
            name="sgd",
            lr=0.1,
            momentum=0.9,
            nesterov=True,
            weight_decay=5e-4,
            decay_multipliers=((r"(bias|scale)$", 0.0),),
            ema_decay=0.999,
        ),
        schedule=ScheduleConfig(name="cosine", unit="run", warmup=5 / 300),
        train=TrainConfig(epochs=300, batch_size=128, label_smoothing=0.1),
        eval=EvalConfig(every=10, tta="mirror"),
        checkpoint=CheckpointConfig(every=20),
    )
