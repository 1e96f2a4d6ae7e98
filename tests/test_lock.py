"""The lock of a run folder where files cannot be locked, and where the file itself comes and goes."""

import fcntl

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
