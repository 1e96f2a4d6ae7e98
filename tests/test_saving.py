"""A disk that is full for a while, or for good, while a run trains."""

import errno
import os
import shutil

import numpy as np
import pytest
from small_runs import Perceptron, StopAt, loop, same_bits, small_config, with_fields

from jax_cifar.config.spec import InputSpec
from jax_cifar.errors import CheckpointError, ConfigError, Interrupted
from jax_cifar.run import checkpoint
from jax_cifar.run.folder import RunFolder
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


def everything(folder):
    return {str(path.relative_to(folder)): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


class Move:
    """A callback that moves the run folder away at a line of the log, and puts another in its place where there is."""

    def __init__(self, folder, split, step, other=None):
        self._folder, self._at, self._other = folder, (split, step), other

    def on_log(self, record):
        if (record["split"], record["step"]) == self._at:
            self._folder.rename(self._folder.with_name("moved"))
            if self._other is not None:
                shutil.copytree(self._other, self._folder)


@pytest.mark.parametrize(("split", "step"), [("train", 4), ("train", 12), ("test", 12)])
@pytest.mark.parametrize("replaced", [False, True])
def test_a_run_whose_folder_was_moved_or_replaced_writes_nothing_there_and_says_so(
    tmp_path, monkeypatch, split, step, replaced
):
    submit = checkpoint.Checkpoints._submit

    def at_once(self, *arguments):  # a save that is on its way may make the folder anew, as the next test has it
        submit(self, *arguments)
        self._settle(0)

    monkeypatch.setattr(checkpoint.Checkpoints, "_submit", at_once)
    config, folder, other = with_fields(CONFIG, data={"val_fraction": 0.2}), tmp_path / "run", None
    config = with_fields(config, train={"steps": 12}, log={"plots": True})
    if replaced:
        other = tmp_path / "other"
        with RunFolder(config, other, pytest.fail) as place:
            place.make(InputSpec((32, 32, 3), (0.5,) * 3, (0.25,) * 3, None, ("a", "b")), None)
        (other / "metrics.jsonl").write_text("what the other run logs")
    with pytest.raises(ConfigError, match=rf"{folder} was moved, deleted or replaced .* is gone, or of another run\."):
        loop.train(config, folder, callbacks=[Move(folder, split, step, other)])
    assert everything(folder) == (everything(other) if other else {})
    assert folder.exists() is replaced
    result = loop.train(config, tmp_path / "moved")
    assert result.summary["steps"] == 12


def test_a_save_that_is_on_its_way_when_the_folder_goes_makes_none_above(tmp_path, monkeypatch):
    folder, write = tmp_path / "run", checkpoint._write_checkpoint

    def moved_meanwhile(path, save):
        if save.step == 12:
            folder.rename(tmp_path / "moved")
        write(path, save)

    monkeypatch.setattr(checkpoint, "_write_checkpoint", moved_meanwhile)
    with pytest.raises(ConfigError, match="moved, deleted or replaced"):
        loop.train(CONFIG, folder)
    assert not folder.exists()
    with checkpoint.Checkpoints(tmp_path / "nowhere" / "checkpoints", 1) as saves, pytest.raises(CheckpointError):
        saves.save(1, {"weights": np.zeros(2)}, {})
        saves.wait()
    assert not (tmp_path / "nowhere").exists()
