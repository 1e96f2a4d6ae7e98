"""A schedule of one's own: a function (step, total_steps) -> share of `optim.lr`, with step from 0 on.

python scripts/train.py --config docs/examples/own_schedule.py --optim.lr 0.1
"""

import functools

from jax_cifar.config import Config, DataConfig, OptimConfig, ScheduleConfig, TrainConfig


def trapezoid(step, total_steps, cooldown=0.3):
    """Warm-up for a tenth of the run, the full rate, then down to 0."""
    share = step / total_steps
    return min(1.0, share / 0.1, (1 - share) / cooldown)


def get_config() -> Config:
    return Config(
        name="own_schedule",
        data=DataConfig(name="digits"),
        optim=OptimConfig(lr=0.05),
        schedule=ScheduleConfig(name=functools.partial(trapezoid, cooldown=0.5)),
        train=TrainConfig(epochs=3, batch_size=64),
    )
