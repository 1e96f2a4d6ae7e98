"""benchmarks/trainings.py: both frameworks' commands are given the same, and what they write is found."""

import json
import os
from pathlib import Path

import pytest

from benchmarks import trainings
from benchmarks.networks import TORCH_WAYS
from benchmarks.trainings import JAX, TORCH_OPTIONS, Epoch, train
from jax_cifar.errors import ConfigError
from jax_cifar.files import write_json, write_record

QUICKSTART = str(Path(__file__).parents[1] / "configs" / "quickstart.py")
SMALL = ["--data.name", "synthetic", "--data.subset", "200", "--train.batch_size", "50", "--train.epochs", "2"]
SMALL += ["--eval.tta", "mirror"]


def after(command, option):
    return command[command.index(option) + 1]


class Commands:
    """Stand in for the processes: keep what they are given, and write what they would."""

    def __init__(self, by_views=None):
        self.given, self.by_views = [], by_views

    def __call__(self, command, environment):
        self.given.append((command, environment))
        figures = {"config_name": "a", "seconds": {"train": 3.0}, "test_accuracy": 0.5}
        figures["test_accuracy_tta"] = self.by_views
        if "--json" in command:
            write_json(Path(after(command, "--json")), figures | {"epochs": [{"seconds": 3.0, "accuracy": 0.5}]})
            return
        folder = Path(after(command, "--workdir"))
        write_record(folder / "summary.json", figures)
        line = {"step": 1, "split": "test", "seconds": 3.0, "accuracy": 0.5}
        (folder / "metrics.jsonl").write_text(f"{json.dumps(line)}\n{json.dumps(line | {'split': 'train'})}\n")


@pytest.fixture
def commands(monkeypatch):
    commands = Commands()
    monkeypatch.setattr(trainings, "run_python", commands)
    return commands


def test_both_frameworks_are_given_the_same_seed_fields_and_cores(commands, capsys):
    for way in (JAX, *TORCH_OPTIONS):
        train(way, "a.py", 7, {"MINE": "1"}, fields=["--eval.tta", "none"])
        assert capsys.readouterr().err == f"a, seed 7, {way}: 50.00%, 3.0 s\n"
    names = "--config", "--train.seed", "--data.val_fraction", "--eval.tta"
    for command, environment in commands.given:
        assert [after(command, name) for name in names] == ["a.py", "7", "0", "none"]
        assert environment["MINE"] == "1" and int(environment["OMP_NUM_THREADS"]) >= 1
    _, *torch = [command for command, _ in commands.given]
    assert [("--channels-last" in one, "--compile" in one) for one in torch] == [(0, 0), (1, 0), (1, 1)]
    assert set(TORCH_OPTIONS) == set(TORCH_WAYS)


@pytest.mark.parametrize("by_views", [None, 0.75])
@pytest.mark.parametrize("way", [JAX, "torch"])
def test_the_accuracy_of_a_training_is_the_one_that_its_config_evaluates_by(way, by_views, commands):
    commands.by_views = by_views
    assert train(way, "a.py", 0, {}) == (3.0, by_views or 0.5, ())
    assert train(way, "a.py", 0, {}, each_epoch=True).epochs == (Epoch(3.0, 0.5),)


@pytest.mark.parametrize("way", [JAX, "torch channels_last"])
def test_the_commands_know_what_they_are_given(way):
    """In processes for real: two epochs, evaluated after each, judged by two views of an image."""
    training = train(way, QUICKSTART, 0, os.environ, fields=SMALL, each_epoch=True)
    first, last = training.epochs
    assert 0 < first.seconds < last.seconds == pytest.approx(training.seconds, abs=1e-3)  # ours are rounded to that
    assert all(0 <= accuracy <= 1 for accuracy in (first.accuracy, last.accuracy, training.accuracy))


def test_a_training_that_fails_says_why():
    with pytest.raises(ConfigError, match=r"train\.batch_size = 99999"):
        train("torch", QUICKSTART, 0, os.environ, fields=["--train.batch_size", "99999"])
