"""A disk that is full or read-only costs no training: what can wait waits, what cannot be written is told."""

import errno
import time
from types import SimpleNamespace

import pytest
from small_runs import Perceptron, small_config

from jax_cifar.errors import ConfigError
from jax_cifar.run import clock
from jax_cifar.run.load import load_run
from jax_cifar.training import loop, trainer


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_run_whose_last_files_find_no_space_has_lost_no_training_and_says_so_at_the_end(
    tmp_path, monkeypatch, capsys
):
    ended = []
    config = small_config(model=Perceptron(), train={"steps": 1}, schedule={"warmup": 0.0}, log={"plots": True})
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "write_record", full)
        patch.setattr(trainer, "draw_confusion_matrix", full)
        patch.setattr("jax_cifar.telemetry.run_log.os.write", full)
        with pytest.raises(
            ConfigError, match=r"finished and its state is saved, but .* cannot be written: No space left"
        ):
            loop.train(config, tmp_path, callbacks=[SimpleNamespace(on_end=ended.append)])
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("WARNING: ")]
    for name, told in (("metrics.jsonl", 2), ("plots could not be drawn", 1)):
        assert sum(name in line for line in warnings) == told, warnings
    assert (load_run(tmp_path).step, ended[0].summary["steps"]) == (1, 1)


def test_seconds_are_those_that_went_by_though_the_clock_was_set_back(monkeypatch):
    now = {"time": 5000.0, "monotonic": 100.0}
    for name in now:
        monkeypatch.setattr(clock.time, name, lambda name=name: now[name])
    watch = clock.Clock(started=4990.0)
    now["time"], now["monotonic"] = 1000.0, 103.0
    assert watch.report()["total"] == 13.0
    assert clock.Clock(started=4000.0).report()["total"] == 0.0
    monkeypatch.undo()
    assert 0 <= clock.Clock(time.time()).report()["total"] < 5
