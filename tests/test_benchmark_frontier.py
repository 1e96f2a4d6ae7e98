"""benchmarks/frontier.py: both frameworks train the same recipe, and are told beside one another."""

import argparse
import itertools

import pytest

from benchmarks import frontier, machine
from benchmarks.frontier_picture import DAWNBENCH, draw
from benchmarks.machine import Condition
from benchmarks.timing import Case, Timing
from benchmarks.trainings import Training
from jax_cifar.config.files import load_config
from jax_cifar.errors import ConfigError

WAY = "torch channels_last"


def options(**fields):
    given = {"recipes": ["plain", "72"], "seeds": 2, "torch": WAY, "picture": None, "environment": {}}
    return argparse.Namespace(**given | fields)


def test_every_recipe_is_trained_by_both_with_the_same_seeds(monkeypatch, tmp_path):
    trained = []

    def train(way, recipe, seed, environment):
        trained.append((recipe, seed, way))
        assert environment == {"MINE": "1"}
        return Training(20.0 - 10 * (way == "jax") + seed, 0.5 + seed / 4, ())

    monkeypatch.setattr(machine, "observe", lambda work: (work(), Condition()))
    monkeypatch.setattr(frontier, "train", train)
    path = tmp_path / "frontier.png"
    plain, fast = frontier.measure(options(picture=path, environment={"MINE": "1"}))
    recipes = [frontier.RECIPES[name] for name in ("plain", "72")]
    assert [plain.name, fast.name] == [load_config(recipe).name for recipe in recipes]
    assert sorted(trained) == sorted(itertools.product(recipes, (0, 1), ("jax", WAY)))
    assert fast.timings["jax"].seconds == (10.0, 11.0) and fast.timings[WAY].seconds == (20.0, 21.0)
    assert fast.accuracies["jax"] == (0.5, 0.75)
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="--seeds = 0 is not allowed"):
        next(frontier.measure(options(seeds=0)))


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
