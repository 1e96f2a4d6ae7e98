"""Handwritten digits, embedded in scikit-learn: the whole path in under a minute on a laptop, without a network.

python scripts/train.py --config configs/quickstart.py

Test accuracy: not measured yet.
"""

from jax_cifar.config import Config, DataConfig, LogConfig, ModelConfig, OptimConfig, ScheduleConfig, TrainConfig


def get_config() -> Config:
    return Config(
        name="quickstart",
        data=DataConfig(name="digits", val_fraction=0.1),
        model=ModelConfig(name="simple_cnn", norm="batch", width=16),
        optim=OptimConfig(name="sgd", lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4),
        schedule=ScheduleConfig(name="cosine", warmup=1),
        train=TrainConfig(epochs=10, batch_size=64),
        log=LogConfig(every=10),
    )
