"""Several seeds of one experiment: in one process by `scripts/train_many.py`, and in a process each.

Seconds are those of whole processes, import and data included, divided by the runs. Each finds the programs that one
before it has left, as a user's second run does. Separate processes run one after another, or as many at once as there
are cores. As `train_many` does, they evaluate at the end alone; they save their last state and write no curves and
pictures.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from benchmarks.processes import ROOT, own_programs, run_python
from benchmarks.timing import Case, Measurement, add_rounds, in_turn
from benchmarks.trainings import BARE
from jax_cifar.backend.threads import cpu_count
from jax_cifar.config.files import load_config
from jax_cifar.errors import check

WAYS = ("train_many", "vmap", "one by one", "at once")

# What --quick asks for where nothing else is said.
QUICK = {"runs": 2, "epochs": [1.0], "against": ["one by one"], "rounds": 2}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this suite."""
    default = str(ROOT / "configs/quickstart.py")
    parser.add_argument("--config", metavar="FILE", default=default, help="experiment (default: the quickstart)")
    parser.add_argument("--runs", metavar="N", type=int, default=4, help="seeds (default 4)")
    parser.add_argument("--epochs", metavar="N", nargs="+", type=float, default=[3.0], help="lengths (default 3)")
    others = WAYS[1:]
    parser.add_argument("--against", nargs="*", choices=others, default=others, help="what train_many is compared with")
    add_rounds(parser)


def cases(options: argparse.Namespace) -> int:
    """How many cases `measure` will yield."""
    return len(options.epochs) * (1 + ("vmap" in options.against))


def measure(options: argparse.Namespace) -> Iterator[Case]:
    """Time every length of run in every way."""
    check(options.runs >= 1, "--runs", options.runs, "it must be at least 1")
    name = load_config(options.config).name
    for epochs in options.epochs:
        common = ["--config", options.config, "--train.epochs", str(epochs)]
        with own_programs(options.environment) as kept:
            ways = {way: make_way(way, common, options.runs, kept) for way in (WAYS[0], *options.against)}
            for way in ways.values():
                way(0)  # fills the cache
            timings = in_turn(ways, options.rounds)
        per_run = {way: timing / options.runs for way, timing in timings.items()}
        title = f"{name}, {options.runs} runs of {epochs:g} epochs"
        # Apart, so that the ratio is to processes of their own.
        in_one_call = {way: per_run.pop(way) for way in ("vmap",) if way in per_run}
        yield Case(f"{title}, seconds of each", per_run)
        if in_one_call:
            yield Case(f"{title}, in one call", {"train_many": per_run["train_many"], **in_one_call})


def make_way(way: str, common: Sequence[str], runs: int, environment: Mapping[str, str]) -> Measurement:
    """All the runs in one of `WAYS`, in an environment."""
    if way in ("train_many", "vmap"):
        how = {"train_many": "auto", "vmap": "vmap"}[way]
        command = [f"{ROOT}/scripts/train_many.py", *common, "--seeds", str(runs), "--how", how]
        return lambda _: together(command, environment)
    if way == "one by one":
        return lambda _: separate_runs(common, runs, 1, environment)
    # Of the memory of a GPU that they share JAX would take three quarters at its start.
    shared = {**environment, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return lambda _: separate_runs(common, runs, cpu_count(), shared)


def together(command: Sequence[str], environment: Mapping[str, str]) -> float:
    """Seconds of one process."""
    started = time.perf_counter()
    run_python(command, environment)
    return time.perf_counter() - started


def separate_runs(common: Sequence[str], runs: int, at_once: int, environment: Mapping[str, str]) -> float:
    """Seconds until a process per seed has come to its end, so many at a time."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(at_once) as pool:
        command = [f"{ROOT}/scripts/train.py", *common, "--eval.every", "0", *BARE]
        commands = [[*command, "--train.seed", str(seed), "--workdir", f"{folder}/{seed}"] for seed in range(runs)]
        started = time.perf_counter()
        list(pool.map(partial(run_python, environment=environment), commands))
        return time.perf_counter() - started
