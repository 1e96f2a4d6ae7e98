"""The suites that time ways in processes of their own: what is started, what it is asked, and what it tells."""

import argparse
import contextlib
import os
from types import SimpleNamespace

import pytest

from benchmarks import load, machine, processes, step, way
from benchmarks.processes import worker
from benchmarks.timing import Timing
from benchmarks.way import Subject
from jax_cifar import allocator
from jax_cifar.errors import ConfigError

# Burns CPU time, of which it tells, and notes how often it was asked to.
SERVING = """
import sys, time
from benchmarks.processes import serve

def work(count):
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass
    print(count, file=open(sys.argv[1], "a"))
    if count == 9:
        sys.exit("nine is too many")

serve(work)
"""
OWN = """
from jax_cifar.config import *

def get_config():
    return Config(name="own", model=ModelConfig(name="cifar_cnn"), train=TrainConfig(batch_size=50))
"""


OWN_PARTS = """
from typing import Literal

import optax
from jax_cifar.config import *

def loss(logits, targets):
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets)

def get_config(variant: Literal["loss", "rule", "neither"] = "neither"):
    parts = {
        "loss": dict(train=TrainConfig(loss=loss)),
        "rule": dict(optim=OptimConfig(name=optax.lion)),
        "neither": {},
    }
    return Config(name=variant, model=ModelConfig(name="cifar_cnn"), **parts[variant])
"""


def serving(file):
    return worker(["-c", SERVING, str(file)], os.environ)


@pytest.fixture
def started(monkeypatch):
    """The processes that are started."""
    found, guarded = [], processes.ending_with_us
    monkeypatch.setattr(processes, "ending_with_us", lambda process: found.append(process) or guarded(process))
    return found


def test_a_worker_works_as_often_as_it_is_asked_and_its_time_is_our_own(started, tmp_path):
    with serving(tmp_path / "asked") as work:
        work(2)
        own = machine._own_seconds()
        work(3)
        assert machine._own_seconds() - own >= 0.185  # told in hundredths
        assert started[0].poll() is None
    assert (tmp_path / "asked").read_text() == "2\n3\n"
    assert started[0].returncode == 0
    assert processes.spent == {}


def test_a_worker_at_rest_gives_its_free_memory_back_and_not_while_it_works(monkeypatch):
    done = []

    class Timer:
        def __init__(self, seconds, act):
            assert (seconds, act) == (processes.SECONDS_TO_REST, allocator.give_back)

        def start(self):
            done.append(("rest", id(self)))

        def cancel(self):
            done.append(("no rest", id(self)))

    monkeypatch.setattr(processes, "threading", SimpleNamespace(Timer=Timer))
    monkeypatch.setattr(processes, "sys", SimpleNamespace(stdin=["3\n", "5\n"]))
    processes.serve(done.append)
    begun = done[2][1]
    assert [each if isinstance(each, int) else each[0] for each in done] == ["no rest", 3, "rest", "no rest", 5, "rest"]
    assert done[3] == ("no rest", begun)


def test_what_is_kept_is_given_back_where_any_is(monkeypatch):
    given = []
    monkeypatch.setattr(allocator, "_kept_by", [])
    allocator.give_back()
    monkeypatch.setattr(allocator, "_kept_by", [SimpleNamespace(malloc_trim=given.append)])
    allocator.give_back()
    assert given == [0]


def test_a_worker_that_fails_is_named_whatever_others_there_are(started, tmp_path):
    with (
        pytest.raises(ConfigError, match=r"^A process to be timed failed: nine is too many \(-c "),
        serving(tmp_path / "first") as first,
        serving(tmp_path / "second"),
    ):
        first(1)
        first(9)
    assert all(process.poll() is not None for process in started) and len(started) == 2
    with (
        pytest.raises(ConfigError, match="failed: it said nothing, exit code 0 "),
        worker(["-c", ""], os.environ) as nothing,
    ):
        started[-1].wait()
        nothing(1)
    assert processes.spent == {}


