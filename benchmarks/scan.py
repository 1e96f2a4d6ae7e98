"""Several updates inside one compiled call against a call for each: what `train.steps_per_call` chooses between."""

import argparse
from collections.abc import Iterator
from dataclasses import replace

import jax
import numpy as np

from benchmarks.networks import network_config
from benchmarks.step import MODELS
from benchmarks.timing import Case, Work, add_rounds, interleave
from jax_cifar.config import Config
from jax_cifar.data import Dataset, Splits
from jax_cifar.errors import check
from jax_cifar.run.clock import Clock
from jax_cifar.training.replicas import one_run
from jax_cifar.training.session import Session

SMALL = ("simple_cnn", "tiny_cnn", "cifar_cnn", "speedrun_net")  # where a call costs something beside its steps

# What --quick asks for where nothing else is said.
QUICK = {"models": ["simple_cnn"], "rounds": 3}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this suite."""
    parser.add_argument("--models", nargs="+", choices=MODELS, default=SMALL, help=f"default: {' '.join(SMALL)}")
    parser.add_argument("--batch", metavar="N", type=int, default=128, help="images per step (default 128)")
    parser.add_argument("--steps", metavar="N", type=int, default=10, help="steps inside one call (default 10)")
    add_rounds(parser)


def cases(options: argparse.Namespace) -> int:
    """How many cases `measure` will yield."""
    return len(options.models)


def measure(options: argparse.Namespace) -> Iterator[Case]:
    """Time an update of every network, both ways."""
    steps = options.steps
    check(steps >= 2, "--steps", steps, "it must be at least 2")
    for name in options.models:
        config = network_config(name, options.batch)
        splits = random_images(steps * options.batch)
        ways = {"scan": epoch(config, splits, steps), "a call per step": epoch(config, splits, 1)}
        timings = {way: timing / steps for way, timing in interleave(ways, options.rounds).items()}
        yield Case(f"{name}, {steps} steps", timings, options.batch)


def random_images(count: int, side: int = 32, classes: int = 10) -> Splits:
    """So many random images; what they show does not change the time."""
    rng, names = np.random.default_rng(0), tuple(map(str, range(classes)))
    images = rng.integers(0, 256, (count, side, side, 3), np.uint8)
    part = Dataset(images, rng.integers(0, classes, count, np.int32))
    return Splits("random", part, part.take(np.arange(1)), None, names, "drawn on the spot")


def epoch(config: Config, splits: Splits, steps_per_call: int | None) -> Work:
    """An epoch of training as `jax_cifar.train` does it, from the images on the device to the next state."""
    return epoch_and_memory(config, splits, steps_per_call)[0]


def epoch_and_memory(config: Config, splits: Splits, steps_per_call: int | None) -> tuple[Work, float]:
    """As `epoch`, and the bytes that the compiler reckons an update to take."""
    train, log = (
        replace(config.train, epochs=1, steps_per_call=steps_per_call),
        replace(config.log, every=len(splits.train)),
    )
    config = replace(config, train=train, log=log)
    session = Session(config, splits, one_run(config), Clock())
    state = session.start([config])
    session.compile(state)

    def work(count: int) -> None:
        # Updates beyond the plan's last take the last entry of its tables, which are constant.
        nonlocal state
        for _ in range(count):
            state, _ = session.advance(state, 0)
        jax.block_until_ready(state)

    return work, session.memory
