"""The benchmarks: how ways are timed in turn, what processes report, what is printed and written."""

import json
import math
import os
import runpy
import sys
from pathlib import Path

import jax
import pytest
import torch

from benchmarks import machine, timing
from benchmarks.machine import Condition
from benchmarks.processes import own_programs, run_python
from benchmarks.tables import as_json, machine_line, markdown
from benchmarks.timing import Case, Timing, Work, in_turn, interleave
from jax_cifar.cli import run
from jax_cifar.errors import ConfigError

SCRIPT = Path(__file__).parents[1] / "scripts" / "benchmark.py"


class Watch:
    """A clock that only fake work moves, and what was done by it."""

    def __init__(self) -> None:
        self.now, self.done = 0.0, []

    def perf_counter(self) -> float:
        return self.now

    def work(self, name: str, *seconds: float) -> Work:
        """The first uses take the seconds given, all later ones the last of them."""

        def work(count: int) -> None:
            self.done.append((name, count))
            for _ in range(count):
                self.now += seconds[min(used[0], len(seconds) - 1)]
                used[0] += 1

        used = [0]
        return work


CALM, BUSY, BUSIER, SLOW = Condition(), Condition(others=0.3), Condition(others=0.6), Condition(slowness=1.5)
APART = Condition(distance=1.8, farther=1.6)


@pytest.fixture(autouse=True)
def machines(monkeypatch):
    """How the machine will be in the rounds to come; calm where nothing is said."""
    conditions = []
    monkeypatch.setattr(machine, "observe", lambda work: (work(), conditions.pop(0) if conditions else CALM))
    return conditions


@pytest.fixture
def watch(monkeypatch):
    watch = Watch()
    monkeypatch.setattr(timing, "time", watch)
    return watch


