"""Time to accuracy: whole trainings of one config, until the test accuracy after an epoch first reaches a target.

Only training counts: not loading, compiling and evaluating. Both frameworks get the same seeds and draw from them in
their own ways, so a ratio of one seed says little, the spread over several more. A training that never reaches the
target counts as infinitely long.
"""

import argparse
import contextlib
import dataclasses
import math
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch

from benchmarks.networks import TORCH_WAYS, use_all_cores
from benchmarks.timing import Case, in_turn
from jax_cifar import train
from jax_cifar.config import Config
from jax_cifar.config.files import load_config
from jax_cifar.errors import check
from jax_cifar.progress import print_above
from jax_cifar.telemetry import read_metrics
from torch_ref import train as torch_train
from torch_ref.train import Result


class Epoch(NamedTuple):
    """How far a training is after an epoch."""

    seconds: float  # of training since its start
    accuracy: float  # of the test images


# What --quick asks for where nothing else is said.
QUICK = {"config": "configs/quickstart.py", "target": 0.9, "seeds": 2, "torch": ["torch channels_last"]}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this suite."""
    default = "configs/cifar10_simple_cnn.py"
    parser.add_argument("--config", metavar="FILE", default=default, help=f"config file (default {default})")
    parser.add_argument("--target", metavar="ACC", type=float, default=0.7, help="test accuracy to reach (default 0.7)")
    parser.add_argument(
        "--seeds", metavar="N", type=int, default=3, help="train with seeds 0 to N-1, N rounds (default 3)"
    )
    parser.add_argument("--torch", nargs="*", choices=TORCH_WAYS, default=list(TORCH_WAYS), help="ways to run PyTorch")


def cases(options: argparse.Namespace) -> int:
    """How many cases `measure` will yield."""
    return 1


def measure(options: argparse.Namespace) -> Iterator[Case]:
    """Train with every seed in every way, in turn; what the trainings print goes to stderr."""
    target = options.target
    check(0 < target <= 1, "--target", target, "it must be greater than 0 and at most 1")
    check(options.seeds >= 1, "--seeds", options.seeds, "it must be at least 1")
    config = comparable(load_config(options.config))
    trainings = {"jax": train_jax} | {way: partial(train_torch, way=way) for way in options.torch}
    finals: dict[str, list[float]] = {way: [] for way in trainings}

    def seconds_to_target(way: str, seed: int) -> float:
        seeded = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=seed))
        epochs = trainings[way](seeded)
        finals[way].append(epochs[-1].accuracy)
        return next((epoch.seconds for epoch in epochs if epoch.accuracy >= target), math.inf)

    with contextlib.redirect_stdout(sys.stderr):
        timings = in_turn({way: partial(seconds_to_target, way) for way in trainings}, options.seeds)
    accuracies = {way: tuple(values) for way, values in finals.items()}
    yield Case(f"{config.name}, to {target:.4g} of the test images", timings, accuracies=accuracies)


def comparable(config: Config) -> Config:
    """The config, evaluated on the test images after every epoch, on one device, with nothing PyTorch's run lacks."""
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, val_fraction=0.0),
        eval=dataclasses.replace(config.eval, every=1.0, tta="none"),
        checkpoint=dataclasses.replace(config.checkpoint, every=0.0),
        log=dataclasses.replace(config.log, tensorboard=False, plots=False),
        distributed=dataclasses.replace(config.distributed, devices=1),
    )


def train_jax(config: Config) -> list[Epoch]:
    """A whole run of `jax_cifar.train`."""
    with tempfile.TemporaryDirectory() as workdir:
        folder = train(config, workdir).workdir
        return [Epoch(line["seconds"], line["accuracy"]) for line in read_metrics(folder) if line["split"] == "test"]


def train_torch(config: Config, way: str) -> list[Epoch]:
    """A whole run of `torch_ref.train`."""
    epochs = []

    def keep(seconds: float, accuracy: float) -> None:
        epochs.append(Epoch(seconds, accuracy))
        told = f"epoch {len(epochs)}, {seconds:.1f} s, {accuracy:.2%}"
        print_above(f"{config.name}, seed {config.train.seed}, {way}: {told}")

    reference(config, way, verbose=False, each_epoch=keep)
    return epochs


def reference(config: Config, way: str, **options: Any) -> Result:
    """`torch_ref.train` in one of `TORCH_WAYS`, on all cores."""
    use_all_cores()
    memory_format, compiled = TORCH_WAYS[way]
    return torch_train.train(config, channels_last=memory_format == torch.channels_last, compiled=compiled, **options)
