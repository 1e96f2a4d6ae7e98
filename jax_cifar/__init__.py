"""Train CNNs and ResNets on CIFAR in pure JAX.

from jax_cifar import load_config, train
result = train(load_config("configs/quickstart.py"), "runs/first")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jax_cifar.config import Config
    from jax_cifar.config.files import load_config
    from jax_cifar.training.loop import TrainResult, train
    from jax_cifar.training.many import train_many

__all__ = ["Config", "TrainResult", "load_config", "train", "train_many"]

_HOMES = {
    "Config": "config",
    "load_config": "config.files",
    "train": "training.loop",
    "TrainResult": "training.loop",
    "train_many": "training.many",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use, so that reading a configuration does not import jax.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
