"""benchmarks/load.py: neighbours are busy while something is timed, and never after."""

import argparse
import os
import subprocess
import sys
import time

import pytest
from pages import ROOT

from benchmarks import load
from benchmarks.machine import Condition
from benchmarks.timing import Timing
from jax_cifar.errors import ConfigError

TAKEN = (Condition(others=0.5),)


def running(pid):
    """Whether a process is there and is not only waited for."""
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return done.stdout.strip()[:1] not in ("", "Z")


def ended(pid, within=30.0):
    """Whether a process is gone in so many seconds."""
    end = time.monotonic() + within
    while running(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not running(pid)


def test_neighbours_take_time_and_are_gone_afterwards(monkeypatch):
    started, guarded = [], load.ending_with_us
    monkeypatch.setattr(load, "ending_with_us", lambda process: started.append(process.pid) or guarded(process))
    before = sum(os.times()[2:4])
    with load.neighbours(2):
        assert len(started) == 2 and all(map(running, started))
        time.sleep(0.5)
    with pytest.raises(RuntimeError), load.neighbours(1):
        raise RuntimeError
    assert len(started) == 3
    assert not any(map(running, started))
    assert sum(os.times()[2:4]) - before > 0.1  # of the processes that have ended


def test_a_neighbour_ends_with_one_that_is_killed():
    code = "import time; from benchmarks.load import neighbours\nwith neighbours(1):\n    import subprocess, os"
    code += "\n    print(subprocess.run(['pgrep', '-P', str(os.getpid()), '-f', 'getppid'], capture_output=True,"
    code += " text=True).stdout, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        neighbour = int(process.stdout.readline())
        assert running(neighbour)
        process.kill()
    assert ended(neighbour)


def test_a_neighbour_whose_starter_is_gone_before_it_begins_ends_at_once():
    nobody = str(os.getppid())  # any but this process, which starts it
    subprocess.run([sys.executable, "-c", load.NEIGHBOUR, nobody], check=True, timeout=30)


def test_only_what_was_not_asked_for_disturbs_and_each_way_is_compared_with_itself():
    def row(name, neighbours, **seconds):
        timings = {way: Timing((value,), TAKEN) for way, value in seconds.items()}
        return load.Loaded(f"{name}, beside {neighbours}", timings, network=name, neighbours=neighbours)

    rows = [row("net", 0, jax=1.0, torch=2.0), row("net", 2, jax=2.5, torch=8.0), row("other", 1, jax=3.0)]
    assert [len(row.disturbed) for row in rows] == [1, 0, 0]
    *_, last = load.table(rows).splitlines()
    assert last == "- net, beside 2, times of its own: jax 2.50, torch 4.00"


def test_a_number_that_is_none_is_refused_before_anything_is_timed():
    options = argparse.Namespace(models=["simple_cnn"], neighbours=[0, -1], batch=8, torch=[], rounds=1)
    with pytest.raises(ConfigError, match="--neighbours = -1 is not allowed: it must be 0 to 64"):
        next(load.measure(options))
    assert load.cases(options) == 2
