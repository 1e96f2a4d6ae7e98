"""A disk that is full for a while, or for good, while a run trains."""

import errno
import os

import pytest
from small_runs import Perceptron, StopAt, loop, same_bits, small_config

from jax_cifar.errors import CheckpointError, Interrupted
from jax_cifar.run import checkpoint
from jax_cifar.telemetry import read_metrics
from jax_cifar.training import trainer

CONFIG = small_config(model=Perceptron(), checkpoint={"every": 1 / 3})


def full_until(monkeypatch, step):
    """Saves fail for want of space, until one of so many updates."""
    write = checkpoint._write_checkpoint

    def failing(path, save):
        if save.step < step:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, save)

    monkeypatch.setattr(checkpoint, "_write_checkpoint", failing)


def test_a_disk_that_is_full_for_a_while_costs_no_training(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        full_until(patch, step=8)
        result = loop.train(CONFIG, tmp_path / "full")
    assert {path.name for path in (tmp_path / "full/checkpoints").iterdir()} == {"10", "12"}
    said = " ".join("".join(capsys.readouterr()).split())
    assert said.count("No space left on device") == 2
    assert "could not be saved: No space left on device. Training goes on" in said
    assert "could not be saved on the way: 3 (No space left on device). The last one is saved." in said
    assert same_bits(result.state, loop.train(CONFIG, tmp_path / "room").state)


def test_a_log_stays_while_the_disk_of_its_checkpoints_is_away(tmp_path, monkeypatch):
    folder, disk = tmp_path / "run", tmp_path / "disk"
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "StopRequest", lambda: StopAt(2))
        with pytest.raises(Interrupted):
            loop.train(CONFIG, folder)
    (folder / "checkpoints").rename(disk)
    (folder / "checkpoints").symlink_to(disk)
    disk.rename(tmp_path / "away")
    with pytest.raises(CheckpointError, match=r"which is not there\. Bring it back"):
        loop.train(CONFIG, folder)
    assert not (folder / "metrics.jsonl.unsaved").exists()
    (tmp_path / "away").rename(disk)
    loop.train(CONFIG, folder)
    assert [line["step"] for line in read_metrics(folder) if line["split"] == "train"] == [2, 4, 6, 8, 10, 12]


def test_a_last_checkpoint_that_cannot_be_saved_ends_the_run_with_one_message(tmp_path, monkeypatch, capsys):
    full_until(monkeypatch, step=100)
    with pytest.raises(CheckpointError, match=r"checkpoints/12 could not be saved: No space left on device"):
        loop.train(CONFIG, tmp_path)
    assert not (tmp_path / "summary.json").exists()
    assert "".join(capsys.readouterr()).count("No space left on device") == 1
    monkeypatch.undo()
    assert loop.train(CONFIG, tmp_path).summary["steps"] == 12, "the same command, as the message says"
    assert (tmp_path / "metrics.jsonl.unsaved").exists()
