"""Train CNNs and ResNets on CIFAR in pure JAX.

from jax_cifar import load_config, load_run, train
result = train(load_config("configs/quickstart.py"), "runs/first")
classes = load_run("runs/first").predict(images)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jax_cifar.config import Config
    from jax_cifar.config.files import apply_overrides, load_config
    from jax_cifar.deploy.onnx import load_onnx
    from jax_cifar.deploy.stablehlo import load_stablehlo
    from jax_cifar.evaluation.capture import capture
    from jax_cifar.evaluation.classify import predict_pictures
    from jax_cifar.ops.gradcheck import gradcheck
    from jax_cifar.run.load import Run, load_run
    from jax_cifar.training.callbacks import Callback
    from jax_cifar.training.loop import TrainResult, train
    from jax_cifar.training.many import train_many

__all__ = [
    "Callback",
    "Config",
    "Run",
    "TrainResult",
    "apply_overrides",
    "capture",
    "gradcheck",
    "load_config",
    "load_onnx",
    "load_run",
    "load_stablehlo",
    "predict_pictures",
    "train",
    "train_many",
]

_HOMES = {
    "Config": "config",
    "apply_overrides": "config.files",
    "load_config": "config.files",
    "capture": "evaluation.capture",
    "gradcheck": "ops.gradcheck",
    "load_onnx": "deploy.onnx",
    "load_stablehlo": "deploy.stablehlo",
    "predict_pictures": "evaluation.classify",
    "Run": "run.load",
    "load_run": "run.load",
    "Callback": "training.callbacks",
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
