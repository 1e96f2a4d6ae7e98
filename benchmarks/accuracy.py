"""Time to accuracy: whole trainings of one config, until the test accuracy after an epoch first reaches a target.

Only training counts: not loading, compiling and evaluating, and each training has a process of its own. Both
frameworks get the same seeds and draw from them in their own ways, so a ratio of one seed says little, the spread over
several more. A training that never reaches the target counts as infinitely long.
"""

import argparse
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from benchmarks.tables import markdown
from benchmarks.timing import Case, in_turn
from benchmarks.trainings import JAX, TORCH_OPTIONS, train
from jax_cifar.config.files import load_config
from jax_cifar.errors import check

# What --quick asks for where nothing else is said.
QUICK = {"config": "configs/quickstart.py", "target": 0.9, "seeds": 2, "torch": ["torch channels_last"]}


@dataclass(frozen=True)
class Reaching(Case):
    """One row, and how each way came there."""

    target: float = 0.0
    # Of each way and seed: the accuracy of the test images after every epoch.
    curves: Mapping[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this suite."""
    default = "configs/cifar10_simple_cnn.py"
    parser.add_argument("--config", metavar="FILE", default=default, help=f"config file (default {default})")
    parser.add_argument("--target", metavar="ACC", type=float, default=0.7, help="test accuracy to reach (default 0.7)")
    parser.add_argument(
        "--seeds", metavar="N", type=int, default=3, help="train with seeds 0 to N-1, N rounds (default 3)"
    )
    ways = list(TORCH_OPTIONS)
    parser.add_argument("--torch", nargs="*", choices=ways, default=ways, help="ways to run PyTorch")


def cases(options: argparse.Namespace) -> int:
    """How many cases `measure` will yield."""
    return 1


def measure(options: argparse.Namespace) -> Iterator[Reaching]:
    """Train with every seed in every way, in turn; needs `options.environment`, the user's own."""
    target = options.target
    check(0 < target <= 1, "--target", target, "it must be greater than 0 and at most 1")
    check(options.seeds >= 1, "--seeds", options.seeds, "it must be at least 1")
    name = load_config(options.config).name
    curves: dict[str, list[tuple[float, ...]]] = {way: [] for way in (JAX, *options.torch)}

    def seconds_to_target(way: str, seed: int) -> float:
        fields = ["--eval.tta", "none"]
        training = train(way, options.config, seed, options.environment, fields=fields, each_epoch=True)
        curves[way].append(tuple(epoch.accuracy for epoch in training.epochs))
        return next((epoch.seconds for epoch in training.epochs if epoch.accuracy >= target), math.inf)

    timings = in_turn({way: partial(seconds_to_target, way) for way in curves}, options.seeds)
    yield Reaching(
        f"{name}, to {target:.4g} of the test images",
        timings,
        accuracies={way: tuple(curve[-1] for curve in runs) for way, runs in curves.items()},
        target=target,
        curves={way: tuple(runs) for way, runs in curves.items()},
    )


def table(cases: Sequence[Reaching]) -> str:
    """The times, and of each way the epoch that reached the target, seed by seed, and the mean after every epoch."""
    lines = []
    for case in cases:
        for way, runs in case.curves.items():
            first = [next((i for i, value in enumerate(run, 1) if value >= case.target), "never") for run in runs]
            means = [f"{statistics.fmean(values):.2%}" for values in zip(*runs, strict=True)]
            lines.append(f"- {way}, reached after epoch {', '.join(map(str, first))}; means: {', '.join(means)}")
    return "\n\n".join(filter(None, [markdown(cases), "\n".join(lines)]))
