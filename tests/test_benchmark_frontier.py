"""benchmarks/frontier.py: both frameworks train the same recipe, and are told beside one another."""

import argparse
import dataclasses
from types import SimpleNamespace

import pytest
from small_runs import small_config

from benchmarks import accuracy, frontier, machine
from benchmarks.frontier_picture import DAWNBENCH, draw
from benchmarks.machine import Condition
from benchmarks.timing import Case, Timing
from jax_cifar.config import EvalConfig
from jax_cifar.config.files import load_config
from jax_cifar.errors import ConfigError

WAY = "torch channels_last"


def options(**fields):
    return argparse.Namespace(**{"recipes": ["plain", "72"], "seeds": 2, "torch": WAY, "picture": None, **fields})


def test_every_recipe_is_trained_by_both_with_the_same_seeds(monkeypatch, tmp_path):
    trained = []

    def final(config, way="jax"):
        trained.append((config.name, config.train.seed, way))
        return frontier.Final(10.0 * (1 + (way != "jax")) + config.train.seed, 0.5 + config.train.seed / 4)

    monkeypatch.setattr(machine, "observe", lambda work: (work(), Condition()))
    monkeypatch.setattr(frontier, "in_jax", final)
    monkeypatch.setattr(frontier, "in_torch", final)
    path = tmp_path / "frontier.png"
    plain, fast = frontier.measure(options(picture=path))
    names = [load_config(frontier.RECIPES[name]).name for name in ("plain", "72")]
    assert [plain.name, fast.name] == names
    assert sorted(trained) == sorted((name, seed, way) for name in names for seed in (0, 1) for way in ("jax", WAY))
    assert fast.timings["jax"].seconds == (10.0, 11.0) and fast.timings[WAY].seconds == (20.0, 21.0)
    assert fast.accuracies["jax"] == (0.5, 0.75)
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="--seeds = 0 is not allowed"):
        next(frontier.measure(options(seeds=0)))


def test_a_recipe_is_judged_as_it_says_and_only_at_its_end():
    for name in ("88", "90", "94"):
        recipe = load_config(frontier.RECIPES[name])
        config = frontier.judged(recipe)
        assert (config.eval.tta, config.eval.every) == (recipe.eval.tta, 0.0)
        assert config.train.resolutions == recipe.train.resolutions


@pytest.mark.parametrize(("tta", "reached"), [("none", 0.5), ("mirror", 0.75)])
def test_the_figure_of_a_training_is_the_one_that_the_recipe_is_judged_by(tta, reached, monkeypatch):
    summary = {"seconds": {"train": 3.0}, "test_accuracy": 0.5, "test_accuracy_tta": 0.75}
    config = dataclasses.replace(small_config(), eval=EvalConfig(every=0.0, tta=tta))
    monkeypatch.setattr(frontier, "train_jax", lambda *given: SimpleNamespace(summary=summary))
    assert frontier.in_jax(config) == frontier.Final(3.0, reached)
    given = []

    def in_torch(config, **options):
        given.append(options)
        views = None if config.eval.tta == "none" else 0.75
        return SimpleNamespace(seconds={"train": 3.0}, test_accuracy=0.5, test_accuracy_tta=views)

    monkeypatch.setattr(accuracy.torch_train, "train", in_torch)
    assert {frontier.in_torch(config, way) for way in frontier.TORCH_WAYS} == {frontier.Final(3.0, reached)}
    assert [tuple(one.values()) for one in given] == [(False, False), (True, False), (True, True)]


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
