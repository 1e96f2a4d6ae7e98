"""The frontier: test accuracy against seconds of training, every recipe in JAX and, the same, in PyTorch.

A recipe is trained with seeds 0 to n-1 in both frameworks, in turn, and judged as it says: by six views of each image
where it has test-time augmentation. Seconds are those of training, without compiling and evaluating. --picture draws
it, anew after every recipe, with what DAWNBench has of machines without a GPU.
"""

import argparse
import contextlib
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from benchmarks.accuracy import comparable, reference
from benchmarks.networks import TORCH_WAYS
from benchmarks.processes import ROOT
from benchmarks.tables import disturbed, shown_ratio
from benchmarks.timing import Case, in_turn
from jax_cifar import train as train_jax
from jax_cifar.config import Config
from jax_cifar.config.files import load_config
from jax_cifar.errors import check
from jax_cifar.files import expand
from jax_cifar.lab.tables import markdown, spread

RECIPES = {
    "plain": f"{ROOT}/configs/cifar10_simple_cnn.py",
    "72": f"{ROOT}/configs/cifar10_speedrun.py:72",
    "88": f"{ROOT}/configs/cifar10_speedrun.py:88",
    "90": f"{ROOT}/configs/cifar10_speedrun.py:90",
    "94-cpu": f"{ROOT}/configs/cifar10_speedrun.py:94-cpu",
    "94": f"{ROOT}/configs/cifar10_speedrun.py:94",
}
JAX = "jax"
# What --quick asks for where nothing else is said.
QUICK = {"recipes": ["72"], "seeds": 2}


class Final(NamedTuple):
    """What a training ends with."""

    seconds: float  # of training
    accuracy: float  # of the test images


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this suite."""
    known = ["plain", "72", "88"]
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=known, help=f"default: {' '.join(known)}")
    parser.add_argument("--seeds", metavar="N", type=int, default=3, help="train with seeds 0 to N-1 (default 3)")
    parser.add_argument("--torch", choices=TORCH_WAYS, default="torch channels_last", help="way to run PyTorch")
    parser.add_argument("--picture", metavar="FILE", type=expand, help="draw it there, as PNG")


def cases(options: argparse.Namespace) -> int:
    """How many cases `measure` will yield."""
    return len(options.recipes)


def measure(options: argparse.Namespace) -> Iterator[Case]:
    """Train every recipe with every seed in both frameworks, in turn; what the trainings print goes to stderr."""
    check(options.seeds >= 1, "--seeds", options.seeds, "it must be at least 1")
    done = []
    for name in options.recipes:
        done.append(compare(judged(load_config(RECIPES[name])), options.torch, options.seeds))
        if options.picture is not None:
            from benchmarks.frontier_picture import draw

            draw(done, options.picture)
        yield done[-1]


def judged(config: Config) -> Config:
    """The config on one device, evaluated once, at its end, as it says."""
    return replace(comparable(config), eval=replace(config.eval, every=0.0))


def compare(config: Config, way: str, seeds: int) -> Case:
    """Seconds and accuracies of both frameworks."""
    trainings = {JAX: in_jax, way: partial(in_torch, way=way)}
    accuracies: dict[str, list[float]] = {name: [] for name in trainings}

    def seconds(name: str, seed: int) -> float:
        final = trainings[name](replace(config, train=replace(config.train, seed=seed)))
        accuracies[name].append(final.accuracy)
        return final.seconds

    with contextlib.redirect_stdout(sys.stderr):
        timings = in_turn({name: partial(seconds, name) for name in trainings}, seeds)
    return Case(config.name, timings, accuracies={name: tuple(values) for name, values in accuracies.items()})


def in_jax(config: Config) -> Final:
    """A whole run of `jax_cifar.train`."""
    with tempfile.TemporaryDirectory() as workdir:
        summary = train_jax(config, workdir).summary
    figure = "test_accuracy" if config.eval.tta == "none" else "test_accuracy_tta"
    return Final(summary["seconds"]["train"], summary[figure])


def in_torch(config: Config, way: str) -> Final:
    """The same by `torch_ref.train`."""
    result = reference(config, way)
    accuracy = result.test_accuracy if result.test_accuracy_tta is None else result.test_accuracy_tta
    return Final(result.seconds["train"], accuracy)


def table(cases: Sequence[Case]) -> str:
    """A row per recipe: both frameworks, and how many times as fast ours is as PyTorch's plain baseline."""
    plain = next((case for case in cases if case.name == load_config(RECIPES["plain"]).name), None)
    other = next(iter(cases[0].accuracies.keys() - {JAX}))
    head = ["recipe", "n", "test accuracy, jax", "seconds", f"test accuracy, {other}", "seconds", "ratio"]
    head += ["the plain baseline's seconds in PyTorch over ours"] if plain else []
    rows = []
    for case in cases:
        row = [case.name, str(len(case.ours.seconds))]
        for way in (JAX, other):
            row += [spread(case.accuracies[way], ".2%"), spread(case.timings[way].seconds, ".1f")]
        row.append(shown_ratio(case.ratios))
        if plain:
            row.append(f"{statistics.fmean(plain.timings[other].seconds) / statistics.fmean(case.ours.seconds):.1f}")
        rows.append(row)
    notes = [f"{case.name}: {told}." for case in cases if (told := disturbed(case))]
    return "\n\n".join([markdown(head, rows), *notes])
