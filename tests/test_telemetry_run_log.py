"""metrics.jsonl and the event files: valid, complete, and after a resume as if the run had never stopped."""

import importlib
import json
import math
import struct
import subprocess
import sys
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

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
    assert [json.loads(line) for line in metrics(tmp_path).splitlines()] == [record(1), record(2), record(4)]
    assert read_metrics(tmp_path) == [record(1), record(2), record(4)]


def test_a_line_is_there_as_soon_as_it_is_written(tmp_path):
    with RunLog(tmp_path, False, None) as log:
        log.write(record(1))
        assert read_metrics(tmp_path) == [record(1)]


def test_numbers_of_numpy_and_jax_become_json_and_what_is_not_finite_null(tmp_path):
    values = {"a": np.float32(0.5), "b": jnp.float32(math.inf), "c": math.nan, "d": np.int64(3), "e": jnp.bfloat16(2)}
    with RunLog(tmp_path, False, None) as log:
        log.write({"step": 1, "split": "train", **values})
    expected = {"step": 1, "split": "train", "a": 0.5, "b": None, "c": None, "d": 3, "e": 2.0}
    assert json.loads(metrics(tmp_path), parse_constant=pytest.fail) == expected


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


def test_a_full_disk_is_told_where_it_happens_and_not_waited_for(tmp_path, monkeypatch):
    def full(_, data):
        raise OSError(28, "No space left on device")

    with RunLog(tmp_path, True, None) as log:
        monkeypatch.setattr("tensorboardX.record_writer.RecordWriter.write", full)
        for step in range(1, 30):
            with pytest.raises(OSError, match="No space left"):
                log.write(record(step))


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
