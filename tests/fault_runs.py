"""What the fault matrix compares with: a run that nothing happened to, and whether another is the same.

A round of the matrix is lost where it raises anything: `Lost` by what is checked here, or whatever escapes.
"""

import atexit
import contextlib
import functools
import io
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import strictness  # noqa: F401
from resume_matrix import stop_at
from small_runs import loop, same_bits, small_config

from jax_cifar.errors import UserError
from jax_cifar.lab.results import finished_runs
from jax_cifar.lab.runs import overview
from jax_cifar.run.arrays import read_verified
from jax_cifar.run.load import load_run
from jax_cifar.run.reading import steps
from jax_cifar.training.trainer import TrainResult

# 12 updates, the best state of them, and the newest three of those saved after every second.
CONFIG = small_config(checkpoint={"every": 1 / 3, "keep": 3}, data={"val_fraction": 0.1})
STOPPED_AT = 8
IMAGES = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
FOLDERS = {"last": "checkpoints", "best": "checkpoints/best"}
# No two runs have the same.
TIMES = ("seconds", "images_per_second", "sha256", "crc32")


class Lost(Exception):
    """A round in which something was lost, and what."""


def require(holds: bool, otherwise: str) -> None:
    """Raise `Lost` unless it holds."""
    if not holds:
        raise Lost(otherwise)


@contextlib.contextmanager
def silence() -> Any:
    """Nothing on the terminal; what would have been printed, in the end."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        yield said


@functools.cache
def scratch() -> Path:
    """A folder that goes with the process."""
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def whole() -> TrainResult:
    """A run that nothing happened to."""
    with silence():
        return loop.train(CONFIG, scratch() / "whole")


@functools.cache
def sound_table() -> str:
    """What scripts/report.py says of it."""
    return overview(finished_runs([str(whole().workdir)]))


@functools.cache
def sound_numbers(which: str, step: int) -> tuple[int, bytes, dict[str, Any]]:
    """What one of its checkpoints predicts."""
    require((whole().workdir / FOLDERS[which] / str(step)).exists(), f"{which}: there was no step {step}")
    if which == "best":
        return judge(whole().workdir, which)
    return judge(stop_at(whole().workdir, step, scratch() / f"after {step}"), which)


def judge(folder: Path, which: Any) -> tuple[int, bytes, dict[str, Any]]:
    """Step, logits and test report of a run's newest or best checkpoint."""
    run = load_run(folder, which)
    return run.step, run.logits(IMAGES).tobytes(), run.evaluate("test").to_dict()


def copied(place: Path) -> Path:
    """A copy of the run that nothing happened to."""
    return shutil.copytree(whole().workdir, place / "run")


def stopped(place: Path) -> Path:
    """The same as it was after `STOPPED_AT` updates."""
    return stop_at(whole().workdir, STOPPED_AT, place / "run")


def evaluates(folder: Path) -> str:
    """Evaluate: the numbers of one of the checkpoints, or the message that there is nothing to be had."""
    told = ""
    for which in ("last", "best"):
        try:
            found = judge(folder, which)
        except UserError as error:
            told = told or str(error)
            continue
        require(found == sound_numbers(which, found[0]), f"{which}, step {found[0]}: other numbers")
    return told


def trains(folder: Path, **options: Any) -> str:
    """Train on: the bits of the run that nothing happened to, or the message why not."""
    try:
        result = loop.train(CONFIG, folder, **options)
    except UserError as error:
        return str(error)
    require(same_bits(result.state, whole().state), "the state has other bits")
    require(result.report.to_dict() == whole().report.to_dict(), "another report")
    require(says(result.summary, whole().summary), "another summary")
    return ""


def goes_on(folder: Path, **options: Any) -> None:
    """Train on to the very end: no message will do, and every record is there."""
    told = trains(folder, **options)
    require(not told, told)
    same_records(folder, whole().workdir)


def reports(folder: Path) -> str:
    """scripts/report.py: the row that it was, or none."""
    try:
        found = overview(finished_runs([str(folder)]))
    except UserError as error:
        return str(error)
    require(found == sound_table(), "the table has other numbers")
    return ""


def untimed(values: dict[str, Any]) -> dict[str, Any]:
    """Without what no two runs have the same."""
    return {name: value for name, value in values.items() if name not in TIMES}


def says(values: dict[str, Any], sound: dict[str, Any]) -> bool:
    """Whether all that the sound one says is said; a flipped bit may have made a sum a field that nobody reads."""
    return untimed(sound).items() <= values.items()


def records(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without their times; whole, or it raises."""
    return [untimed(json.loads(line)) for line in (folder / "metrics.jsonl").read_bytes().splitlines()]


def same_records(folder: Path, other: Path) -> None:
    """Raise `Lost` unless metrics.jsonl, report.json and summary.json of two runs say the same."""
    require(records(folder) == records(other), "metrics.jsonl differs")
    for name in ("report.json", "summary.json"):
        one, two = (untimed(json.loads((place / name).read_bytes())) for place in (folder, other))
        require(one == two, f"{name} differs")


def same_arrays(folder: Path, other: Path) -> None:
    """Raise `Lost` unless a run has the checkpoints of another, bit for bit; a stop may have added one."""
    for sub in FOLDERS.values():
        require({*steps(folder / sub)} >= {*steps(other / sub)}, f"{sub}: steps {steps(folder / sub)}")
        for step in steps(other / sub):
            one, two = (read_verified(place / sub / str(step)) for place in (folder, other))
            require(same_bits(one, two), f"{sub}/{step} has other bits")