def test_a_process_makes_the_way_that_it_is_asked_for(monkeypatch):
    for name in ("jax_train_step", "jax_inference", "torch_train_step", "torch_inference"):
        monkeypatch.setattr(way, name, lambda config, batch, *how, name=name: (name, len(batch.labels), *how))
    config = Subject("model", "tiny_cnn", 3).config()
    assert (config.model.name, config.train.batch_size) == ("tiny_cnn", 3)
    made = [way.make(which, what, config) for which in ("jax", "torch") for what in ("train", "inference")]
    assert made == [
        ("jax_train_step", 3),
        ("jax_inference", 3),
        ("torch_train_step", 3, "torch"),
        ("torch_inference", 3, "torch"),
    ]


def test_every_way_is_a_process_that_knows_what_it_times(monkeypatch):
    commands = []
    monkeypatch.setattr(way, "worker", lambda command, _: commands.append(command) or contextlib.nullcontext(command))
    with way.in_processes(["jax", "torch.compile"], "train", Subject("config", "own.py:wide", 8)) as ways:
        assert list(ways) == ["jax", "torch.compile"] and list(ways.values()) == commands
    rest = ["train", "config", "own.py:wide", "8"]
    assert commands == [["-m", "benchmarks.way", which, *rest] for which in ("jax", "torch.compile")]


@pytest.fixture
def timed(monkeypatch):
    """Stand in for the processes: what each is asked for, and a time for every way."""
    asked = []

    @contextlib.contextmanager
    def in_processes(ways, what, subject):
        asked.append((tuple(ways), what, tuple(subject)))
        yield dict.fromkeys(ways)

    for suite in (step, load):
        monkeypatch.setattr(suite, "in_processes", in_processes)
        monkeypatch.setattr(
            suite, "interleave", lambda ways, rounds, **_: {way: Timing((1.0,) * rounds) for way in ways}
        )
    return asked


def measured(suite, *arguments):
    parser = argparse.ArgumentParser()
    suite.add_options(parser)
    parser.set_defaults(rounds=2)
    options = parser.parse_args(arguments)
    cases = list(suite.measure(options))
    assert len(cases) == suite.cases(options)
    return [case.name for case in cases]


def test_step_times_networks_by_name_and_those_of_configs(timed, tmp_path):
    file = tmp_path / "own.py"
    file.write_text(OWN)
    names = measured(step, "--models", "tiny_cnn", "--config", str(file), "--batch", "4", "--torch", "torch")
    assert names == ["tiny_cnn, train", "tiny_cnn, inference", "own, train", "own, inference"]
    subjects = ("model", "tiny_cnn", 4), ("config", str(file), 4)
    assert timed == [(("jax", "torch"), what, subject) for subject in subjects for what in ("train", "inference")]
    assert Subject("config", str(file), 4).config().train.batch_size == 4


def test_a_network_of_ones_own_is_timed_alone(timed, monkeypatch):
    own = SimpleNamespace(model=object(), name="own")
    monkeypatch.setattr(step.Subject, "config", lambda self: own)
    assert measured(step, "--config", "own.py", "--what", "inference") == ["own, inference"]
    assert [ways for ways, *_ in timed] == [("jax",)]


def test_training_by_a_loss_or_rule_of_ones_own_is_timed_alone(timed, tmp_path):
    file = tmp_path / "parts.py"
    file.write_text(OWN_PARTS)
    variants = [f"{file}:{name}" for name in ("loss", "rule", "neither")]
    measured(step, "--config", *variants, "--torch", "torch")
    both = ("jax", "torch")
    assert [ways for ways, *_ in timed] == [("jax",), both, ("jax",), both, both, both]


def test_load_times_the_same_processes_beside_every_number_of_neighbours(timed, monkeypatch):
    beside = []
    monkeypatch.setattr(load, "neighbours", lambda count: beside.append(count) or contextlib.nullcontext())
    names = measured(load, "--neighbours", "0", "2", "--torch", "torch")
    assert names == ["simple_cnn, beside 0", "simple_cnn, beside 2"] and beside == [0, 2]
    assert timed == [(("jax", "torch"), "train", ("model", "simple_cnn", 128))]


@pytest.mark.slow
def test_a_way_runs_in_its_process():
    with way.in_processes(["jax", "torch"], "inference", Subject("model", "simple_cnn", 2)) as ways:
        for work in ways.values():
            work(1)
            work(2)
        assert len(processes.spent) == 2
