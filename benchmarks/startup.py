"""Whole processes: from the start to the end of the first training step, and to the end of imports and of --help.

The first step is that of the commands a user types, `scripts/train.py` and `python -m torch_ref.train`, with the plain
baseline's config on synthetic images: cold with empty caches of compiled programs, warm with what a process before left
there. PyTorch's eager mode keeps none. The start of Python itself is part of every figure; the libraries' files are in
memory, not to be read from the disk.
"""

import argparse
import runpy
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.processes import REPORT, ROOT, keeping_programs, report, run_python
from benchmarks.timing import Case, add_rounds, in_turn
from jax_cifar.errors import ConfigError
from jax_cifar.process import begin

SETTINGS = ("--config", str(ROOT / "configs/cifar10_simple_cnn.py"), "--data.name", "synthetic", "--train.steps", "1")
FIRST_STEP = {"jax": ("jax",), "torch": ("torch",), "torch.compile": ("torch", "--compile")}
# The start time is the last argument, which the command must not see.
HELP = "import runpy; sys.argv = ['train', '--help']\ntry: {}\nexcept SystemExit: pass"
# What is imported or called: ours, and what comes nearest to it in PyTorch.
IMPORTS = {
    "import jax / torch": ("import jax", "import torch"),
    "import jax_cifar / torch_ref": ("import jax_cifar", "import torch_ref"),
    "import the training loop": ("import jax_cifar.training.loop", "import torch_ref.train, torch_ref.steps"),
    "train --help": (
        HELP.format(f"runpy.run_path({str(ROOT / 'scripts/train.py')!r}, run_name='__main__')"),
        HELP.format("runpy.run_module('torch_ref.train', run_name='__main__')"),
    ),
}

# What --quick asks for where nothing else is said.
QUICK = {"what": ["warm", "import"], "torch": ["torch"], "rounds": 3}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this suite."""
    kinds, ways = ["cold", "warm", "import"], [way for way in FIRST_STEP if way != "jax"]
    parser.add_argument("--what", nargs="+", choices=kinds, default=kinds, help="first step by cache; imports")
    parser.add_argument("--torch", nargs="*", choices=ways, default=ways, help="ways to run PyTorch")
    add_rounds(parser)


def cases(options: argparse.Namespace) -> int:
    """How many cases `measure` will yield."""
    return len({"cold", "warm"} & set(options.what)) + ("import" in options.what) * len(IMPORTS)


def measure(options: argparse.Namespace) -> Iterator[Case]:
    """Time every kind of process; each runs once before, so that the libraries' files are in memory."""
    rounds = options.rounds
    commands = {way: FIRST_STEP[way] for way in ("jax", *options.torch)}
    if {"cold", "warm"} & set(options.what):
        with tempfile.TemporaryDirectory() as kept:
            own = options.environment
            colds = {way: partial(cold_start, command, own) for way, command in commands.items()}
            warms = {way: partial(first_step, command, own, Path(kept, way)) for way, command in commands.items()}
            for warm in warms.values():
                warm()  # fills the caches
            if "cold" in options.what:
                yield Case("first step, cold cache", in_turn(colds, rounds))
            if "warm" in options.what:
                yield Case("first step, warm cache", in_turn(warms, rounds))
    for name, codes in IMPORTS.items() if "import" in options.what else ():
        pair = {
            way: partial(run_code, code, options.environment) for way, code in zip(("jax", "torch"), codes, strict=True)
        }
        for run in pair.values():
            run()
        yield Case(name, in_turn(pair, rounds))


def first_step(command: Sequence[str], environment: Mapping[str, str], caches: Path, _: int = 0) -> float:
    """Seconds until a new process has finished its first step; compiled programs are kept in `caches`."""
    from jax_cifar.backend.threads import cpu_count  # not needed by the process that is timed

    environment = {
        **keeping_programs(environment, caches),
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "OMP_NUM_THREADS": str(cpu_count()),  # as many as XLA has
    }
    return _reported(["-m", "benchmarks.startup", *command, *SETTINGS], environment)


def cold_start(command: Sequence[str], environment: Mapping[str, str], _: int = 0) -> float:
    """As `first_step`, with caches that are empty."""
    with tempfile.TemporaryDirectory() as caches:
        return first_step(command, environment, Path(caches))


def run_code(code: str, environment: Mapping[str, str], _: int = 0) -> float:
    """Seconds until a new process has run a line of Python."""
    line = f"print({REPORT!r} + str(time.time() - started))"
    return _reported(["-c", f"import sys, time; started = float(sys.argv[-1])\n{code}\n{line}"], environment)


def _reported(arguments: Sequence[str], environment: Mapping[str, str]) -> float:
    """The seconds that a Python process reports; its start is given to it as the last argument."""
    reports = run_python([*arguments, repr(time.time())], environment)
    if not reports:
        raise ConfigError(f"A process to be timed reported no time ({' '.join(arguments)})")
    return reports[0]


def report_first_step(framework: str, options: Sequence[str], started: float) -> None:
    """In the timed process: run the framework's command until its first step is done, say when that was, and stop."""

    def report_and_stop() -> None:
        report(time.time() - started)
        sys.exit()

    sys.argv = [framework, *options]
    if framework == "torch":
        stop_after_update(report_and_stop)
        runpy.run_module("torch_ref.train", run_name="__main__")
        return
    begin()  # as train.py does before it imports what the next line does
    stop_after_advance(report_and_stop)
    with tempfile.TemporaryDirectory() as workdir:
        sys.argv += ["--workdir", workdir]
        runpy.run_path(str(ROOT / "scripts/train.py"), run_name="__main__")


def stop_after_advance(stop: Callable[[], None]) -> None:
    """Have the training loop stop as soon as its first stop is reached, the device waited for."""
    from jax_cifar.training.session import Session

    advance = Session.advance

    def advance_and_report(self: Session, *arguments: Any) -> Any:
        result = advance(self, *arguments)
        stop()
        return result

    Session.advance = advance_and_report  # pyright: ignore[reportAttributeAccessIssue]


def stop_after_update(stop: Callable[[], None]) -> None:
    """Have the reference trainer stop as soon as its first update is done, and leave out what is not part of it."""
    from torch_ref.steps import Trainer

    update = Trainer.update

    def update_and_report(self: Trainer, images: Any, targets: Any) -> Any:
        result = update(self, images, targets)
        result[0].item()  # waits for the device
        stop()
        return result

    Trainer.update = update_and_report
    # The trainer's pass before the first step is for its own timing; without it the first step compiles.
    Trainer.warm_up = lambda self, images, targets: None


if __name__ == "__main__":
    report_first_step(sys.argv[1], sys.argv[2:-1], float(sys.argv[-1]))
