"""Measure this project beside PyTorch, both in one run: medians over rounds, least and most, the ratio last.

python scripts/benchmark.py step
python scripts/benchmark.py step --models simple_cnn cifar_cnn --json step.json
python scripts/benchmark.py step --quick
python scripts/benchmark.py SUITE --help
"""

from jax_cifar.process import begin
from jax_cifar.signals import at_end_say, last_acts

if __name__ == "__main__":
    begin()  # before all that takes long to import

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from jax_cifar.cli import Parser, run
from jax_cifar.errors import ConfigError
from jax_cifar.files import write_json
from jax_cifar.progress import progress

SUITES = {
    "step": "a train step and inference of every network",
    "scan": "several steps inside one call against a call for each",
    "load": "a train step beside neighbours that take cores",
    "startup": "process start to the first step, cold and warm, and imports",
    "augment": "every transform and the pipelines, against per-image code",
    "checkpoint": "saving and restoring the train state",
    "accuracy": "time to a test accuracy, of whole trainings",
    "many": "several seeds in one process against a process for each",
    "speedrun": "seconds and accuracy of n seeds of a recipe",
    "frontier": "accuracy against seconds: every recipe, in JAX and in PyTorch",
    "gpu": "all of it that asks for a GPU, in one command and one file",
    "growth": "seconds and memory as images, side, width, batch, classes and seeds grow",
    "scaling": "what to expect of many GPUs: a model, which measures nothing",
    "all": "every figure of RESULTS.md anew, by its own commands",
    "runtimes": "one trained network in JAX, PyTorch, ONNX Runtime, OpenVINO and a browser",
}


def main(arguments: Sequence[str]) -> None:
    """Parse, measure, print."""
    known = "\n".join(f"  {name:<11} {meaning}" for name, meaning in SUITES.items())
    parser = Parser(f"{__doc__}\nsuites:\n{known}", add_help=False)
    parser.add_argument("suite", metavar="SUITE", nargs="?", choices=SUITES, help="what to measure, see above")
    parser.add_json("write every single time there, with versions")
    parser.add_argument("--quick", action="store_true", help="a part of it, in about a minute")
    parser.add_argument("-h", "--help", action="store_true", help="show this and the options of SUITE")
    options, _ = parser.parse_known_args(arguments)
    if options.suite is None:
        if not options.help:
            parser.error("SUITE is missing")
        print(parser.format_help())
        return

    suite = load_suite(options.suite)
    suite.add_options(parser)
    if options.quick:
        parser.set_defaults(**suite.QUICK)
    options = parser.parse_args(arguments)
    if options.help:
        print(parser.format_help())
        return
    if getattr(options, "rounds", 1) < 1:
        parser.error(f"--rounds {options.rounds} is not allowed: it must be at least 1")

    options.environment = dict(os.environ)  # the user's own, for a suite that measures child processes only
    # PyTorch needs the same GPU, of whose memory JAX would take three quarters at its start.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    measure(suite, options)


def measure(suite: ModuleType, options: argparse.Namespace) -> None:
    """Measure case by case: each is told and written as soon as it is done, and the table ends what was begun."""
    from benchmarks.tables import as_json, machine_line, markdown

    cases = []

    def show() -> None:
        if cases:
            timed = [case for case in cases if getattr(case, "timings", None)]
            parts = getattr(suite, "table", markdown)(cases), machine_line(timed)
            print("\n\n".join(filter(None, parts)), flush=True)

    last_acts.append(show)  # a Ctrl-C leaves what there is
    at_end_say("What was measured until then is shown.")
    with progress(options.suite, total=(total := suite.cases(options))) as bar:
        bar.print(f"{options.suite}: {SUITES[options.suite]}; {total} to measure", sys.stderr)
        for case in suite.measure(options):
            cases.append(case)
            timed = getattr(case, "timings", None)
            bar.print(f"done: {markdown([case]).splitlines()[-1] if timed else case}", sys.stderr)
            bar.advance()
            if options.json is not None:
                values = getattr(suite, "as_json", as_json)(options.suite, cases)
                write_json(options.json, values)
    last_acts.remove(show)
    show()


def load_suite(name: str) -> ModuleType:
    """The module of a suite; raises `ConfigError` for a package that it lacks."""
    # The suites stand beside this folder and are not installed with the library.
    sys.path.insert(0, str(Path(__file__).parents[1]))
    try:
        return importlib.import_module(f"benchmarks.{name}")
    except ModuleNotFoundError as error:
        raise ConfigError(f"Benchmarks need {error.name}. Install it with: pip install -e '.[torch,dev]'") from None


if __name__ == "__main__":
    run(main)
