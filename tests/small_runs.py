"""Small experiments for the tests: seconds on two cores, and every part of the loop in them."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jax_cifar.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvalConfig,
    LogConfig,
    ModelConfig,
    OptimConfig,
    ScheduleConfig,
    TrainConfig,
)
from jax_cifar.data import Splits, load_data
from jax_cifar.run.folder import input_spec
from jax_cifar.run.load import Run
from jax_cifar.training import loop
from jax_cifar.training.many import ManyResult
from jax_cifar.training.session import make_network


class Perceptron(nn.Module):
    """Two layers on images made small, with statistics and dropout: compiled in a blink."""

    num_classes: int = 10
    dropout: float = 0.3

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(8, name="body")(x[:, ::4, ::4].reshape(len(x), -1))
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(jnp.tanh(x))
        return nn.Dense(self.num_classes, name="head")(x)


def small_config(**sections: Any) -> Config:
    """TinyCNN with BatchNorm and dropout on 200 images, 6 steps an epoch.

    `train={"epochs": 1}` changes fields of a section; `model=Perceptron()` takes the place of one: what asks nothing
    of the network is quicker with it.
    """
    config = Config(
        name="small",
        data=DataConfig(name="synthetic", subset=200),
        model=ModelConfig(name="tiny_cnn", width=4),
        optim=OptimConfig(lr=0.05, momentum=0.9, nesterov=True),
        schedule=ScheduleConfig(name="cosine", warmup=0.5),
        train=TrainConfig(epochs=2, batch_size=32, compilation_cache=False),
        eval=EvalConfig(batch_size=250),
        checkpoint=CheckpointConfig(every=0),
        log=LogConfig(every=2, tensorboard=False, plots=False),
    )
    return with_fields(config, **sections)


def untrained_run(folder: Path, splits: Splits | None = None, **sections: Any) -> Run:
    """The `Run` of a `small_config` that was never trained, its weights drawn; of its folder nothing is needed."""
    config = small_config(**sections)
    splits = splits or load_data(config.data)
    network, draws = make_network(config, input_spec(config, splits)), np.random.default_rng(0)
    image = jnp.zeros((1, *network.spec.image_shape))
    shapes: Any = jax.eval_shape(lambda key: network.model.init(key, image, train=False), jax.random.key(0))
    variables = jax.tree.map(lambda leaf: draws.uniform(0.1, 1.0, leaf.shape).astype(leaf.dtype), shapes)
    return Run(folder, config, network, variables, step=0, data_name=splits.name)


def grey_data(folder: Path) -> dict[str, Any]:
    """The section `data` of grey images in an .npz file, made there: 200 to train on and 40 to test, of 10 classes."""
    images = np.random.default_rng(0).integers(0, 256, (240, 16, 16), np.uint8)
    np.savez(folder / "grey.npz", images=images, labels=np.arange(240) % 10)
    return {"name": "npz", "dir": str(folder / "grey.npz"), "test_fraction": 1 / 6, "subset": None}


# Of each member, what it has of its own.
MEMBERS = [
    {},
    {"train": {"seed": 3}, "optim": {"lr": 0.02, "momentum": 0.7, "weight_decay": 1e-2}},
    {"optim": {"lr": 0.02}},
]


def tiny_config(**sections) -> Config:
    """Four steps with what could differ from `train`: dropout, averaging, a validation part, batches filled up."""
    optim = {"ema_decay": 0.9, "weight_decay": 1e-3}
    defaults = {
        "data": {"subset": 80, "val_fraction": 0.2},
        "train": {"epochs": 2, "label_smoothing": 0.1},
        "eval": {"every": 0, "batch_size": 300},
        "optim": optim,
    }
    return small_config(**sections | {name: each | sections.get(name, {}) for name, each in defaults.items()})


def with_fields(config: Config, **sections) -> Config:
    """`config` with some fields of its sections, or whole sections, changed."""

    def changed(name: str, values: Any) -> Any:
        return dataclasses.replace(getattr(config, name), **values) if isinstance(values, Mapping) else values

    return dataclasses.replace(config, **{name: changed(name, values) for name, values in sections.items()})


def a_lot(**sections) -> list[Config]:
    """Three members of `tiny_config`."""
    return [with_fields(tiny_config(**sections), **setting) for setting in MEMBERS]


class StopAt:
    """Stands in for `StopRequest`: the signal comes when it has been asked for so many times."""

    def __init__(self, asked: int) -> None:
        self._left = asked

    def __enter__(self) -> "StopAt":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    @property
    def signal(self) -> str | None:
        """None, and in the end SIGTERM."""
        self._left -= 1
        return None if self._left >= 0 else "SIGTERM"


def outline(result: ManyResult) -> list[float]:
    """What two results are recognised as the same by, across processes."""
    norms = [float(np.linalg.norm(leaf)) for leaf in jax.tree.leaves(result.state.eval_variables)]
    return [*result.setting.values(), result.report.count if result.report else 0, result.test_loss or 0.0, *norms]


def same_bits(one: Any, other: Any) -> bool:
    """Whether two pytrees have the same structure and every leaf the same bytes."""
    if jax.tree.structure(one) != jax.tree.structure(other):
        return False
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def largest_difference(one: Any, other: Any) -> float:
    """The largest absolute difference between two pytrees of arrays."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(float(np.max(np.abs(np.asarray(a) - np.asarray(b)), initial=0)) for a, b in pairs)


__all__ = [
    "Perceptron",
    "StopAt",
    "a_lot",
    "grey_data",
    "largest_difference",
    "loop",
    "outline",
    "same_bits",
    "small_config",
    "tiny_config",
    "untrained_run",
    "with_fields",
]
