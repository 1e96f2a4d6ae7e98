"""metrics.jsonl and the event files: valid, complete, and after a resume as if the run had never stopped."""

import errno
import importlib
import json
import math
import os
import struct
import subprocess
import sys
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jax_cifar.errors import ConfigError
from jax_cifar.telemetry import run_log
from jax_cifar.telemetry.run_log import RunLog, read_metrics


def record(step, **fields):
    return {"step": step, "epoch": step / 10, "split": "train", "loss": 1 / step, **fields}


def write(workdir, steps, resume_step=None, tensorboard=False):
    with RunLog(workdir, tensorboard, resume_step) as log:
        for step in steps:
            log.write(record(step))


def metrics(workdir):
    return (workdir / "metrics.jsonl").read_text()


def events(path):
    """The events of one file, by the TFRecord layout: length, its checksum, bytes, their checksum."""
    event_pb2: Any = importlib.import_module("tensorboardX.proto.event_pb2")
    data, found = path.read_bytes(), []
    while data:
        (length,) = struct.unpack_from("<Q", data)
        found.append(event_pb2.Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return found


def scalars(path):
    return [(event.step, value.tag, value.simple_value) for event in events(path) for value in event.summary.value]


def test_one_json_object_per_line(tmp_path):
    write(tmp_path, [1, 2, 4])
    lines = [json.loads(line) for line in metrics(tmp_path).splitlines()]
    assert [line.pop("crc32") > 0 for line in lines] == [True] * 3
    assert lines == [record(1), record(2), record(4)]
    assert read_metrics(tmp_path) == [record(1), record(2), record(4)]


def test_a_line_with_a_flipped_digit_is_no_record_and_one_without_a_sum_is(tmp_path):
    write(tmp_path, [1, 2])
    first, second = metrics(tmp_path).splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text(first.replace('"step": 1', '"step": 3') + second)
    assert read_metrics(tmp_path) == [record(2)]
    (tmp_path / "metrics.jsonl").write_text(json.dumps(record(1)) + "\n" + second)
    assert read_metrics(tmp_path) == [record(1), record(2)]


def test_a_line_is_there_as_soon_as_it_is_written(tmp_path):
    with RunLog(tmp_path, False, None) as log:
        log.write(record(1))
        assert read_metrics(tmp_path) == [record(1)]


def test_numbers_of_numpy_and_jax_become_json_and_what_is_not_finite_null(tmp_path):
    values = {"a": np.float32(0.5), "b": jnp.float32(math.inf), "c": math.nan, "d": np.int64(3), "e": jnp.bfloat16(2)}
    with RunLog(tmp_path, False, None) as log:
        log.write({"step": 1, "split": "train", **values})
    expected = {"step": 1, "split": "train", "a": 0.5, "b": None, "c": None, "d": 3, "e": 2.0}
    found = json.loads(metrics(tmp_path), parse_constant=pytest.fail)
    assert {name: value for name, value in found.items() if name != "crc32"} == expected


def test_resuming_gives_the_file_of_an_uninterrupted_run(tmp_path):
    write(tmp_path / "straight", range(1, 9))
    write(tmp_path / "resumed", range(1, 7))
    write(tmp_path / "resumed", range(5, 9), resume_step=4)
    assert metrics(tmp_path / "resumed") == metrics(tmp_path / "straight")


def test_a_half_written_last_line_is_dropped(tmp_path):
    write(tmp_path, [1, 2])
    whole = metrics(tmp_path)
    for torn in ('{"step": 3, "ep', '{"step": 3}', "\x00\x00\x00\n", "3\n"):
        (tmp_path / "metrics.jsonl").write_text(whole + torn)
        assert read_metrics(tmp_path) == [record(1), record(2)]
        write(tmp_path, [], resume_step=5)
        assert metrics(tmp_path) == whole


def test_without_resuming_the_file_starts_anew(tmp_path):
    write(tmp_path, [1, 2])
    write(tmp_path, [3])
    assert read_metrics(tmp_path) == [record(3)]


def test_a_killed_rewrite_leaves_the_old_file(tmp_path, monkeypatch):
    write(tmp_path, [1, 2])
    (tmp_path / "metrics.jsonl").write_text("what is no record\n" + metrics(tmp_path))
    before = metrics(tmp_path)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        RunLog(tmp_path, False, 1)
    assert metrics(tmp_path) == before


def test_no_file_is_no_record(tmp_path):
    assert read_metrics(tmp_path) == []


def test_tensorboard_scalars_are_named_by_split(tmp_path):
    with RunLog(tmp_path, True, None) as log:
        log.write({"step": 5, "epoch": 0.5, "split": "train", "loss": 1.5, "lr": math.nan})
        log.write({"step": 7, "epoch": 0.7, "split": "test", "accuracy": 0.25, "note": "text"})
    (path,) = (tmp_path / "tensorboard").glob("*tfevents*")
    assert events(path)[0].file_version == "brain.Event:2"
    assert scalars(path) == [(5, "train/loss", 1.5), (7, "test/accuracy", 0.25)]


def test_a_resumed_run_tells_tensorboard_to_forget_what_comes_after_the_checkpoint(tmp_path):
    write(tmp_path, [1, 2, 3], tensorboard=True)
    write(tmp_path, [3], resume_step=2, tensorboard=True)
    first, second = sorted((tmp_path / "tensorboard").iterdir())
    starts = [[event.step for event in events(path) if event.session_log.status] for path in (first, second)]
    assert starts == [[0], [3]]
    assert [step for step, *_ in scalars(second)] == [3]


class Disk:
    """Takes so many bytes of `os.write`, then is full."""

    def __init__(self, monkeypatch, space):
        self.space, self._write = space, os.write
        monkeypatch.setattr(os, "write", self.write)

    def write(self, descriptor, data):
        if data and not self.space:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self._write(descriptor, data[: self.space])
        self.space -= written
        return written


def test_lines_that_find_no_space_are_written_when_there_is_some_again(tmp_path, monkeypatch):
    told = []
    with RunLog(tmp_path, False, None, warn=told.append) as log:
        log.write(record(1))
        disk = Disk(monkeypatch, space=20)
        for step in (2, 3, 4):
            log.write(record(step))
        assert read_metrics(tmp_path) == [record(1)]
        disk.space = 1000
        log.write(record(5))
        assert read_metrics(tmp_path) == [record(step) for step in range(1, 6)]
    assert told == [
        f"{tmp_path / 'metrics.jsonl'} cannot be written: No space left on device. Training goes on; it is tried again."
    ]


def test_lines_that_never_find_space_are_told_again_at_the_end(tmp_path, monkeypatch):
    told = []
    with monkeypatch.context() as patch, RunLog(tmp_path, False, None, warn=told.append) as log:
        Disk(patch, space=20)
        for step in (1, 2):
            log.write(record(step))
        assert len(told) == 1
    assert told[1:] == [
        f"{tmp_path / 'metrics.jsonl'} lacks its last 2 lines, which could not be written: No space left on device."
    ]
    # What stands there is the beginning of what should: a later process mends it.
    write(tmp_path, [1, 2], resume_step=0)
    assert read_metrics(tmp_path) == [record(1), record(2)]


def test_a_full_disk_ends_tensorboard_and_nothing_else(tmp_path, monkeypatch):
    def full(_, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    told = []
    with RunLog(tmp_path, True, None, warn=told.append) as log:
        log.write(record(1))
        with monkeypatch.context() as patch:
            patch.setattr("tensorboardX.record_writer.RecordWriter.write", full)
            for step in (2, 3):
                log.write(record(step))
        log.write(record(4))
    folder = tmp_path / "tensorboard"
    assert told == [
        f"{folder} cannot be written: No space left on device. Training goes on without it.",
        f"{folder} is not whole: it could not be written, No space left on device.",
    ]
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4]
    assert [step for step, *_ in scalars(*folder.iterdir())] == [1]


def test_a_folder_where_no_events_can_be_written_is_a_warning(tmp_path):
    (tmp_path / "tensorboard").write_text("a file")
    told = []
    with RunLog(tmp_path, True, None, warn=told.append) as log:
        log.write(record(1))
    assert read_metrics(tmp_path) == [record(1)]
    assert len(told) == 2 and "tensorboard cannot be written" in told[0]


def test_what_is_no_record_is_dropped_and_said(tmp_path):
    write(tmp_path, [1, 2])
    path, told = tmp_path / "metrics.jsonl", []
    whole = path.read_bytes()
    deep = b"[" * 100_000 + b"\n"
    path.write_bytes(b"\xff\x00garbage\n" + deep + whole + b'{"step": "3"}\n{"step": 3, "ep')
    with RunLog(tmp_path, False, 5, warn=told.append):
        pass
    assert path.read_bytes() == whole
    assert told == [f"{path}: 4 of its 6 lines were no whole records, and are dropped."]


def test_lines_after_the_checkpoint_are_dropped_and_said(tmp_path):
    write(tmp_path, [1, 2, 3])
    said = []
    with RunLog(tmp_path, False, 1, say=said.append, warn=pytest.fail):
        pass
    assert said == ["metrics.jsonl: 2 lines after step 1, from where the run goes on, are dropped"]
    assert read_metrics(tmp_path) == [record(1)]


def test_a_log_that_cannot_be_read_is_one_message(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(ConfigError, match=r"metrics\.jsonl cannot be read or written: Is a directory"):
        RunLog(tmp_path, False, 1)


def test_event_files_are_in_order_though_the_clock_was_set_back(tmp_path, monkeypatch):
    for now in (2000.0, 1000.0, 3000.0):
        monkeypatch.setattr(run_log.time, "time", lambda now=now: now)
        write(tmp_path, [1], tensorboard=True, resume_step=int(now))
    starts = [
        next(event.step for event in events(path) if event.session_log.status)
        for path in sorted((tmp_path / "tensorboard").iterdir())
    ]
    assert starts == [2001, 1001, 3001]


def test_tensorboard_off_makes_no_folder(tmp_path):
    write(tmp_path, [1])
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


IMPORTS = """
import sys
from pathlib import Path
import jax_cifar.telemetry
lazy = {"rich", "tensorboardX", "matplotlib", "sklearn", "jax"} & set(sys.modules)
assert not lazy, lazy
from jax_cifar.telemetry import RunLog
with RunLog(Path(sys.argv[1]), True, None) as log:
    log.write({"step": 1, "split": "train", "loss": 1.0})
assert "tensorboardX" in sys.modules
assert "torch" not in sys.modules
import torch
assert torch.imported
"""


def test_neither_telemetry_nor_tensorboard_imports_what_is_slow(tmp_path, monkeypatch):
    package = tmp_path / "path" / "torch"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("imported, Tensor = True, object\n")
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    command = [sys.executable, "-c", IMPORTS, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
