"""Saving and restoring the whole train state: parameters, momentum, running statistics.

JAX: `jax_cifar.run.checkpoint`, which saves in the background, keeps the newest two, syncs the arrays to the disk, and
verifies their SHA-256 when it restores. PyTorch: `torch.save`, synced too, and `torch.load`, which check nothing. Only
saving waits for the disk: what is restored was written a moment ago and is still in memory.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch

from benchmarks.networks import network_config, random_batch
from benchmarks.step import MODELS
from benchmarks.timing import Case, add_rounds, in_turn, interleave
from jax_cifar.config import Config
from jax_cifar.config.spec import InputSpec
from jax_cifar.errors import check
from jax_cifar.files import expand
from jax_cifar.models import create_model
from jax_cifar.models.network import Network, compute_dtype
from jax_cifar.run.checkpoint import Checkpoints
from jax_cifar.training.state import initial_state
from torch_ref.models import create_model as create_torch_model
from torch_ref.steps import Trainer

DEFAULT = ("simple_cnn", "resnet18")

# What --quick asks for where nothing else is said.
QUICK = {"models": ["simple_cnn"], "rounds": 3}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this suite."""
    parser.add_argument("--models", nargs="+", choices=MODELS, default=DEFAULT, help=f"default: {' '.join(DEFAULT)}")
    parser.add_argument("--dir", metavar="DIR", type=expand, help="where to save (default: where temporary files are)")
    add_rounds(parser)


def cases(options: argparse.Namespace) -> int:
    """How many cases `measure` will yield."""
    return 3 * len(options.models)


def measure(options: argparse.Namespace) -> Iterator[Case]:
    """Time saving, how long training stands still for it, and restoring, for every network."""
    check(options.dir is None or options.dir.is_dir(), "--dir", str(options.dir), "it must be a folder that exists")
    for name in options.models:
        config = network_config(name, batch=2)
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.dir)))
            checkpoints = stack.enter_context(Checkpoints(folder / "jax", config.checkpoint.keep))
            ways = {"jax": jax_files(config, checkpoints), "torch": torch_files(config, folder / "state.pt")}
            saves, waits, restores = (
                {way: getattr(files, what) for way, files in ways.items()} for what in ("save", "waiting", "restore")
            )
            yield Case(f"{name}, save", interleave(saves, options.rounds))
            yield Case(f"{name}, training waits", in_turn(waits, options.rounds))
            yield Case(f"{name}, restore", interleave(restores, options.rounds))


@dataclass(frozen=True)
class Files:
    """A network's state and its files, in one of the frameworks."""

    hand_over: Callable[[], object]  # returns as soon as training may go on
    wait: Callable[[], object]  # returns when the state is on the disk
    read: Callable[[], object]  # the state back on the device

    def save(self, count: int) -> None:
        """Save so many times, one after another."""
        for _ in range(count):
            self.hand_over()
            self.wait()

    def restore(self, count: int) -> None:
        """Restore what was saved last, so many times."""
        for _ in range(count):
            self.read()

    def waiting(self, _: int) -> float:
        """How long training stands still for a save while none before it is under way, in seconds."""
        started = time.perf_counter()
        self.hand_over()
        elapsed = time.perf_counter() - started
        self.wait()
        return elapsed


def jax_files(config: Config, checkpoints: Checkpoints) -> Files:
    """The state of a JAX run, saved after one more step each time."""
    spec = InputSpec((32, 32, 3), (0.5,) * 3, (0.25,) * 3, None, tuple("0123456789"))
    network = Network(create_model(config.model, 10, compute_dtype(config.train.dtype)), spec)
    state, _ = initial_state(config, network, np.zeros((1, 32, 32, 3), np.uint8))
    state, step = jax.block_until_ready(state), 0

    def hand_over() -> None:
        nonlocal step
        step += 1
        checkpoints.save(step, state, {})

    def restore() -> None:
        restored = checkpoints.restore(state)
        assert restored is not None
        jax.block_until_ready(restored.state)

    return Files(hand_over, checkpoints.wait, restore)


def torch_files(config: Config, path: Path) -> Files:
    """The state of a PyTorch run, in one file that is written again and again."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = create_torch_model(config.model, 10, 32).to(device)
    trainer, batch = Trainer(config, model, 1, 1), random_batch(config.train.batch_size)
    # Before the first update an optimizer has no state.
    images, labels = (torch.tensor(values, device=device) for values in (batch.images, batch.labels))
    trainer.update(images.permute(0, 3, 1, 2), labels)
    (optimizer,) = trainer.optimizers

    def save() -> None:
        state: dict[str, Any] = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        with path.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())

    def restore() -> None:
        state = torch.load(path, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if device.type == "cuda":
            torch.cuda.synchronize()

    return Files(save, lambda: None, restore)
