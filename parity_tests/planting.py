"""Planting a fault: one replacement in a private copy of the sources; the test runs there in a process of its own."""

import multiprocessing
import os
import re
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
COPIED = ("jax_cifar", "torch_ref", "configs", "scripts", "tests", "parity_tests", "benchmarks", "pyproject.toml")
OUTPUT = "output.txt"


class Mutant(NamedTuple):
    """`old`, which occurs once in `file`, becomes `new`; then `test`, below parity_tests/ or in tests/, must fail."""

    fault: str
    file: str
    old: str
    new: str
    test: str


# Importing takes longer than most of the tests: it is done once, in a process that is copied for every mutant.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["jax", "flax.linen", "optax", "torch", "pytest"])


def run_mutant(mutant: Mutant, folder: Path) -> str | None:
    """The assertion that killed the mutant, in a line; None where it survived. `folder` is empty, and filled.

    Raises:
        RuntimeError: the text to replace is not there exactly once, or the test could not be run at all.
    """
    for name in COPIED:
        source, target = ROOT / name, folder / name
        shutil.copytree(source, target) if source.is_dir() else shutil.copy2(source, target)
    path = folder / mutant.file
    source = path.read_text()
    if source.count(mutant.old) != 1:
        raise RuntimeError(f"{mutant.file} holds {source.count(mutant.old)} times, not once: {mutant.old}")
    path.write_text(source.replace(mutant.old, mutant.new))
    test = mutant.test if mutant.test.startswith("tests/") else f"parity_tests/{mutant.test}"
    process = _PROCESSES.Process(target=_run_test, args=(folder, test))
    process.start()
    process.join()
    if process.exitcode == 0:
        return None
    output = (folder / OUTPUT).read_text()
    failed = re.search(r"^FAILED .+? - (.*)$", output, re.MULTILINE)
    if process.exitcode != 1 or failed is None:
        raise RuntimeError(f"{mutant.test} could not be run:\n{output[-3000:]}")
    return failed[1]


def _run_test(folder: Path, test: str) -> None:
    """In the new process: run one test on the sources in `folder`, and leave with pytest's exit code."""
    if "jax_cifar" in sys.modules:
        raise RuntimeError("jax_cifar is imported already, without the fault.")
    os.chdir(folder)
    with (folder / OUTPUT).open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    os.environ["COLUMNS"] = "400"  # or the line with the assertion is cut
    options = ["-n0", "-x", "-q", "-rf", "-p", "no:randomly", "-p", "no:cacheprovider", "-m", ""]
    sys.exit(pytest.main([*options, test]))
