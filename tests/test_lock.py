"""The lock of a run folder where files cannot be locked, and where the file itself comes and goes."""

import fcntl
import shutil
from pathlib import Path

import pytest

from jax_cifar.errors import ConfigError
from jax_cifar.run.lock import LOCK, RunLock


def test_a_folder_without_locks_is_a_warning_and_no_hindrance(tmp_path, monkeypatch):
    told = []

    def flock(descriptor, how):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    with RunLock(tmp_path, "runs/x", told.append):
        pass
    assert told == ["runs/x lies where files cannot be locked: see to it that no other process writes there"]


def test_the_lock_of_a_file_that_was_removed_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    flock, calls = fcntl.flock, []

    def removed_by_its_last_holder(descriptor, how):
        if not calls:
            (tmp_path / LOCK).unlink()
        calls.append(descriptor)
        flock(descriptor, how)

    monkeypatch.setattr("fcntl.flock", removed_by_its_last_holder)
    with RunLock(tmp_path, "", pytest.fail):
        assert len(calls) == 2
        with pytest.raises(ConfigError, match="in use"):
            RunLock(tmp_path, "", pytest.fail).__enter__()


def test_the_end_of_a_run_whose_folder_went_away_leaves_the_lock_of_the_next_alone(tmp_path):
    with RunLock(tmp_path, "", pytest.fail):
        (tmp_path / LOCK).unlink()
        after = RunLock(tmp_path, "", pytest.fail).__enter__()
    assert (tmp_path / LOCK).exists()
    after.__exit__()


def test_a_lock_knows_whether_its_folder_was_moved_away_or_replaced(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with RunLock(folder, "", pytest.fail) as lock:
        assert lock.is_held()
        folder.rename(tmp_path / "moved")
        assert not lock.is_held()
        folder.mkdir()
        assert not lock.is_held()
        with RunLock(folder, "", pytest.fail) as other:
            assert other.is_held() and not lock.is_held()
        shutil.rmtree(folder)
        (tmp_path / "moved").rename(folder)
        assert lock.is_held()


@pytest.mark.parametrize("has_locks", [True, False])
def test_a_folder_that_cannot_be_looked_at_or_has_no_locks_is_not_taken_for_another(tmp_path, monkeypatch, has_locks):
    if not has_locks:
        monkeypatch.setattr("jax_cifar.files.fcntl", None)
    with RunLock(tmp_path, "", lambda _: None) as lock:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "lstat", lambda _: (_ for _ in ()).throw(OSError(5, "Input/output error")))
            assert lock.is_held()
        (tmp_path / LOCK).unlink()
        assert lock.is_held() is not has_locks
