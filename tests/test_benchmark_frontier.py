"""benchmarks/frontier.py: both frameworks train the same recipe, and are told beside one another."""

import argparse
import os
from pathlib import Path

import pytest

from benchmarks import frontier, machine
from benchmarks.frontier_picture import DAWNBENCH, draw
from benchmarks.machine import Condition
from benchmarks.timing import Case, Timing
from jax_cifar.config.files import load_config
from jax_cifar.errors import ConfigError
from jax_cifar.files import write_json, write_record

WAY = "torch channels_last"
SMALL = ("--data.name", "synthetic", "--train.steps", "1")


def options(**fields):
    given = {"recipes": ["plain", "72"], "seeds": 2, "torch": WAY, "picture": None, "environment": {}}
    return argparse.Namespace(**given | fields)


def after(command, option):
    return command[command.index(option) + 1]


def test_every_recipe_is_trained_by_both_with_the_same_seeds_in_a_process_each(monkeypatch, tmp_path):
    trained = []

    def run_python(command, environment):
        ours, seed = "--workdir" in command, int(after(command, "--train.seed"))
        trained.append((after(command, "--config"), seed, ours))
        assert environment["MINE"] == "1" and int(environment["OMP_NUM_THREADS"]) >= 1
        figures = {"seconds": {"train": 20.0 - 10 * ours + seed}, "test_accuracy": 0.5 + seed / 4}
        path = Path(after(command, "--workdir"), "summary.json") if ours else Path(after(command, "--json"))
        (write_record if ours else write_json)(path, figures | {"test_accuracy_tta": None})

    monkeypatch.setattr(machine, "observe", lambda work: (work(), Condition()))
    monkeypatch.setattr(frontier, "run_python", run_python)
    path = tmp_path / "frontier.png"
    plain, fast = frontier.measure(options(picture=path, environment={"MINE": "1"}))
    recipes = [frontier.RECIPES[name] for name in ("plain", "72")]
    assert [plain.name, fast.name] == [load_config(recipe).name for recipe in recipes]
    assert sorted(trained) == sorted((recipe, seed, ours) for recipe in recipes for seed in (0, 1) for ours in (0, 1))
    assert fast.timings["jax"].seconds == (10.0, 11.0) and fast.timings[WAY].seconds == (20.0, 21.0)
    assert fast.accuracies["jax"] == (0.5, 0.75)
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="--seeds = 0 is not allowed"):
        next(frontier.measure(options(seeds=0)))


@pytest.mark.parametrize("by_views", [None, 0.75])
def test_the_figure_of_a_training_is_the_one_that_the_recipe_is_judged_by(by_views, monkeypatch):
    commands = []

    def run_python(command, environment):
        commands.append(command)
        figures = {"seconds": {"train": 3.0}, "test_accuracy": 0.5, "test_accuracy_tta": by_views}
        write_json(Path(after(command, "--json")), figures)

    monkeypatch.setattr(frontier, "run_python", run_python)
    reached = frontier.Final(3.0, by_views or 0.5)
    assert {frontier.train(way, "a.py", 0, {}) for way in frontier.TORCH_OPTIONS} == {reached}
    assert [("--channels-last" in one, "--compile" in one) for one in commands] == [(0, 0), (1, 0), (1, 1)]


@pytest.mark.parametrize("way", ["jax", WAY])
def test_both_commands_know_what_they_are_given(way, monkeypatch):
    """In processes for real; what they write is found where it is looked for."""
    monkeypatch.setattr(frontier, "FIELDS", frontier.FIELDS + SMALL)
    final = frontier.train(way, frontier.RECIPES["plain"], 0, os.environ)
    assert final.seconds > 0 and 0 <= final.accuracy <= 1


def test_the_table_has_both_and_how_far_the_plain_baseline_is():
    plain = load_config(frontier.RECIPES["plain"]).name
    rows = [
        Case(plain, {"jax": Timing((50.0,)), WAY: Timing((100.0,))}, accuracies={"jax": (0.71,), WAY: (0.72,)}),
        Case("fast", {"jax": Timing((4.0,)), WAY: Timing((5.0,))}, accuracies={"jax": (0.73,), WAY: (0.74,)}),
    ]
    *_, first, second = frontier.table(rows).splitlines()
    assert first == f"| {plain} | 1 | 71.00% | 50.0 | 72.00% | 100.0 | **0.50** (0.50-0.50) | 2.0 |"
    assert second == "| fast | 1 | 73.00% | 4.0 | 74.00% | 5.0 | **0.80** (0.80-0.80) | 25.0 |"
    assert "PyTorch over ours" not in frontier.table(rows[1:])


def test_the_picture_has_every_point_and_joins_the_best(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr("benchmarks.frontier_picture.save", lambda figure, path: drawn.append(figure) or path)
    timings = [{"jax": Timing((seconds,)), WAY: Timing((2 * seconds,))} for seconds in (5.0, 90.0, 100.0)]
    accuracies = [{"jax": (value,), WAY: (value,)} for value in (0.72, 0.88, 0.71)]
    pairs = zip(timings, accuracies, strict=True)
    draw([Case("x", one, accuracies=found) for one, found in pairs], tmp_path)
    (axes,) = drawn[0].axes
    lines = {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.lines}
    assert lines["jax_cifar"] == [(5.0, 72.0), (90.0, 88.0), (100.0, 71.0)]
    assert len(lines["DAWNBench, 16 cores"]) == len(DAWNBENCH)
    joined = [list(zip(*line.get_data(), strict=True)) for line in axes.lines if line.get_label().startswith("_")]
    assert joined == [[(5.0, 72.0), (90.0, 88.0)], [(10.0, 72.0), (180.0, 88.0)]]
