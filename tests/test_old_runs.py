"""Run folders of earlier versions, kept as they were written: they load, evaluate and resume.

format_1: a checkpoint before its manifest had a format number, saved after 10 of 12 steps; a config.json without the
fields that came since, and no network.json.
"""

import dataclasses
import json
import zipfile
from pathlib import Path

import pytest
from small_runs import small_config

from jax_cifar.augment import RandomCrop
from jax_cifar.config import Config
from jax_cifar.errors import CheckpointError
from jax_cifar.run.load import load_run
from jax_cifar.telemetry import read_metrics
from jax_cifar.training import loop
from jax_cifar.training.loop import train

FOLDER = Path(__file__).parent / "old_runs"


@pytest.fixture
def old(tmp_path):
    zipfile.ZipFile(FOLDER / "format_1.zip").extractall(tmp_path)
    return tmp_path


def old_config() -> Config:
    """What that run was begun with, in the words of today."""
    optim = {"ema_decay": 0.9, "ema_warmup": False, "clip_norm": 1.0, "weight_decay": 1e-3, "lookahead_every": 4}
    config = small_config(model={"width": 2, "dropout": 0.0}, optim=optim, data={"val_fraction": 0.1})
    return dataclasses.replace(config, name="before_rooms", augment=(RandomCrop(padding=2),))


def test_an_old_run_is_evaluated(old):
    assert not (old / "network.json").exists()
    run = load_run(old)
    assert (run.step, run.config) == (10, old_config())
    assert run.evaluate("test").count == 500
    best = load_run(old, "best")
    recorded = [line for line in read_metrics(old) if line["split"] == "validation"]
    assert best.step == 6
    assert best.evaluate("val").loss == pytest.approx(recorded[0]["loss"], rel=1e-4)


def test_an_old_run_is_resumed_as_if_it_had_never_been_stopped(old):
    summary = train(old_config(), old).summary
    assert read_metrics(old)[-1]["step"] == summary["steps"] == 12
    # What the version that began it made of it without a stop.
    assert summary["test_loss"] == pytest.approx(2.26444, abs=2e-3)
    assert json.loads((old / "network.json").read_text())["image_shape"] == [32, 32, 3]


def test_an_old_run_whose_optimizer_is_read_by_todays_paths_does_not_fit(old, monkeypatch):
    monkeypatch.setattr(loop, "former_path", lambda path: path)
    with pytest.raises(CheckpointError, match="belongs to another configuration"):
        train(old_config(), old)
