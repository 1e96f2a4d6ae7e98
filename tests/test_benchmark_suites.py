"""The suites of the benchmarks: what each way is given; and, where it is slow, every suite on something small."""

import argparse
import dataclasses
import json
import math
import os
import runpy
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import jax
import pytest
import torch

from benchmarks import accuracy, checkpoint, machine, many, networks, scan, startup, timing
from benchmarks.checkpoint import Files
from benchmarks.machine import Condition
from benchmarks.processes import REPORT
from benchmarks.tables import as_json, markdown
from benchmarks.timing import Case, Timing
from benchmarks.trainings import Epoch, Training
from jax_cifar.config import LogConfig, ModelConfig, OptimConfig, ScheduleConfig
from jax_cifar.config.files import load_config
from jax_cifar.errors import ConfigError
from jax_cifar.run.checkpoint import Checkpoints
from jax_cifar.training.session import Session
from torch_ref import steps as torch_steps

SCRIPT = Path(__file__).parents[1] / "scripts" / "benchmark.py"
CONFIG = """
from jax_cifar.config import *

def get_config():
    return Config(
        name="small",
        data=DataConfig(name="synthetic", subset=64, val_fraction=0.1),
        model=ModelConfig(name="simple_cnn", width=4),
        train=TrainConfig(epochs=2.5, batch_size=8, compilation_cache=False),
        eval=EvalConfig(batch_size=250, every=0),
    )
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Nothing here runs long enough to be worth optimising, a second thread, or a look at the machine."""
    monkeypatch.setattr(machine, "observe", lambda work: (work(), Condition()))
    before, threads = jax.config.read("jax_disable_most_optimizations"), torch.get_num_threads()
    jax.config.update("jax_disable_most_optimizations", True)
    torch.set_num_threads(1)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    yield
    monkeypatch.undo()
    jax.config.update("jax_disable_most_optimizations", before)
    torch.set_num_threads(threads)


@pytest.fixture
def small(monkeypatch):
    """Networks of two channels, and no repeats."""

    def small_config(name, batch):
        config = networks.network_config(name, batch)
        return dataclasses.replace(config, model=dataclasses.replace(config.model, width=2))

    for suite in (scan, checkpoint):
        monkeypatch.setattr(suite, "network_config", small_config)
    monkeypatch.setattr(timing, "_repeats", lambda work, seconds: work(1) or 1)


def measure(suite: ModuleType, *arguments: str) -> list[Case]:
    """What a suite measures in one round, checked to fit into both kinds of table."""
    parser = argparse.ArgumentParser()
    suite.add_options(parser)
    parser.set_defaults(rounds=1)
    options = parser.parse_args(arguments)
    options.environment = {**os.environ, "OF_THE_USER": "1"}
    cases = list(suite.measure(options))
    assert len(cases) == suite.cases(options)
    assert markdown(cases).count("\n") == len(cases) + 1
    json.dumps(as_json("any", cases), allow_nan=False)
    for case in cases:
        assert all(len(way.seconds) == 1 and way.median > 0 for way in case.timings.values())
    return cases


def test_every_suite_of_the_script_has_its_parts():
    for name in runpy.run_path(str(SCRIPT))["SUITES"]:
        suite = __import__(f"benchmarks.{name}", fromlist=["measure"])
        parser = argparse.ArgumentParser()
        suite.add_options(parser)
        assert callable(suite.measure)
        assert suite.__doc__
        # What --quick asks for is what one could type.
        known = {option.dest: option for option in parser._actions} | parser._defaults
        for option, value in suite.QUICK.items():
            allowed = getattr(known[option], "choices", None)
            values = value if isinstance(value, list) else [value]
            assert allowed is None or set(values) <= set(allowed)
        # An option that a suite has is one that it reads.
        assert ("rounds" in known) == ("options.rounds" in Path(suite.__file__).read_text()), name


@pytest.mark.slow
def test_the_script_prints_a_table_and_writes_json(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "path", [*sys.path])
    file = tmp_path / "step.json"
    arguments = ["--models", "simple_cnn", "--batch", "2", "--torch", "torch", "--rounds", "2", "--json", str(file)]
    runpy.run_path(str(SCRIPT))["main"](["step", *arguments])
    table = capsys.readouterr().out.splitlines()
    assert table[0] == "| case | jax | torch | ratio |"
    values = json.loads(file.read_text())
    assert [case["name"] for case in values["cases"]] == ["simple_cnn, train", "simple_cnn, inference"]
    for case in values["cases"]:
        assert case["images"] == 2
        assert [len(seconds) for seconds in case["seconds"].values()] == [2, 2]


