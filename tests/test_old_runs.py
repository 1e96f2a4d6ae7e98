"""Run folders of earlier versions, kept as they were written: they load, evaluate and resume.

format_1: a checkpoint before its manifest had a format number, saved after 10 of 12 steps; a config.json without the
fields that came since, and no network.json.
format_2 and later: made by old_runs/make.py, with what the version that made them went on to compute. On the machine
and with the JAX that made them the bits are compared, elsewhere the figures.
"""

import dataclasses
import json
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
import strictness
from old_runs import make
from small_runs import small_config

from jax_cifar.augment import RandomCrop
from jax_cifar.config import Config
from jax_cifar.data import load_data
from jax_cifar.errors import CheckpointError
from jax_cifar.run.load import load_run
from jax_cifar.run.manifest import FORMAT
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


@pytest.mark.slow
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


@pytest.fixture
def compiled_as_recorded(monkeypatch):
    """`old_runs/make.py` compiles without `strictness.OLDER_EMITTERS`."""
    jax.clear_caches()
    with monkeypatch.context() as patched:
        patched.setattr(strictness, "quicker", dict)
        yield
    jax.clear_caches()


# The newest stands for those between it and the first.
STORED = sorted(path.stem for path in FOLDER.glob("*.zip") if path.stem != "format_1")


@pytest.mark.parametrize("name", [*(pytest.param(name, marks=pytest.mark.slow) for name in STORED[:-1]), STORED[-1]])
@pytest.mark.usefixtures("compiled_as_recorded")
def test_a_stored_run_is_evaluated_and_resumed_as_it_was_recorded(name, tmp_path, capsys):
    zipfile.ZipFile(FOLDER / f"{name}.zip").extractall(tmp_path)
    expected = json.loads((tmp_path / make.EXPECTED).read_text())
    run = load_run(tmp_path)
    assert run.step == make.STOP
    best = max(line["accuracy"] for line in read_metrics(tmp_path) if line["split"] == "validation")
    assert load_run(tmp_path, "best").evaluate("val").accuracy == pytest.approx(best, abs=0.01)
    logits = run.logits(load_data(run.config.data).test.images[: make.SHOWN])
    summary = train(run.config, tmp_path).summary
    assert read_metrics(tmp_path)[-1]["step"] == summary["steps"] == make.STEPS
    assert "numbers will differ" not in capsys.readouterr().out or make.machine() != expected["machine"]
    if make.machine() == expected["machine"]:
        assert np.array_equal(logits, np.array(expected["logits"], np.float32))
        assert make.digests(tmp_path) == expected["final"]
    np.testing.assert_allclose(logits, np.array(expected["logits"], np.float32), atol=1e-3)
    assert summary["test_loss"] == pytest.approx(expected["test_loss"], abs=2e-3)
    assert not list(tmp_path.rglob("*.damaged*"))


def test_every_format_of_a_checkpoint_has_a_stored_run():
    assert {path.stem for path in FOLDER.glob("*.zip")} == {f"format_{number}" for number in range(1, FORMAT + 1)}
