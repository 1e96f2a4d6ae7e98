"""The frontier: test accuracy against seconds of training, every recipe in JAX and, the same, in PyTorch.

A recipe is trained with seeds 0 to n-1 in both frameworks, in turn, by the commands that a user types, a process each.
It is judged as it says: by six views of each image where it has test-time augmentation. Seconds are those of training,
without compiling and evaluating. --picture draws it, anew after every recipe, with what DAWNBench has of machines
without a GPU.
"""

import argparse
import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from benchmarks.processes import ROOT
from benchmarks.tables import disturbed, shown_ratio
from benchmarks.timing import Case, in_turn
from benchmarks.trainings import JAX, TORCH_OPTIONS, train
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
# What --quick asks for where nothing else is said.
QUICK = {"recipes": ["72"], "seeds": 2}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this suite."""
    known = ["plain", "72", "88"]
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=known, help=f"default: {' '.join(known)}")
    parser.add_argument("--seeds", metavar="N", type=int, default=3, help="train with seeds 0 to N-1 (default 3)")
    parser.add_argument("--torch", choices=TORCH_OPTIONS, default="torch channels_last", help="way to run PyTorch")
    parser.add_argument("--picture", metavar="FILE", type=expand, help="draw it there, as PNG")


def cases(options: argparse.Namespace) -> int:
    """How many cases `measure` will yield."""
    return len(options.recipes)


def measure(options: argparse.Namespace) -> Iterator[Case]:
    """Train every recipe with every seed in both frameworks, in turn; needs `options.environment`, the user's own."""
    check(options.seeds >= 1, "--seeds", options.seeds, "it must be at least 1")
    done = []
    for name in options.recipes:
        done.append(compare(RECIPES[name], options.torch, options.seeds, options.environment))
        if options.picture is not None:
            from benchmarks.frontier_picture import draw

            draw(done, options.picture)
        yield done[-1]


def compare(recipe: str, way: str, seeds: int, environment: Mapping[str, str]) -> Case:
    """Seconds and accuracies of both frameworks."""
    accuracies: dict[str, list[float]] = {JAX: [], way: []}

    def seconds(name: str, seed: int) -> float:
        training = train(name, recipe, seed, environment)
        accuracies[name].append(training.accuracy)
        return training.seconds

    timings = in_turn({name: partial(seconds, name) for name in accuracies}, seeds)
    return Case(
        load_config(recipe).name, timings, accuracies={name: tuple(values) for name, values in accuracies.items()}
    )


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