def test_processes_of_their_own_write_and_evaluate_no_more_than_train_many(monkeypatch, tmp_path):
    given = []
    monkeypatch.setattr(many, "run_python", lambda command, environment: given.append(command[1:]))
    assert many.make_way("one by one", ["--config", "quickstart", "--train.epochs", "2"], 2, os.environ)(0) >= 0
    for seed, words in enumerate(given):
        fields = [f"{name}={value}" for name, value in zip(words[2:-2:2], words[3:-2:2], strict=True)]
        config = load_config(words[1], fields)
        assert (config.train.seed, config.train.epochs, words[-2:-1]) == (seed, 2, ["--workdir"])
        assert (config.eval.every, config.checkpoint.every, config.log.tensorboard, config.log.plots) == (0, 0, 0, 0)
    assert len(given) == 2


@pytest.mark.slow
def test_scan_makes_the_same_updates_in_fewer_calls(small, monkeypatch):
    made: dict[int, list[int]] = {}
    advance = Session.advance

    def recording(self, *arguments):
        state, interval = advance(self, *arguments)
        made.setdefault(self.plan.steps_per_call, []).append(interval.end - interval.begin)
        return state, interval

    monkeypatch.setattr(Session, "advance", recording)
    (case,) = measure(scan, "--models", "simple_cnn", "--batch", "2", "--steps", "3")
    assert (case.name, list(case.timings), case.images) == ("simple_cnn, 3 steps", ["scan", "a call per step"], 2)
    assert made == {3: [3] * 3, 1: [3] * 3}  # the first compiles, one is timed to see how often, one warms up


def test_scan_gives_the_seconds_of_one_step(small, monkeypatch):
    monkeypatch.setattr(scan, "epoch", lambda config, splits, steps_per_call: None)
    monkeypatch.setattr(scan, "interleave", lambda ways, rounds: {way: Timing((10.0,)) for way in ways})
    (case,) = measure(scan, "--models", "simple_cnn", "--steps", "5")
    assert {timing.seconds for timing in case.timings.values()} == {(2.0,)}
    with pytest.raises(ConfigError, match="--steps = 1 is not allowed: it must be at least 2"):
        measure(scan, "--steps", "1")


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_off_the_cpu_a_call_knows_its_number_of_updates_and_is_compiled_before_it_is_timed(backend, monkeypatch):
    numbers, done = [], []
    fori_loop, wait = jax.lax.fori_loop, jax.block_until_ready
    config = networks.network_config("simple_cnn", 2)
    config = dataclasses.replace(config, log=LogConfig(every=3), model=ModelConfig(name="simple_cnn", width=2))
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax.lax, "fori_loop", lambda _, high, *rest: numbers.append(high) or fori_loop(0, high, *rest))
    monkeypatch.setattr(jax, "block_until_ready", lambda state: done.append(int(state.step)) or wait(state))
    work = networks.jax_train_step(config, networks.random_batch(2))
    compiled = len(numbers)
    for count in (1, 2, 7, 3):
        work(count)
    assert done == [1, 3, 10, 13]
    if backend == "gpu":
        assert (compiled, numbers) == (2, [3, 1])
    else:
        assert (compiled, len(numbers)) == (0, 1) and not isinstance(numbers[0], int)


def tiny(**sections):
    config = networks.network_config("simple_cnn", 2)
    return dataclasses.replace(config, model=ModelConfig(name="simple_cnn", width=2), **sections)


@pytest.fixture
def trainers(monkeypatch):
    """The trainers of PyTorch that a way makes."""
    made = []

    class Recorded(torch_steps.Trainer):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            made.append(self)

    monkeypatch.setattr(networks, "Trainer", Recorded)
    return made


@pytest.mark.parametrize(
    "schedule",
    [
        ScheduleConfig(name="onecycle"),
        ScheduleConfig(name="cosine", warmup=5, eta_min=0.001),
        ScheduleConfig(name="step", milestones=(30, 60)),
        ScheduleConfig(name="warm_restarts", t_0=10),
        ScheduleConfig(name=lambda step, total: step / total),
    ],
    ids=["onecycle", "cosine", "step", "warm_restarts", "own"],
)
def test_pytorch_makes_any_number_of_updates_whatever_the_schedule_of_a_config(schedule, trainers):
    config = tiny(schedule=schedule)
    work = networks.torch_train_step(config, networks.random_batch(2), "torch")
    work(1)
    work(2)
    ((group,),) = [[group for optimizer in each.optimizers for group in optimizer.param_groups] for each in trainers]
    assert (group["lr"], group["momentum"]) == (config.optim.lr, config.optim.momentum)


