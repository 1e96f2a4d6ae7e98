"""The figures of a run on disk: JSON lines, and TensorBoard scalars beside them."""

import contextlib
import json
import math
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from jax_cifar.errors import ConfigError
from jax_cifar.files import atomic_write, to_disk

METRICS_FILE = "metrics.jsonl"
CHECKSUM = "crc32"  # of the rest of a line; lines of earlier versions have none
TENSORBOARD_DIR = "tensorboard"
# Every flush of an event file is an fsync; the JSON lines are the record, these are for looking at now and then.
FLUSH_SECONDS = 5.0
NOT_SCALARS = ("step", "epoch")


class RunLog:
    """Writes every record to `metrics.jsonl` and its numbers to TensorBoard. Use it as a context manager.

    Each line is on its way to the disk before `write` returns, so that a killed run loses none. Where it cannot be
    written that is a warning, once, and again at the end, and no reason to stop: the line is tried again with the next,
    so that the file is whole if space comes back.

    Args:
      workdir: run folder; made if it is not there.
      tensorboard: also write event files to `tensorboard/`.
      resume_step: None starts the file anew. On resuming from a checkpoint, its step: what an earlier process logged
        after it is dropped, so that the file ends up with the lines of a run that was never stopped.
      row_due: the evaluation of that very step is still to come, and a line that an earlier process made of it goes.
      say: receives a line where lines of an earlier process were dropped.
      warn: receives a line where something cannot be written, or the file held something else than records.

    Raises:
      ConfigError: what the file holds cannot be read or mended.
    """

    def __init__(
        self,
        workdir: Path,
        tensorboard: bool,
        resume_step: int | None,
        row_due: bool = False,
        *,
        say: Callable[[str], None] = print,
        warn: Callable[[str], None] = print,
    ) -> None:
        self._path, self._say, self._warn = workdir / METRICS_FILE, say, warn
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            self._mend(-1 if resume_step is None else resume_step, row_due)
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError as error:
            raise ConfigError(f"{self._path} cannot be read or written: {error.strerror}. See to that first.") from None
        self._waiting = b""  # what is still to be written
        self._failed: str | None = None
        next_step = 0 if resume_step is None else resume_step + 1
        self._events = _EventFile(workdir / TENSORBOARD_DIR, next_step, warn) if tensorboard else None

    def write(self, record: Mapping[str, Any]) -> None:
        """Log one record, a flat mapping with at least `step` and `split`; a NaN or infinity is written as null."""
        plain = {name: _plain(value) for name, value in record.items()}
        self._waiting += json.dumps({**plain, CHECKSUM: _checksum(plain)}, allow_nan=False).encode() + b"\n"
        self._write_waiting()
        if self._events is not None:
            self._events.write(plain["step"], _scalars(plain))

    def close(self) -> None:
        """Close the files; say what could not be written."""
        self._write_waiting()
        with contextlib.suppress(OSError):
            os.close(self._file)
        if self._waiting:
            lost = self._waiting.count(b"\n")
            self._warn(f"{self._path} lacks its last {lost:,} lines, which could not be written: {self._failed}.")
        if self._events is not None:
            self._events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _write_waiting(self) -> None:
        """Write as much as there is space for: what the file holds is always the beginning of what it should hold."""
        try:
            while self._waiting:
                written = os.write(self._file, self._waiting)
                self._waiting = self._waiting[written:]
        except OSError as error:
            if self._failed is None:
                self._warn(f"{self._path} cannot be written: {error.strerror}. Training goes on; it is tried again.")
            self._failed = error.strerror

    def _mend(self, step: int, row_due: bool) -> None:
        """Drop what are no records, those after `step`, and an evaluation of it that is still to come; say so."""
        content = self._path.read_bytes() if self._path.exists() else b""
        lines = content.splitlines(keepends=True)
        records = [(line, record) for line in lines if (record := _parsed(line)) is not None]
        last = step - 1 if row_due else step  # of evaluations
        kept = [
            line for line, record in records if record["step"] <= (step if record.get("split") == "train" else last)
        ]
        if len(records) < len(lines):
            strange = len(lines) - len(records)
            self._warn(f"{self._path}: {strange:,} of its {len(lines):,} lines were no whole records, and are dropped.")
        if len(kept) < len(records):
            dropped = len(records) - len(kept)
            since = "of an earlier start" if step < 0 else f"after step {step:,}, from where the run goes on,"
            self._say(f"{self._path.name}: {dropped:,} lines {since} are dropped")
        whole = b"".join(kept)
        if content.startswith(whole):
            if len(whole) < len(content):
                os.truncate(self._path, len(whole))  # needs no space, unlike a copy
        else:
            with atomic_write(self._path) as file:
                file.write(whole)
                to_disk(file)


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The records of `metrics.jsonl`, oldest first; none if there is no file. A half-written line is left out."""
    path = workdir / METRICS_FILE
    if not path.exists():
        return []
    return [record for line in path.read_bytes().splitlines(keepends=True) if (record := _parsed(line)) is not None]


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The record on a line; None where it is none, was not written to its end, or is not what was written."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(record, dict) and isinstance(record.get("step"), int) and line.endswith(b"\n")
    return record if whole and record.pop(CHECKSUM, None) in (None, _checksum(record)) else None


def _checksum(record: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(record).encode())


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
    forever; and of two that begin in the same second, the second overwrites the first. A file that cannot be written to
    its end is left there, with a warning: half a record would make what follows it unreadable.
    """

    def __init__(self, directory: Path, next_step: int, warn: Callable[[str], None]) -> None:
        with _torch_hidden():
            from tensorboardX.proto import event_pb2, summary_pb2
            from tensorboardX.record_writer import RecordWriter

        # Protocol buffers make their classes while they are imported, out of a type checker's sight.
        events: Any = event_pb2
        summaries: Any = summary_pb2
        self._event, self._summary = events.Event, summaries.Summary
        self._directory, self._warn, self._failed = directory, warn, ""
        self._writer: Any = None
        self._flushed = time.monotonic()
        with self._or_end():
            directory.mkdir(parents=True, exist_ok=True)
            # TensorBoard reads the files in the order of their names, and a clock can have been set back since the
            # last; the process id keeps two of one moment apart.
            begun = max([time.time(), *map(_begun, directory.iterdir())])
            self._writer = RecordWriter(str(directory / f"events.out.tfevents.{begun:.6f}.{os.getpid()}"))
            self._append(file_version="brain.Event:2")
            # A start event makes TensorBoard forget what earlier files hold from this step on.
            self._append(step=next_step, session_log=events.SessionLog(status=events.SessionLog.START))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        if self._failed:
            return
        values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        with self._or_end():
            self._append(step=step, summary=self._summary(value=values))
            if time.monotonic() - self._flushed > FLUSH_SECONDS:
                self._writer.flush()
                self._flushed = time.monotonic()

    def close(self) -> None:
        if self._writer is not None:
            with self._or_end(), contextlib.closing(self._writer):
                self._writer.flush()
        if self._failed:
            self._warn(f"{self._directory} is not whole: it could not be written, {self._failed}.")

    @contextlib.contextmanager
    def _or_end(self) -> Iterator[None]:
        """Once something could not be written, nothing more is."""
        try:
            yield
        except OSError as error:
            if not self._failed:
                self._failed = error.strerror or type(error).__name__
                self._warn(f"{self._directory} cannot be written: {self._failed}. Training goes on without it.")

    def _append(self, **fields: Any) -> None:
        self._writer.write(self._event(wall_time=time.time(), **fields).SerializeToString())


def _begun(path: Path) -> float:
    """A little after the time in the name of an event file; 0 for other files."""
    try:
        return float(path.name.removeprefix("events.out.tfevents.").rpartition(".")[0]) + 1e-6
    except ValueError:
        return 0.0


@contextlib.contextmanager
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