@pytest.fixture
def main(monkeypatch):
    """The script's `main`, called in this process; what it does to the path is undone."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    return runpy.run_path(str(SCRIPT))["main"]


def test_ways_are_timed_in_turn_forwards_and_backwards(watch):
    ways = {"a": watch.work("a", 100.0, 0.1), "b": watch.work("b", 50.0, 0.25)}
    timings = interleave(ways, rounds=3, seconds=0.5)
    # The first use compiles, the second is looked at, and one before each measurement only warms up.
    warm_up = [("a", 1), ("a", 1), ("b", 1), ("b", 1)]
    a, b = [("a", 1), ("a", 5)], [("b", 1), ("b", 2)]
    assert watch.done == warm_up + a + b + b + a + a + b
    assert timings["a"].seconds == pytest.approx((0.1,) * 3)
    assert timings["b"].seconds == pytest.approx((0.25,) * 3)


def test_long_work_is_warmed_up_and_timed_once_a_round(watch):
    timings = interleave({"a": watch.work("a", 9.0, 2.0, 8.0, 3.0, 8.0, 5.0, 8.0, 4.0)}, rounds=3, seconds=0.5)
    assert watch.done == [("a", 1)] * 8
    assert timings["a"] == Timing((3.0, 5.0, 4.0), (CALM,) * 3)
    assert timings["a"].median == 4.0
    assert timings["a"] / 2 == Timing((1.5, 2.5, 2.0), (CALM,) * 3)


def test_measurements_report_their_own_seconds():
    rounds = []
    ways = {name: lambda i, name=name: rounds.append((name, i)) or float(ord(name) + i) for name in "ab"}
    calm = (CALM, CALM)
    assert in_turn(ways, 2) == {"a": Timing((97.0, 98.0), calm), "b": Timing((98.0, 99.0), calm)}
    assert rounds == [("a", 0), ("b", 0), ("b", 1), ("a", 1)]


@pytest.mark.parametrize(
    ("conditions", "again", "kept"),
    [
        ([BUSY, CALM, SLOW, CALM, CALM], 3, [1, 3, 4]),  # as many calm ones as asked for
        ([CALM, SLOW, CALM, BUSIER, BUSY, CALM], 2, [0, 2, 4]),  # no more than allowed: the least disturbed fills up
        ([BUSY, CALM, SLOW], 0, [0, 1, 2]),  # rounds that are not to be measured again count
        ([BUSIER, BUSY, BUSIER, BUSY, BUSIER, BUSY], 3, [1, 3, 5]),
        ([CALM] * 3, 3, [0, 1, 2]),
    ],
)
def test_disturbed_rounds_are_measured_again(machines, conditions, again, kept):
    machines += conditions
    timing = in_turn({"a": float}, 3, again)["a"]
    assert timing.seconds == tuple(map(float, kept))
    assert timing.conditions == tuple(conditions[i] for i in kept)
    assert timing.given_up == len(conditions) - len(machines) - 3


def test_ratios_are_by_round_and_to_the_best_other_by_median():
    timings = {"jax": Timing((2.0, 4.0, 50.0)), "x": Timing((5.0, 5.0, 5.0)), "y": Timing((4.0, 4.0, 100.0))}
    case = Case("any", timings)
    assert (case.ours, case.best_other) == (timings["jax"], "y")  # whose mean is not the least
    assert case.ratios == (0.5, 1.0, 0.5)
    alone = Case("any", {"jax": Timing((2.0,))})
    assert (alone.best_other, alone.ratios) == (None, ())


def test_there_is_no_ratio_where_a_way_failed_once():
    for ours, other in [((1.0, math.inf), (2.0, 2.0)), ((1.0, 1.0), (2.0, math.inf))]:
        assert Case("any", {"jax": Timing(ours), "torch": Timing(other)}).ratios == ()


NEVER = math.inf
CASES = [
    Case("plain", {"jax": Timing((0.5, 0.25, 0.125)), "torch": Timing((1.0, 1.25, 1.0))}, images=128),
    Case("alone", {"jax": Timing((250.0,))}),
    Case(
        "trained",
        {"jax": Timing((3.0, NEVER, 2.0)), "torch": Timing((NEVER, 5.0, NEVER)), "compiled": Timing((NEVER,))},
        accuracies={"jax": (0.5, 0.25), "torch": (0.125,)},
    ),
]


def test_the_table():
    assert markdown(CASES).splitlines() == [
        "| case | jax | torch | compiled | ratio |",
        "| - | - | - | - | - |",
        "| plain | 250 ms (125-500) | 1 s (1-1.25) |  | **0.20** (0.12-0.50) |",
        "| alone | 250 s (250-250) |  |  |  |",
        "| trained | 3 s (2-never), 37.50% | never (5 s-never), 12.50% | never |  |",
    ]
    assert "ratio" not in markdown(CASES[1:])


def test_the_table_says_what_the_machine_disturbed():
    cases = [
        Case("calm", {"jax": Timing((1.0,), (CALM._replace(gflops=90.0),))}),
        Case("again", {"jax": Timing((1.0,), (CALM._replace(gflops=100.0, others=0.05),), 4)}),
        Case("busy", {"jax": Timing((1.0, 2.0), (SLOW._replace(gflops=50.4), BUSY._replace(gflops=80.0)), 2)}),
        Case("apart", {"jax": Timing((1.0,), (APART._replace(gflops=85.0),))}),
    ]
    assert markdown(cases).splitlines() == [
        "| case | jax | disturbed |",
        "| - | - | - |",
        "| calm | 1 s (1-1) |  |",
        "| again | 1 s (1-1) | 4 measured again |",
        "| busy | 1.5 s (1-2) | **2 of 2 rounds**: others had 30% of the cores, a product took 1.50 of its least,"
        " the cores were 1.00 times as far apart as at their nearest, 2 measured again |",
        "| apart | 1 s (1-1) | **1 of 1 rounds**: others had 0% of the cores, a product took 1.00 of its least,"
        " the cores were 1.60 times as far apart as at their nearest |",
    ]
    assert machine_line(cases) == (
        "Beside the rounds a matrix product ran at 85 GFLOP/s (50-100), others had 0% of the cores (0%-30%), and what"
        " another core had written took 1.00 of the time of one's own (1.00-1.80)."
    )
    assert machine_line(CASES) == ""


def test_the_json_has_all_that_a_figure_rests_on():
    values = json.loads(json.dumps(as_json("any", CASES), allow_nan=False))
    assert values["suite"] == "any"
    assert "cpu" in values["device"] or jax.default_backend() != "cpu"
    assert values["versions"]["jax"] == jax.__version__
    assert values["versions"]["torch"] == torch.__version__
    assert values["argv"] == sys.argv
    assert "commit" in values
    plain, alone, trained = values["cases"]
    nothing = {"mean_accuracy": None, "sd_accuracy": None}
    assert plain == {
        "name": "plain",
        "images": 128,
        "seconds": {"jax": [0.5, 0.25, 0.125], "torch": [1.0, 1.25, 1.0]},
        "median_seconds": {"jax": 0.25, "torch": 1.0},
        "accuracies": {},
        "conditions": [],
        "rounds_given_up": 0,
        "summary": {
            "jax": dict(nothing, n=3, mean_seconds=pytest.approx(0.875 / 3), sd_seconds=pytest.approx(0.19094, 1e-4)),
            "torch": dict(nothing, n=3, mean_seconds=pytest.approx(3.25 / 3), sd_seconds=pytest.approx(0.14434, 1e-4)),
        },
        "best_other": "torch",
        "ratio": 0.2,
        "ratios": [0.5, 0.2, 0.125],
    }
    assert (alone["best_other"], alone["ratio"], alone["ratios"]) == (None, None, [])
    assert trained["seconds"] == {"jax": [3.0, None, 2.0], "torch": [None, 5.0, None], "compiled": [None]}
    assert trained["median_seconds"] == {"jax": 3.0, "torch": None, "compiled": None}
    assert (trained["ratio"], trained["accuracies"]) == (None, {"jax": [0.5, 0.25], "torch": [0.125]})
    never = {"n": 3, "mean_seconds": None, "sd_seconds": None}
    assert trained["summary"]["torch"] == {**never, "mean_accuracy": 0.125, "sd_accuracy": None}


REPORTING = """
import os, sys
from benchmarks.processes import report
print("much else")
report({"path": os.environ["PYTHONPATH"], "where": os.getcwd()})
report(sys.argv[1])
raise SystemExit(sys.argv[2] if sys.argv[2:] else 0)
"""


def test_a_process_reports_among_what_else_it_prints(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    seen, root = [], str(SCRIPT.parents[1])
    reports = run_python(["-c", REPORTING, "last"], os.environ | {"PYTHONPATH": "users"}, seen.append)
    assert reports == seen == [{"path": os.pathsep.join([root, "users"]), "where": str(tmp_path)}, "last"]


def test_programs_of_its_own_and_the_images_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAX_CIFAR_DATA", raising=False)
    users = tmp_path / "jax_cifar"
    environment = {"A": "b", "XDG_CACHE_HOME": str(tmp_path), "JAX_COMPILATION_CACHE_DIR": "theirs"}
    with own_programs(environment) as nothing_decoded:
        assert not list(Path(nothing_decoded["XDG_CACHE_HOME"], "jax_cifar").iterdir())
    for folder in ("decoded", "programs"):
        (users / folder).mkdir(parents=True)
    (users / "decoded/cifar10.npys").touch()
    with own_programs(environment) as kept:
        caches = Path(kept.pop("XDG_CACHE_HOME"))
        assert kept == {"A": "b", "JAX_CIFAR_DATA": str(users)}
        assert [path.name for path in (caches / "jax_cifar").iterdir()] == ["decoded"]
        assert (caches / "jax_cifar/decoded/cifar10.npys").exists()
    assert not caches.exists() and (users / "decoded/cifar10.npys").exists()
    monkeypatch.setenv("JAX_CIFAR_DATA", "elsewhere")
    with own_programs(environment | {"JAX_CIFAR_DATA": "elsewhere"}) as kept:
        assert kept["JAX_CIFAR_DATA"] == "elsewhere"


def test_a_process_that_fails_is_named_with_its_last_words():
    with pytest.raises(ConfigError, match=r"^A process to be timed failed: broken \(-c .* last broken\)$"):
        run_python(["-c", REPORTING.replace("\n", ";").strip(";"), "last", "broken"], os.environ)
    with pytest.raises(ConfigError, match="failed: it said nothing, exit code 3 "):
        run_python(["-c", "raise SystemExit(3)"], os.environ)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "SUITE is missing"),
        ("steps", "invalid choice: 'steps'"),
        ("step --rounds 0", "--rounds 0 is not allowed: it must be at least 1"),
        ("step --rounds many", "invalid int value: 'many'"),
        ("step --json nowhere/step.json", "--json = 'nowhere/step.json' is not allowed"),
        ("step --models alexnet", "invalid choice: 'alexnet'"),
        ("step --batch 0", "train.batch_size = 0 is not allowed"),
        ("step --speed 9", "unrecognized arguments: --speed 9"),
        ("speedrun --rounds 3", "unrecognized arguments: --rounds 3"),  # which has seeds
    ],
)
def test_a_wrong_command_ends_in_one_line(main, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments.split()])
    with pytest.raises(SystemExit) as caught:
        run(main)
    assert caught.value.code == 2
    *planned, line = capsys.readouterr().err.splitlines()
    assert all(told.startswith("step: a train step") for told in planned)
    assert line.startswith("error: ")
    assert message in line


def test_help_says_what_each_suite_is_and_shows_its_options(main, capsys):
    suites = runpy.run_path(str(SCRIPT))["SUITES"]
    main(["--help"])
    printed = capsys.readouterr().out
    assert all(name in printed and meaning in printed for name, meaning in suites.items())
    assert "--batch" not in printed
    main(["step", "--help"])
    assert "--batch" in capsys.readouterr().out
    for suite, default in (("step", 7), ("growth", 3)):
        main([suite, "--help"])
        assert f"times each way is measured (default {default})" in " ".join(capsys.readouterr().out.split())