def test_a_step_of_a_config_averages_its_weights_in_both_frameworks(trainers, monkeypatch):
    states, wait = [], jax.block_until_ready
    monkeypatch.setattr(jax, "block_until_ready", lambda state: states.append(jax.device_get(state)) or wait(state))
    config = tiny(optim=OptimConfig(lr=0.5, ema_decay=0.9))
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, skip_nonfinite=2))
    networks.jax_train_step(config, networks.random_batch(2))(2)
    networks.torch_train_step(config, networks.random_batch(2), "torch")(2)
    (state,), (trainer,) = states, trainers
    assert (int(state.step), int(state.skipped)) == (2, 0)
    pairs = zip(jax.tree.leaves(state.ema["params"]), jax.tree.leaves(state.params), strict=True)
    assert any((average != weights).any() for average, weights in pairs)
    assert int(trainer.average.n_averaged) == 3  # the first is a copy


def test_training_waits_for_the_hand_over_only(monkeypatch):
    now, done = [0.0], []

    def work(name, seconds):
        done.append(name)
        now[0] += seconds

    monkeypatch.setattr(checkpoint, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    parts = [("hand over", 1.0), ("wait", 10.0), ("read", 100.0)]
    files = Files(*(lambda part=part: work(*part) for part in parts))
    assert files.waiting(0) == 1.0
    files.save(2)
    assert done == 3 * ["hand over", "wait"]
    files.restore(2)
    assert now == [233.0]


@pytest.mark.slow
def test_both_frameworks_save_the_same_numbers(small, tmp_path):
    config = checkpoint.network_config("simple_cnn", 2)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, norm="batch"))
    with Checkpoints(tmp_path / "jax", 2) as checkpoints:
        ours, theirs = checkpoint.jax_files(config, checkpoints), checkpoint.torch_files(config, tmp_path / "state.pt")
        for files in (ours, theirs):
            files.save(3)
            files.restore(1)
    newest = max((tmp_path / "jax").iterdir(), key=lambda path: int(path.name))
    leaves = json.loads((newest / "manifest.json").read_text())["leaves"]
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    momentum = [state["momentum_buffer"] for state in saved["optimizer"]["state"].values()]
    count = sum(tensor.numel() for tensor in [*saved["model"].values(), *momentum] if tensor.ndim)
    assert newest.name == "3"
    assert sum(math.prod(shape) for shape, *_ in leaves.values() if shape) == count


@pytest.mark.slow
def test_the_checkpoint_suite(small, tmp_path):
    cases = measure(checkpoint, "--models", "simple_cnn", "--dir", str(tmp_path))
    assert [case.name for case in cases] == [f"simple_cnn, {what}" for what in ("save", "training waits", "restore")]
    assert all(list(case.timings) == ["jax", "torch"] for case in cases)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match=r"--dir = '.*nowhere' is not allowed: it must be a folder that exists"):
        measure(checkpoint, "--dir", str(tmp_path / "nowhere"))


def test_the_startup_suite_gives_every_process_its_cache(monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "the user's own")
    caches: dict[str, list[tuple[str, bool]]] = {"jax": [], "torch": []}

    def fake(command, env):
        assert env["OF_THE_USER"] == "1"
        if "-m" in command:
            folder = Path(env["XDG_CACHE_HOME"])
            assert folder in Path(env["TORCHINDUCTOR_CACHE_DIR"]).parents
            assert "JAX_COMPILATION_CACHE_DIR" not in env
            caches[command[2]].append((str(folder), any(folder.glob("*"))))
            (folder / "program").mkdir(parents=True, exist_ok=True)
        return [1.5]

    monkeypatch.setattr(startup, "run_python", fake)
    cases = measure(startup, "--torch", "torch")
    assert [case.name for case in cases[:3]] == [
        "first step, cold cache",
        "first step, warm cache",
        "import jax / torch",
    ]
    assert all(list(case.timings) == ["jax", "torch"] for case in cases)
    assert all(timing.seconds == (1.5,) for case in cases for timing in case.timings.values())
    for (filled, _), (cold, cold_used), (warm, warm_used) in caches.values():
        assert (filled == warm, filled == cold) == (True, False)
        assert (cold_used, warm_used) == (False, True)
    assert not any(os.path.exists(folder) for uses in caches.values() for folder, _ in uses)


TINY = ("--model.width", "2", "--train.batch_size", "2", "--eval.batch_size", "2")


@pytest.mark.slow
def test_a_process_reports_its_first_step(monkeypatch, tmp_path):
    monkeypatch.setattr(startup, "SETTINGS", (*startup.SETTINGS, *TINY))
    assert startup.first_step(startup.FIRST_STEP["torch"], os.environ, tmp_path) > 0


