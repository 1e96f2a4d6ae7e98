"""What load does to each: a train step beside so many neighbours, as on a laptop or a cluster.

A neighbour is a process of the same priority that keeps one core busy and needs no memory. "Times of its own" is how
much longer a way takes than it does alone.
"""

import argparse
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.machine import Condition
from benchmarks.networks import TORCH_WAYS
from benchmarks.step import MODELS
from benchmarks.tables import markdown
from benchmarks.timing import Case, add_rounds, interleave
from benchmarks.trainings import JAX
from benchmarks.way import Subject, in_processes
from jax_cifar.errors import check
from jax_cifar.signals import ending_with_us

# Ends when the process that started it, whose number it is given, is gone, however and whenever that ended.
NEIGHBOUR = """
import os, sys
while os.getppid() == int(sys.argv[1]):
    for _ in range(1_000_000):
        pass
"""
# What --quick asks for where nothing else is said.
QUICK = {"neighbours": [0, 2], "torch": ["torch channels_last"], "rounds": 3}


@dataclass(frozen=True)
class Loaded(Case):
    """One row: a network beside so many neighbours."""

    network: str = ""
    neighbours: int = 0

    @property
    def disturbed(self) -> tuple[Condition, ...]:
        """Only of rounds without neighbours: these are the disturbance that is asked for."""
        return () if self.neighbours else super().disturbed


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this suite."""
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["simple_cnn"], help="default: simple_cnn")
    parser.add_argument("--batch", metavar="N", type=int, default=128, help="images per step (default 128)")
    parser.add_argument("--neighbours", metavar="N", nargs="+", type=int, default=[0, 1, 2, 3], help="default: 0 1 2 3")
    parser.add_argument("--torch", nargs="*", choices=TORCH_WAYS, default=list(TORCH_WAYS), help="ways to run PyTorch")
    add_rounds(parser)


def cases(options: argparse.Namespace) -> int:
    """How many cases `measure` will yield."""
    return len(options.models) * len(options.neighbours)


def measure(options: argparse.Namespace) -> Iterator[Loaded]:
    """Time a step of every network beside every number of neighbours."""
    for count in options.neighbours:
        check(0 <= count <= 64, "--neighbours", count, "it must be 0 to 64")
    subjects = [Subject("model", name, options.batch) for name in options.models]
    for subject in subjects:
        subject.config()  # a mistake is told before anything is timed
    for subject in subjects:
        with in_processes([JAX, *options.torch], "train", subject) as ways:
            for count in options.neighbours:
                with neighbours(count):
                    timings = interleave(ways, options.rounds, again=0 if count else None)
                title = f"{subject.name}, beside {count}"
                yield Loaded(title, timings, options.batch, network=subject.name, neighbours=count)


@contextlib.contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Inside, so many other processes are busy."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            process = stack.enter_context(subprocess.Popen([sys.executable, "-c", NEIGHBOUR, str(os.getpid())]))
            stack.callback(process.terminate)
            stack.enter_context(ending_with_us(process))
        yield


def table(cases: Sequence[Loaded]) -> str:
    """The times, and how much longer each way takes than it does alone."""
    alone, lines = {case.network: case for case in cases if case.neighbours == 0}, []
    for case in cases:
        if (first := alone.get(case.network)) is not None and case.neighbours:
            longer = [f"{way} {timing.median / first.timings[way].median:.2f}" for way, timing in case.timings.items()]
            lines.append(f"- {case.name}, times of its own: {', '.join(longer)}")
    return "\n\n".join(filter(None, [markdown(cases), "\n".join(lines)]))
