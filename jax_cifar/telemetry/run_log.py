"""The figures of a run on disk: JSON lines, and TensorBoard scalars beside them."""

import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from jax_cifar.files import write_text

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_DIR = "tensorboard"
# Every flush of an event file is an fsync; the JSON lines are the record, these are for looking at now and then.
FLUSH_SECONDS = 5.0
NOT_SCALARS = ("step", "epoch")


class RunLog:
    """Writes every record to `metrics.jsonl` and its numbers to TensorBoard. Use it as a context manager.

    Each line is on its way to the disk before `write` returns, so that a killed run loses none.

    Args:
      workdir: run folder; made if it is not there.
      tensorboard: also write event files to `tensorboard/`.
      resume_step: None starts the file anew. On resuming from a checkpoint, its step: what an earlier process logged
        after it is dropped, so that the file ends up with the lines of a run that was never stopped.
      row_due: the evaluation of that very step is still to come, and a line that an earlier process made of it goes.
    """

    def __init__(self, workdir: Path, tensorboard: bool, resume_step: int | None, row_due: bool = False) -> None:
        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / METRICS_FILE
        lines = [] if resume_step is None else _lines_until(path, resume_step, row_due)
        write_text(path, "".join(lines))
        self._file = path.open("a", encoding="utf-8")
        next_step = 0 if resume_step is None else resume_step + 1
        self._events = _EventFile(workdir / TENSORBOARD_DIR, next_step) if tensorboard else None

    def write(self, record: Mapping[str, Any]) -> None:
        """Log one record, a flat mapping with at least `step` and `split`; a NaN or infinity is written as null."""
        plain = {name: _plain(value) for name, value in record.items()}
        self._file.write(json.dumps(plain, allow_nan=False) + "\n")
        self._file.flush()
        if self._events is not None:
            self._events.write(plain["step"], _scalars(plain))

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._events is not None:
            self._events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The records of `metrics.jsonl`, oldest first; none if there is no file. A half-written line is left out."""
    path = workdir / METRICS_FILE
    if not path.exists():
        return []
    return [record for _, record in _parsed_lines(path)]


def _parsed_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(record, dict) and "step" in record and line.endswith("\n"):
                yield line, record


def _lines_until(path: Path, step: int, row_due: bool) -> list[str]:
    if not path.exists():
        return []

    def stays(record: Mapping[str, Any]) -> bool:
        return record["step"] < step or (record["step"] == step and not (row_due and record.get("split") != "train"))

    return [line for line, record in _parsed_lines(path) if stays(record)]


def _plain(value: Any) -> Any:
    """A JSON value: scalars of NumPy and JAX become Python's, what is not finite becomes None."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _scalars(record: Mapping[str, Any]) -> dict[str, float]:
    return {
        f"{record['split']}/{name}": float(value)
        for name, value in record.items()
        if name not in NOT_SCALARS and isinstance(value, int | float)
    }


class _EventFile:
    """One TensorBoard event file, written in this thread through tensorboardX's record writer.

    Not its SummaryWriter: that writes in a thread of its own, which a full disk ends, and training then waits for it
    forever; and of two that begin in the same second, the second overwrites the first.
    """

    def __init__(self, directory: Path, next_step: int) -> None:
        with _torch_hidden():
            from tensorboardX.proto import event_pb2, summary_pb2
            from tensorboardX.record_writer import RecordWriter

        # Protocol buffers make their classes while they are imported, out of a type checker's sight.
        events: Any = event_pb2
        summaries: Any = summary_pb2
        self._event, self._summary = events.Event, summaries.Summary
        directory.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files in the order of their names; the process id keeps two of one second apart.
        self._writer = RecordWriter(str(directory / f"events.out.tfevents.{time.time():.6f}.{os.getpid()}"))
        self._flushed = time.monotonic()
        self._append(file_version="brain.Event:2")
        # A start event makes TensorBoard forget what earlier files hold from this step on.
        start = events.SessionLog(status=events.SessionLog.START)
        self._append(step=next_step, session_log=start)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._append(step=step, summary=self._summary(value=values))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        self._writer.flush()
        self._writer.close()

    def _append(self, **fields: Any) -> None:
        self._writer.write(self._event(wall_time=time.time(), **fields).SerializeToString())


@contextmanager
def _torch_hidden() -> Iterator[None]:
    """Make `import torch` fail inside: tensorboardX tries it, which costs seconds and may open a CUDA context."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        del sys.modules["torch"]