@pytest.mark.slow
def test_our_script_is_stopped_after_its_first_step(monkeypatch, capsys):
    steps, advance = [], Session.advance

    def recording(self, *arguments):
        state, interval = advance(self, *arguments)
        steps.append(interval.end)
        return state, interval

    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(Session, "advance", recording)
    place = startup.SETTINGS.index("--train.steps") + 1
    started, options = time.time() - 1000, [*startup.SETTINGS, *TINY, "--log.every", "1"]
    options[place] = "3"
    with pytest.raises(SystemExit) as caught:
        startup.report_first_step("jax", [*options, "--train.compilation_cache", "False"], started)
    assert caught.value.code is None
    assert steps == [1]
    (seconds,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(REPORT)]
    assert 1000 < float(seconds.removeprefix(REPORT)) < 2000


def test_pytorch_is_stopped_after_its_first_step(monkeypatch):
    done = []

    class Fake:
        def update(self, images, targets):
            done.append("update")
            return torch.tensor(1.0), torch.tensor(1)

    monkeypatch.setattr(torch_steps, "Trainer", Fake)
    startup.stop_after_update(lambda: done.append("stop"))
    torch_steps.Trainer().update(None, None)  # pyright: ignore[reportCallIssue, reportArgumentType]
    assert done == ["update", "stop"]


def test_a_process_without_a_time_is_named():
    assert startup.run_code("pass", os.environ) > 0
    with pytest.raises(ConfigError, match="reported no time"):
        startup.run_code("sys.exit()", os.environ)


def test_the_many_suite_finds_the_programs_of_a_process_before(monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "the user's own")
    found = []

    def fake(command, environment):
        assert environment["OF_THE_USER"] == "1" and "JAX_COMPILATION_CACHE_DIR" not in environment
        programs = Path(environment["XDG_CACHE_HOME"], "jax_cifar/programs")
        way = "--how" in command
        found.append((way, (programs / str(way)).exists()))
        programs.mkdir(exist_ok=True)
        (programs / str(way)).touch()

    monkeypatch.setattr(many, "run_python", fake)
    measure(many, "--runs", "1", "--against", "one by one")
    assert found == [(True, False), (False, False), (True, True), (False, True)]


def test_the_accuracy_suite_trains_every_seed_in_turn(monkeypatch, tmp_path):
    (tmp_path / "small.py").write_text(CONFIG)
    seeds = []
    # By seed: reached at once, reached later and left again, never reached.
    runs = [
        [Epoch(seconds, accuracy) for seconds, accuracy in enumerate(values, 1)]
        for values in [(0.7, 0.7, 0.7), (0.6, 0.8, 0.5), (0.5, 0.6, 0.69)]
    ]

    def train(way, config, seed, environment, fields, each_epoch):
        seeds.append((way, seed))
        assert (config, environment, fields, each_epoch) == (options[1], {}, ["--eval.tta", "none"], True)
        return Training(9.0, runs[seed][-1].accuracy, tuple(runs[seed]))

    monkeypatch.setattr(accuracy, "train", train)
    parser = argparse.ArgumentParser()
    parser.set_defaults(environment={})
    accuracy.add_options(parser)
    options = ["--config", str(tmp_path / "small.py"), "--torch", "torch"]
    (case,) = accuracy.measure(parser.parse_args(options))
    assert seeds == [("jax", 0), ("torch", 0), ("torch", 1), ("jax", 1), ("jax", 2), ("torch", 2)]
    assert case.timings == dict.fromkeys(["jax", "torch"], Timing((1.0, 2.0, math.inf), (Condition(),) * 3))
    assert case.accuracies == dict.fromkeys(["jax", "torch"], (0.7, 0.5, 0.69))
    assert accuracy.table([case]).splitlines()[2:] == [
        "| small, to 0.7 of the test images | 2 s (1-never), 63.00% | 2 s (1-never), 63.00% |",
        "",
        *(f"- {way}, reached after epoch 1, 2, never; means: 60.00%, 70.00%, 63.00%" for way in case.timings),
    ]
    (row,) = as_json("accuracy", [case])["cases"]
    assert row["curves"]["jax"] == ((0.7, 0.7, 0.7), (0.6, 0.8, 0.5), (0.5, 0.6, 0.69)) and row["target"] == 0.7
    for wrong, message in [
        ("--target 0", "--target = 0.0 is"),
        ("--target 70", "--target = 70.0"),
        ("--seeds 0", "--seeds = 0"),
    ]:
        with pytest.raises(ConfigError, match=message):
            next(accuracy.measure(parser.parse_args([*options, *wrong.split()])))
