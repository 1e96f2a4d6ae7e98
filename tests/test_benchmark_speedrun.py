"""benchmarks/speedrun.py: what is timed, what each process is given, what is printed and written."""

import argparse
import json
import os
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import machine, speedrun, trainings
from benchmarks.machine import Condition
from benchmarks.processes import REPORT
from benchmarks.speedrun import RECIPES, Speedrun
from benchmarks.tables import as_json
from benchmarks.timing import Timing
from benchmarks.trainings import Training
from jax_cifar import load_config
from jax_cifar.errors import ConfigError
from jax_cifar.training import many

SCRIPT = Path(__file__).parents[1] / "scripts" / "benchmark.py"
QUICKSTART = str(SCRIPT.parents[1] / "configs" / "quickstart.py")
TINY = ["--data.name=digits", "--data.subset=40", "--model.width=2", "--train.steps=2"]
USERS = {"PATH": "/bin", "JAX_COMPILATION_CACHE_DIR": "the user's own"}


@pytest.fixture
def main(monkeypatch):
    """The script's `main`, called in this process; what it does to path and environment is undone."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE", raising=False)
    return runpy.run_path(str(SCRIPT))["main"]


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    speedrun.add_options(parser)
    options = parser.parse_args(arguments)
    options.environment = USERS
    return options


def run_of(seed: int, seconds: float, accuracy: float | None) -> dict:
    return {
        "name": "fake",
        "seed": seed,
        "accuracy": accuracy,
        "training": seconds / 2,
        "seconds": seconds,
        "data": 0.5,
    }


class Children:
    """Stand in for the processes: the runs take 2, 3, ... seconds, the one before them 22, and 102 without a cache."""

    def __init__(self, accuracies: dict[int, float | None]) -> None:
        self.jobs, self.caches, self.accuracies = [], [], accuracies

    def __call__(self, job, environment):
        self.jobs.append(job)
        if not job["seeds"]:
            assert environment == USERS
            return [{"name": "fake"}]
        # Not JAX_COMPILATION_CACHE_DIR, with which no whole programs are kept.
        assert environment.keys() == {"PATH", "XDG_CACHE_HOME", "JAX_CIFAR_DATA"}
        folder = Path(environment["XDG_CACHE_HOME"])
        filled = (folder / "program").exists()
        self.caches.append((folder, filled))
        (folder / "program").touch()
        first, *runs = job["seeds"]
        before = run_of(first, 22.0 if filled else 102.0, self.accuracies.get(first, 0.5))
        return [before] + [run_of(seed, 2.0 + seed, self.accuracies[seed]) for seed in runs]


@pytest.fixture
def children(monkeypatch):
    children = Children({0: 0.94, 1: 0.95, 2: 0.96})
    monkeypatch.setattr(speedrun, "run_child", children)
    monkeypatch.setattr(machine, "observe", lambda work: (work(), Condition()))
    return children


def test_a_recipe_is_trained_cold_and_then_from_the_cache(children):
    (case,) = speedrun.measure(parse("--seeds", "3"))
    assert [job["seeds"] for job in children.jobs] == [[], [3], [3, 0, 1, 2]]
    assert all(job["config"] == RECIPES["cifar10-94"].config for job in children.jobs)
    (cold, used_before), (cached, used_by_cold) = children.caches
    assert cold == cached and (used_before, used_by_cold) == (False, True)
    assert not cold.exists()
    assert (case.ours, case.training_seconds) == (Timing((2.0, 3.0, 4.0), (Condition(),)), (1.0, 1.5, 2.0))
    assert case.accuracies == {"run": (0.94, 0.95, 0.96)}
    assert (case.setup_cold, case.setup_cached, case.diverged) == (99.0, 19.0, ())
    assert (case.target, case.ratios) == (0.94, ())


def test_the_cold_process_is_timed_from_start_to_end(children, monkeypatch):
    now = iter([5.0, 125.0])
    monkeypatch.setattr(speedrun, "time", SimpleNamespace(perf_counter=lambda: next(now)))
    (case,) = speedrun.measure(parse("--seeds", "1"))
    assert case.cold_process == 120.0


def test_a_seed_that_diverged_counts_as_nothing_learned(children):
    children.accuracies[1] = None
    (case,) = speedrun.measure(parse("--seeds", "3"))
    assert case.accuracies == {"run": (0.94, 0.0, 0.96)}
    assert (case.diverged, len(case.ours.seconds), case.setup_cached) == ((1,), 3, 19.0)
    assert "fake: diverged with seed 1; accuracy 0" in speedrun.table([case])
    children.accuracies |= {2: 0.9, 3: None}
    (case,) = speedrun.measure(parse("--seeds", "3"))
    assert (case.setup_cold, case.setup_cached) == (None, None)
    assert "no set-up is known" in speedrun.table([case])


def test_recipes_are_judged_in_their_way_and_the_users_fields_come_last(children):
    recipes = ["--recipes", "cifar100-75", "resnet34-published"]
    users = ["--eval.tta", "mirror", "--model.width", "8"]
    cases = list(speedrun.measure(parse("--seeds", "1", *recipes, "--set", *users)))
    assert [(job["tta"], job["overrides"]) for job in children.jobs[:2]] == [("none", users), (None, users)]
    assert [job["seeds"] for job in children.jobs] == [[], [], [1], [1, 0], [1], [1, 0]]  # mistakes are found first
    assert [case.target for case in cases] == [0.75, None]
    children.jobs.clear()
    (case,) = speedrun.measure(parse("--seeds", "1", "--config", "mine.py:big", "--target", "0.5"))
    assert (case.target, children.jobs[0]) == (
        0.5,
        {"config": "mine.py:big", "tta": None, "overrides": [], "seeds": []},
    )


def test_the_baseline_is_compared_with_a_run_and_its_data(children, monkeypatch):
    trained = []

    def train(way, config, seed, environment):
        trained.append((load_config(config).name, seed, way))
        assert environment == USERS
        return Training(70.0 if way == "torch" else 42.0, 0.75, ())

    monkeypatch.setattr(trainings, "train", train)
    (case,) = speedrun.measure(parse("--seeds", "3", "--baseline", "torch", "torch channels_last"))
    assert trained == [("cifar10_simple_cnn", 0, way) for way in ("torch", "torch channels_last")]
    assert case.times_as_fast == 42.0 / (3.0 + 0.5)
    head, _, row = speedrun.table([case]).splitlines()
    assert head.endswith("| cold process | data | PyTorch baseline | times as fast |")
    assert row.endswith("| 0.50 s | 70.0 s and 75.00% (torch), 42.0 s and 75.00% (torch channels_last) | **12.0** |")


def test_every_recipe_is_an_experiment_on_what_its_name_says():
    for name, recipe in RECIPES.items():
        config = load_config(recipe.config, ["--eval.tta", recipe.tta] if recipe.tta else [])
        assert config.data.name == ("cifar10" if name.startswith("cifar10-") else "cifar100")
        assert config.model.name == ("resnet34" if name.startswith("resnet34") else "speedrun_net")
        assert recipe.target is None or name.endswith((f"-{round(100 * recipe.target)}", "-plain", "-mixed"))


def test_the_p_value_is_that_of_a_mean_above_the_target():
    # t = (0.95 - 0.94) / (0.01 / sqrt(3)) = sqrt(3); of two degrees of freedom P(T > t) = (1 - t / sqrt(2 + t**2)) / 2.
    assert speedrun.p_value((0.94, 0.95, 0.96), 0.94) == pytest.approx((1 - (3 / 5) ** 0.5) / 2)
    assert speedrun.p_value((0.94, 0.95, 0.96), 0.96) == pytest.approx((1 + (3 / 5) ** 0.5) / 2)
    assert speedrun.p_value((0.94, 0.95), None) is None
    assert speedrun.p_value((0.95,), 0.94) is speedrun.p_value((0.95, 0.95), 0.94) is None


CASES = [
    Speedrun(
        "fast",
        {"run": Timing((1.0, 1.25))},
        accuracies={"run": (0.94, 0.942)},
        target=0.94,
        p_value=0.25,
        training_seconds=(0.9, 1.1),
        setup_cold=30.0,
        setup_cached=4.04,
        cold_process=33.0,
    ),
    Speedrun("once", {"run": Timing((2.0,))}, accuracies={"run": (0.0,)}, diverged=(0,), cold_process=9.0),
]


def test_the_table():
    assert speedrun.table(CASES).splitlines() == [
        "| recipe | n | test accuracy | target | p | seconds a run | set-up, cold | cached | cold process |",
        "| - | - | - | - | - | - | - | - | - |",
        "| fast | 2 | 94.10% (sd 0.14%) | 0.94 | 0.25 | 1.125 (sd 0.177) | 30.0 s | 4.0 s | 33.0 s |",
        "| once | 1 | 0.00% |  |  | 2.000 | - | - | 9.0 s |",
        "",
        "once: diverged with seed 0; accuracy 0 and the seconds until then count.",
        "",
        "once: no set-up is known, and the first run may have compiled the evaluation.",
    ]


def test_runs_on_a_busy_machine_say_so():
    busy = replace(CASES[0], timings={"run": Timing((1.0, 1.25), (Condition(others=0.5),))})
    *_, last = speedrun.table([busy]).splitlines()
    assert last == (
        "fast: **1 of 1 rounds**: others had 50% of the cores, a product took 1.00 of its least,"
        " the cores were 1.00 times as far apart as at their nearest."
    )


def test_the_json_has_the_recipes_own_figures_and_count_mean_and_spread():
    fast, once = json.loads(json.dumps(as_json("speedrun", CASES), allow_nan=False))["cases"]
    summary = fast["summary"]["run"]
    assert summary == {
        "n": 2,
        "mean_seconds": 1.125,
        "sd_seconds": pytest.approx(0.125 * 2**0.5),
        "mean_accuracy": pytest.approx(0.941),
        "sd_accuracy": pytest.approx(0.001 * 2**0.5),
    }
    assert (fast["target"], fast["p_value"], fast["setup_cold"], fast["ratio"]) == (0.94, 0.25, 30.0, None)
    assert (once["diverged"], once["summary"]["run"]["sd_seconds"]) == ([0], None)


def test_a_runs_seconds_are_from_the_result_before_it(monkeypatch, capsys):
    now, calls = [100.0], []
    monkeypatch.setattr(speedrun, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def fake(configs, how, on_result):
        calls.append((configs[0].eval.tta, [config.train.seed for config in configs], how))
        for config in configs:
            now[0] += 10.0 + config.train.seed
            accuracy = None if config.train.seed == 2 else 0.25
            figures = {"test_accuracy": accuracy, "test_accuracy_tta": accuracy and 0.75}
            on_result(SimpleNamespace(config=config, seconds=1.5, **figures))

    monkeypatch.setattr(many, "train_many", fake)
    for tta in ("none", "mirror"):
        speedrun.main({"config": QUICKSTART, "tta": "mirror", "overrides": ["--eval.tta", tta], "seeds": [3, 0, 2]})
    assert calls == [("none", [3, 0, 2], "sequential"), ("mirror", [3, 0, 2], "sequential")]
    reports = [json.loads(line.removeprefix(REPORT)) for line in capsys.readouterr().out.splitlines()]
    assert [(r["seed"], r["seconds"]) for r in reports] == 2 * [(3, 13.0), (0, 10.0), (2, 12.0)]
    assert [r["accuracy"] for r in reports] == [0.25, 0.25, None, 0.75, 0.75, None]
    assert {(r["name"], r["training"]) for r in reports} == {("quickstart", 1.5)}


@pytest.mark.slow
def test_a_child_trains_its_seeds(quick_compile, monkeypatch, capsys):
    results, train_many = [], many.train_many
    monkeypatch.setattr(many, "train_many", lambda *args, **options: results.extend(train_many(*args, **options)))
    fields = ("train.batch_size=10", "train.compilation_cache=False", "eval.tta=mirror", "schedule.warmup=0")
    overrides = [*TINY, *(f"--{field}" for field in fields)]
    for seeds in ([], [1, 0]):
        speedrun.main({"config": QUICKSTART, "tta": None, "overrides": overrides, "seeds": seeds})
    lines = capsys.readouterr().out.splitlines()
    inspected, *reports = (json.loads(line.removeprefix(REPORT)) for line in lines if line.startswith(REPORT))
    assert inspected == {"name": "quickstart"}
    assert [r["accuracy"] for r in reports] == [result.test_accuracy_tta for result in results]
    assert [r["seed"] for r in reports] == [1, 0]
    assert all(0 < r["training"] < r["seconds"] for r in reports)


def test_a_child_process_reports_or_says_what_stopped_it():
    config, environment = RECIPES["cifar10-94"].config, {**os.environ, "JAX_PLATFORMS": "cpu"}
    tiny = ["--data.name=digits", "--data.subset=40", "--train.steps=2", "--train.batch_size=50"]
    job = {"config": config, "tta": None, "overrides": tiny, "seeds": []}
    with pytest.raises(
        ConfigError, match=r"^train\.batch_size = 50 is larger than the 40 training images: .* 40 is the largest\.$"
    ):
        speedrun.run_child(job, environment)
    with pytest.raises(ConfigError, match=r"A process to be timed failed: KeyError: 'seeds' \(.*mine\.py"):
        speedrun.run_child({"config": "mine.py"}, environment)


def test_jax_is_not_started_beside_the_children():
    code = (
        "import argparse, sys; from benchmarks import speedrun\n"
        "parser = argparse.ArgumentParser(); speedrun.add_options(parser)\n"
        "options = parser.parse_args(['--seeds', '2']); options.environment = {}\n"
        "run = {'name': 'fake', 'training': 1.0, 'seconds': 1.0, 'data': 0.5}\n"
        "runs = [dict(run, seed=seed, accuracy=0.9 + seed / 100) for seed in range(3)]\n"
        "speedrun.run_child = lambda job, _: runs[: len(job['seeds'])] or [run]\n"
        "speedrun.table(list(speedrun.measure(options))); assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=SCRIPT.parents[1])


def test_a_wrong_command_is_refused_before_anything_is_trained(children):
    for arguments, message in (
        ("--seeds 0", "--seeds = 0 is not allowed: it must be at least 1"),
        ("--target 0.9", "--target = 0.9 is not allowed: it belongs to --config"),
        ("--config mine.py --target 94", "--target = 94.0 is not allowed: it must be greater than 0 and at most 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            next(speedrun.measure(parse(*arguments.split())))
    assert not children.jobs


def test_the_script_shares_the_gpu_and_leaves_children_the_users_setting(main, monkeypatch, tmp_path, capsys):
    name, jobs, seen = "XLA_PYTHON_CLIENT_PREALLOCATE", [], []

    def child(job, environment):
        jobs.append(job)
        seen.append((os.environ[name], environment.get(name)))
        return [run_of(seed, 1.0, 0.5) for seed in job["seeds"]] or [{"name": "fake"}]

    monkeypatch.setattr(speedrun, "run_child", child)
    file = tmp_path / "speedrun.json"
    main(["speedrun", "--seeds", "1", "--json", str(file), "--set", "--train.epochs", "1"])
    assert (jobs[0]["tta"], jobs[0]["overrides"]) == ("mirror-translate", ["--train.epochs", "1"])
    assert capsys.readouterr().out.startswith("| recipe | n |")
    (case,) = json.loads(file.read_text())["cases"]
    assert (case["name"], case["summary"]["run"]["n"]) == ("fake", 1)
    os.environ[name] = "true"
    main(["speedrun", "--seeds", "1"])
    assert seen == 3 * [("false", None)] + 3 * [("true", "true")]
