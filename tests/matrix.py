"""Write docs/platforms.md: the tests under other versions of Python and of the packages, each in its own environment.

    python tests/matrix.py --out docs/platforms.md                      (make matrix)
    python tests/matrix.py --out docs/platforms.md colab                (make matrix ENVS=colab)
    python tests/matrix.py --out /tmp/some.md oldest --tests tests/test_cli.py

Where environments are named the rows of the others stay as they are in FILE. An environment lies in .matrix/NAME, and
what its tests print in tests.txt there. The exit code is 1 where a test has failed.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from matrix_environments import ENVIRONMENTS, ROOT, Built, build, execute, find_python
from packaging.utils import canonicalize_name
from stamp import stamp

from jax_cifar.backend.threads import cpu_count
from jax_cifar.cli import Parser, run
from jax_cifar.errors import UserError, check
from jax_cifar.files import read_record
from jax_cifar.progress import Bar, progress
from jax_cifar.telemetry.environment import PACKAGES

FOLDERS = ("tests", "parity_tests")
QUANTITIES = ("loss", "parameters", "statistics", "logits")
NETWORKS = ("resnet34", "cifar_cnn")
# Beside PACKAGES: what the tests have met differences of.
OTHERS = ("scipy", "scikit-learn", "matplotlib", "rich", "tyro", "tensorboardx", "tensorflow-datasets", "torch")
NONE = "-"
LOG = "tests.txt"
# It looks at the page, of which a part is written while the others are still tested.
OWN = "tests/test_matrix.py::test_the_page_in_the_repository_is_whole_and_nothing_has_failed"


class Count(NamedTuple):
    """What became of tests."""

    passed: int
    failed: tuple[str, ...]  # their names
    skipped: int

    def __str__(self) -> str:
        told = f"{self.passed:,} passed, {len(self.failed)} failed"
        return f"{told}, {self.skipped} skipped" if self.skipped else told


class Table(NamedTuple):
    """A table of the page, whose lines are known by the environment that they begin with."""

    head: tuple[str, ...]
    lines: dict[str, list[str]]  # by environment, the cells after it

    def __str__(self) -> str:
        if not self.lines:
            return "Not measured yet."
        lines = [self.head, *((name, *self.lines[name]) for name in ENVIRONMENTS if name in self.lines)]
        first, *others = (f"| {' | '.join(line)} |" for line in lines)
        return "\n".join([first, "|" + "-|" * len(self.head), *others])


class Page:
    """docs/platforms.md, as far as it is known."""

    def __init__(self, path: Path) -> None:
        self.path, text = path, path.read_text() if path.exists() else ""
        self.stamp = stamp()  # now, as the page that is written is a change of the checkout
        heads = (
            ("environment", *FOLDERS, "quickstart", "commit, day"),
            ("float64 flagship", *(f"{network}: {name}" for network in NETWORKS for name in QUANTITIES)),
            ("versions", "packages"),
        )
        self.tables = [Table(head, kept(text, head[0])) for head in heads]
        self.failed = {name: re.findall(rf"^- {name}: (.*)$", text, re.MULTILINE) for name in ENVIRONMENTS}

    def write(self) -> None:
        """Write it in one piece."""
        results, flagship, versions = map(str, self.tables)
        wrong = [f"- {name}: {test}" for name, tests in self.failed.items() for test in tests]
        about = [f"- **{name}**: Python {each.python}, {each.what}." for name, each in ENVIRONMENTS.items()]
        parts = [
            "# Platforms",
            "Written by `make matrix`; do not edit. Each environment is installed anew, beside the checkout's own, and"
            f" everything is run in it. CPU, {cpu_count()} cores.",
            "\n".join(about),
            "## Tests",
            "All but the slow ones. `parity_tests` are run where PyTorch can be had without CUDA; what needs it of"
            " `tests` is skipped elsewhere. `quickstart` is the test accuracy of `configs/quickstart.py`."
            " The last column is the commit, and the day, at which the row was written.",
            results,
            *(["### What failed", "\n".join(wrong)] if wrong else []),
            "## 20 steps in float64",
            "The largest differences from PyTorch, as in [parity](parity.md). PyTorch's half is computed by the"
            " checkout's own environment.",
            flagship,
            "## Versions",
            "What is preinstalled in an environment (`tests/matrix_environments.py`) `pip install -e .` has to leave"
            " as it is, else there is no row; what it adds is named.",
            versions,
        ]
        self.path.write_text("\n\n".join(parts) + "\n")


def kept(text: str, first: str) -> dict[str, list[str]]:
    """The lines of the table with that first cell, by environment."""
    _, _, rest = text.partition(f"| {first} |")
    lines = rest.partition("\n\n")[0].splitlines()[2:]
    cells = [line.strip("| ").split(" | ") for line in lines]
    return {name: others for name, *others in cells if name in ENVIRONMENTS}


def read_report(path: Path) -> Count:
    """The outcomes in an XML file of pytest; a file of tests that cannot be collected is one that failed."""
    failed, passed, skipped = [], 0, 0
    for case in ElementTree.parse(path).iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append("::".join(filter(None, (case.get("classname"), case.get("name")))))
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    return Count(passed, tuple(failed), skipped)


def run_tests(built: Built, targets: Sequence[str]) -> Count:
    """Run pytest in an environment; raises `UserError` where it could not run at all."""
    log = built.place / LOG
    with tempfile.TemporaryDirectory() as scratch, log.open("a") as output:
        report = Path(scratch) / "report.xml"
        command = [
            built.python,
            "-m",
            "pytest",
            *targets,
            "-m",
            "not slow",
            f"--deselect={OWN}",
            f"--junitxml={report}",
        ]
        # What it would find of this environment it is not to find.
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env=variables, check=False)
        if done.returncode not in (0, 1) or not report.exists():
            raise UserError(f"pytest could not run in {built.place}: see {log}.")
        return read_report(report)


def train_quickstart(built: Built) -> str:
    """The test accuracy of the quickstart in an environment."""
    with tempfile.TemporaryDirectory() as scratch:
        options = ["--config", "configs/quickstart.py", "--workdir", f"{scratch}/run"]
        execute([built.python, "scripts/train.py", *options], built.place)
        return f"{read_record(Path(scratch) / 'run/summary.json')['test_accuracy']:.2%}"


def judge_flagship(built: Built) -> tuple[list[str], list[str]]:
    """The largest differences of every network from PyTorch, which computes its half here; and what is over its bound.

    Raises:
        UserError: the steps cannot be made in the environment.
    """
    sys.path.append(str(ROOT / "parity_tests"))
    import flagship
    import test_flagship as judge

    cells, over = [], []
    for network in NETWORKS:
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "ours.npz"
            execute([built.python, "parity_tests/flagship.py", network, file], built.place)
            found = judge.compare(network, ours=flagship.read(file))
        cells += [f"{found[name]:.1e}" for name in QUANTITIES]
        over += [f"flagship, {network}: {name}" for name in QUANTITIES if not found[name] <= judge.bound(name)]
    return cells, over


def fill(page: Page, name: str, chosen: Sequence[str], bar: Bar) -> None:
    """Do all that is to be done in an environment, or run the chosen tests alone, and write its rows."""

    def note(what: str) -> None:
        bar.advance(0, note=f"{name}: {what}")

    note("installing")
    built = build(name, ENVIRONMENTS[name])
    (built.place / LOG).unlink(missing_ok=True)
    counts = []
    for folder in FOLDERS:
        targets = [target for target in chosen or FOLDERS if target.startswith(folder)]
        note(folder)
        without = folder == "parity_tests" and "torch" not in built.versions
        counts.append(None if without or not targets else run_tests(built, targets))
    cells, over, accuracy = [NONE] * len(NETWORKS) * len(QUANTITIES), [], NONE
    if not chosen:
        note("quickstart")
        accuracy = train_quickstart(built)
        note("flagship")
        cells, over = judge_flagship(built)
    results, flagship, versions = (table.lines for table in page.tables)
    results[name] = [*(NONE if count is None else str(count) for count in counts), accuracy, page.stamp]
    flagship[name] = cells
    versions[name] = [describe(built)]
    page.failed[name] = [test for count in counts if count is not None for test in count.failed] + over
    page.write()
    bar.print(f"{name}: {', '.join(results[name])}")


def describe(built: Built) -> str:
    """The versions of an environment in a line."""
    packages = map(canonicalize_name, ("python", *PACKAGES.values(), *OTHERS))
    found = ", ".join(f"{name} {built.versions[name]}" for name in packages if name in built.versions)
    return f"{found}; added by this project: {', '.join(built.added)}" if built.added else found


def main(arguments: Sequence[str]) -> None:
    """Parse, build, test, write."""
    parser = Parser(__doc__)
    parser.add_argument("environments", metavar="NAME", nargs="*", help=f"of {', '.join(ENVIRONMENTS)}; default: all")
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="Markdown file to write")
    parser.add_argument("--tests", metavar="PATH", nargs="+", default=[], help="these alone, and nothing else")
    options = parser.parse_args(arguments)
    names = options.environments or list(ENVIRONMENTS)
    for name in names:
        check(name in ENVIRONMENTS, "environment", name, f"choose of {', '.join(ENVIRONMENTS)}")
        find_python(ENVIRONMENTS[name].python)
    page = Page(options.out)
    with progress("environments", total=len(names)) as bar:
        for name in names:
            fill(page, name, options.tests, bar)
            bar.advance()
    sys.exit(int(any(page.failed[name] for name in names)))


if __name__ == "__main__":
    run(main)
