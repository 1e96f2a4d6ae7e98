"""The configuration of a run: its sections, the files they come from, and the checks they pass.

Needs nothing but the standard library, so that `--help` is quick and `torch_ref` can share it.
"""

from jax_cifar.config.sections import (
    CheckpointConfig,
    Config,
    DataConfig,
    DatasetName,
    DistributedConfig,
    EvalConfig,
    LogConfig,
    MixConfig,
    ModelConfig,
    ModelName,
    OptimConfig,
    OptimizerName,
    ScheduleConfig,
    ScheduleName,
    TrainConfig,
)

__all__ = [
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "DatasetName",
    "DistributedConfig",
    "EvalConfig",
    "LogConfig",
    "MixConfig",
    "ModelConfig",
    "ModelName",
    "OptimConfig",
    "OptimizerName",
    "ScheduleConfig",
    "ScheduleName",
    "TrainConfig",
]
