"""Rows of the fault matrix in processes of their own: killed, given signals, several at one folder."""

import functools
import multiprocessing
import os
import sys
import time
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

from fault_runs import require, same_arrays, same_records, scratch, silence
from processes import ROOT, Signal, run_script
from small_runs import loop, small_config

from jax_cifar.errors import UserError
from jax_cifar.run.lock import LOCK

# Every one of 12 updates is logged and saved.
CONFIG = small_config(
    checkpoint={"every": 1 / 6, "keep": 2}, data={"val_fraction": 0.1}, log={"every": 1}, eval={"every": 0.5}
)
# A server that has imported everything, and computed nothing, forks them.
PROCESSES = multiprocessing.get_context("forkserver")
LONGEST = 180.0  # seconds that one may take
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
LONG = 30.0  # seconds that a stage would go on for
SOON = 20.0  # seconds in which a process has to be gone, whatever else the machine does


def train(folder: Path, begun: Any, together: Any = None) -> None:
    """What a process does: exit code 0, 2 for what a user can put right, and 1 for a traceback."""
    if together is not None:
        together.wait()
    with silence():
        try:
            loop.train(CONFIG, folder, callbacks=[SimpleNamespace(on_log=lambda record: begun.set())])
        except UserError as error:
            sys.exit(error.exit_code)


def start(folder: Path, together: Any = None) -> Any:
    """A process that trains into `folder`; its event `begun` tells that it has made its first update."""
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    PROCESSES.set_forkserver_preload(["fault_processes"])
    begun = PROCESSES.Event()
    process: Any = PROCESSES.Process(target=train, args=(folder, begun, together))
    process.begun, process.together = begun, together  # what it was given goes where nobody holds it
    process.start()
    return process


@functools.cache
def whole() -> tuple[Path, float]:
    """A run that nothing happened to, and its seconds from the first update to the end."""
    folder = scratch() / "whole of processes"
    for at in (folder.with_name("first, which compiles"), folder):
        process = start(at)
        process.begun.wait(LONGEST)
        first = time.monotonic()
        process.join(LONGEST)
        assert process.exitcode == 0
    return folder, time.monotonic() - first


def killed(number: int, random: Random, place: Path) -> None:
    """kill -9 at two random moments of training and saving, and once more on to the end."""
    sound, seconds = whole()
    for _ in range(2):
        process = start(place / "run")
        until = time.monotonic() + LONGEST
        while process.is_alive() and not process.begun.is_set() and time.monotonic() < until:
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.6 * seconds))
        process.kill()
        process.join()
        require(process.exitcode in (-9, 0), f"exit code {process.exitcode}")
    ends_well(start(place / "run"))
    same_arrays(place / "run", sound)
    same_records(place / "run", sound)


def ends_well(process: Any) -> None:
    """Raise `Lost` unless the process ends with 0."""
    process.join(LONGEST)
    code = process.exitcode
    process.kill()
    require(code == 0, f"exit code {code}")


def together(count: int) -> Any:
    """Rounds of so many processes that start at one folder at once."""

    def one(number: int, random: Random, place: Path) -> None:
        barrier = PROCESSES.Barrier(count)
        started = [start(place / "run", barrier) for _ in range(count)]
        for process in started:
            process.join(LONGEST)
        codes = sorted(process.exitcode if process.exitcode is not None else -1 for process in started)
        require(codes[0] == 0 and set(codes) <= {0, 2}, f"exit codes {codes}")
        require(not (place / "run" / LOCK).exists(), "the lock is still there")
        same_arrays(place / "run", whole()[0])
        same_records(place / "run", whole()[0])

    return one


# Script, stage, how many times it is entered before the signal, seconds that it lasts longer.
AT_ONCE = ("import numpy", "import jax", "import flax", "data", "start", "folder", "compile")
SAVED = (("train", 3, 0), ("evaluate", 2, 0), ("save", 1, 0.5), ("final", 1, LONG), ("draw", 1, LONG))
OTHERS = (("evaluate", "import jax"), ("evaluate", "load"), ("evaluate", "evaluate"))
OTHERS += (("export", "import jax"), ("export", "load"), ("report", "report"))
SIGNALS = [
    *(("train", stage, 1, LONG) for stage in AT_ONCE),
    *(("train", *one) for one in SAVED),
    *((script, stage, 1, LONG) for script, stage in OTHERS),
]
CONFIG_FILE = """
import dataclasses, sys
sys.path.insert(0, {tests!r})
from small_runs import small_config
get_config = lambda: small_config(log={{"tensorboard": False, "plots": True}}, eval={{"every": 0.5}})
"""


@functools.cache
def signalled() -> tuple[Path, Path]:
    """The config file of the runs that are given signals, and a run of it that was given none."""
    config, folder = scratch() / "signalled.py", scratch() / "not signalled"
    config.write_text(CONFIG_FILE.format(tests=str(ROOT / "tests")))
    assert run_script("train", ["--config", config, "--workdir", folder]).code == 0
    return config, folder


def signal(number: int, random: Random, place: Path) -> None:
    """A signal at a stage: 75 within seconds, no traceback; where there was something to save the command goes on."""
    script, stage, count, seconds = SIGNALS[number % len(SIGNALS)]
    name = NAMES[(number + number // len(SIGNALS)) % len(NAMES)]
    config, sound = signalled()
    command = ["--workdir", sound]
    if script == "train":
        command = ["--config", config, "--workdir", place / "run"]
    elif script == "export":
        command += ["--out", place / "model.onnx"]
    ended = run_script(script, command, [Signal(stage, name, count, seconds)])
    where = f"{script}, {stage}, {name}"
    require(ended.code == 75 and "Traceback" not in ended.err, f"{where}: exit code {ended.code}: {ended.err[-300:]}")
    require((ended.seconds_to_stop or 0) < SOON, f"{where}: after {ended.seconds_to_stop} s")
    require(not list(place.rglob("*.unfinished")), f"{where}: half a file")
    if script == "train":
        has_saved = any(stage == one for one, *_ in SAVED)
        require(has_saved != ("There was nothing to save" in ended.err), f"{where}: {ended.err[-300:]}")
    else:
        require(not list(place.iterdir()), f"{where}: it left something")
    if script == "train" and has_saved:
        again = run_script("train", command)
        require(again.code == 0, f"{where}: the same command again: {again.err[-300:]}")
        same_arrays(place / "run", sound)
        same_records(place / "run", sound)
