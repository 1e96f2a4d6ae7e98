"""Rows of the fault matrix in one process: files that are harmed, disks that fill or cannot be written, clocks.

A round is a function of its number, a source of randomness and an empty folder; it raises where something is lost.
"""

import contextlib
import functools
import itertools
import json
import os
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
from fault_runs import STOPPED_AT, copied, evaluates, goes_on, records, reports, require, says, stopped, trains, whole

from jax_cifar.backend.compiler import ProgramFiles
from jax_cifar.data.cache import Source, load_decoded
from jax_cifar.data.dataset import Dataset, Decoded

# Harms: what becomes of one file.


def flip(path: Path, random: Random) -> None:
    """One bit of one byte."""
    content = bytearray(path.read_bytes())
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)


def cut(path: Path, random: Random) -> None:
    """The end is missing."""
    os.truncate(path, random.randrange(1, path.stat().st_size))


def empty(path: Path, random: Random) -> None:
    """Nothing is in it."""
    os.truncate(path, 0)


def delete(path: Path, random: Random) -> None:
    """It is gone."""
    path.unlink()


Harm = Callable[[Path, Random], None]
Round = Callable[[int, Random, Path], None]


# Kinds of files: one is harmed, and all that reads it is tried.


def arrays(harm: Harm, random: Random, place: Path) -> None:
    """A file of the arrays of a checkpoint, the newest's or the best's."""
    folder = copied(place)
    newest = folder / "checkpoints" / ("12" if random.randrange(3) else "best/12")
    harm(random.choice(sorted(path for path in (newest / "state").rglob("*") if path.is_file())), random)
    evaluates(folder)
    trains(folder)


def manifest(harm: Harm, random: Random, place: Path) -> None:
    """What a checkpoint says of itself."""
    folder = copied(place)
    harm(folder / "checkpoints" / ("12" if random.randrange(3) else "best/12") / "manifest.json", random)
    evaluates(folder)
    trains(folder)


def in_folder(name: str) -> Callable[[Harm, Random, Path], None]:
    """A file of the run folder, which all scripts are then tried on."""

    def one(harm: Harm, random: Random, place: Path) -> None:
        folder = copied(place)
        harm(folder / name, random)
        evaluates(folder)
        reports(folder)
        trains(folder)

    return one


def metrics(harm: Harm, random: Random, place: Path) -> None:
    """The log of a run that goes on: no line says what no line of the sound run says."""
    folder = stopped(place)
    harm(folder / "metrics.jsonl", random)
    if not trains(folder):
        sound = records(whole().workdir)
        require(all(any(says(line, one) for one in sound) for line in records(folder)), "a line has other numbers")
        after = [record for record in sound if record["step"] > STOPPED_AT]
        require(records(folder)[-len(after) :] == after, "a line is missing")


def decoded(harm: Harm, random: Random, place: Path) -> None:
    """The cache of decoded data: read as it was, or decoded again."""
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8)
    found = Decoded({"train": Dataset(images, np.arange(20, dtype=np.int32) % 2)}, ("a", "b"))
    (place / "source").write_text("")
    source = Source("small", "a file", (place / "source",), lambda: found)
    for harmed in (False, True):
        if harmed:
            harm(place / "cache" / "small.npys", random)
        read, _ = load_decoded(source, place / "cache" / "small.npys")
        same = all(np.array_equal(getattr(read.parts["train"], n), getattr(found.parts["train"], n)) for n in COLUMNS)
        require(same and read.label_names == found.label_names, "other images")


COLUMNS = ("images", "labels")


def program(harm: Harm, random: Random, place: Path) -> None:
    """A compiled program: itself, or none."""
    content, cache = random.randbytes(3000), ProgramFiles(place / "programs")
    cache.put("key", content)
    harm(place / "programs" / "key.program", random)
    require(cache.get("key") in (content, None), "another program")


KINDS: dict[str, Callable[[Harm, Random, Path], None]] = {
    "the arrays of a checkpoint": arrays,
    "its manifest": manifest,
    "config.json": in_folder("config.json"),
    "network.json": in_folder("network.json"),
    "metrics.jsonl": metrics,
    "summary.json": in_folder("summary.json"),
    "report.json": in_folder("report.json"),
    "source.json": in_folder("source.json"),
    "the cache of decoded data": decoded,
    "a compiled program": program,
}


def harmed(harm: Harm, *kinds: str) -> Round:
    """Rounds that harm a file of these kinds in turn."""

    def one(number: int, random: Random, place: Path) -> None:
        KINDS[kinds[number % len(kinds)]](harm, random, place)

    return one


# Places that cannot be written to.


@contextlib.contextmanager
def disk(place: Path) -> Iterator[Path]:
    """A disk of 2 MB of one's own."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "faults", str(place)], check=True, capture_output=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@functools.cache
def mounts() -> bool:
    """Whether this user may have a disk of their own."""
    try:
        with tempfile.TemporaryDirectory() as place, disk(Path(place, "tried")):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def fills(number: int, random: Random, place: Path) -> None:
    """The disk fills after some line of the log; the same command ends as if it had not, once there is space."""
    with disk(place / "disk"):
        filler = place / "disk" / "filler"

        def fill(record: Any) -> None:
            if record["step"] >= moment and not filler.exists():
                free = shutil.disk_usage(filler.parent).free
                filler.write_bytes(b"x" * max(0, free - random.choice([0, 4096, 30_000, 70_000, 100_000])))

        moment = random.choice([2, 4, 6, 8, 10])
        trains(place / "disk" / "run", callbacks=[SimpleNamespace(on_log=fill)])
        filler.unlink(missing_ok=True)
        goes_on(place / "disk" / "run")


def too_large(number: int, random: Random, place: Path) -> None:
    """As `fills`, where nothing may be mounted: no file may grow beyond a size, from some line of the log on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    moment, most = random.choice([2, 4, 6, 8, 10]), random.choice([0, 500, 2500, 6000, 20_000])

    def fill(record: Any) -> None:
        if record["step"] >= moment:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))

    try:
        trains(place / "run", callbacks=[SimpleNamespace(on_log=fill)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    goes_on(place / "run")


def full(number: int, random: Random, place: Path) -> None:
    """A disk that fills, or what is nearest to one."""
    (fills if mounts() else too_large)(number, random, place)


@contextlib.contextmanager
def read_only(place: Path) -> Iterator[Path]:
    """A folder that becomes read-only inside the inner block: a disk where one may be mounted, else by its rights."""
    if not mounts():
        (place / "disk").mkdir()
        yield place / "disk"
        return
    with disk(place / "disk") as folder:
        yield folder


def lock_up(folder: Path, how: str) -> None:
    """Make it read-only, `how` "ro", or writable again, "rw"."""
    if os.path.ismount(folder):
        subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True)
    else:
        for path in (folder, *folder.rglob("*")):
            path.chmod(path.stat().st_mode & ~0o222 if how == "ro" else path.stat().st_mode | 0o200)


def cannot_be_written(number: int, random: Random, place: Path) -> None:
    """A new run, one that was stopped, a finished one; trained, evaluated, reported: and nothing has changed."""
    with read_only(place) as folder:
        run = (lambda at: at / "run", stopped, copied)[number % 3](folder)
        lock_up(folder, "ro")
        before = {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}
        told = trains(run)
        require(bool(told), "it trained where it could write nothing")
        if number % 3:
            told = evaluates(run)
            require(not told or number % 3 == 1, told)
            reports(run)
        require(before == {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}, "files changed")
        lock_up(folder, "rw")
        goes_on(run)


# Moments.


def torn(number: int, random: Random, place: Path) -> None:
    """Killed while a line was written: what it logged after its checkpoint ends anywhere."""
    folder = stopped(place)
    path = folder / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    begun = sum(record["step"] <= STOPPED_AT for record in records(folder))
    first = sum(map(len, lines[:begun]))
    os.truncate(path, random.randrange(first, path.stat().st_size))
    goes_on(folder)


def clock(number: int, random: Random, place: Path) -> None:
    """Stopped and gone on with years before, on a clock that jumps back with each look."""
    folder = stopped(place)
    begun, calls = time.time() - random.uniform(0, 3e8), itertools.count()

    def jumping() -> float:
        return begun - next(calls) * random.choice([0.0, 0.1, 1000.0])

    with mock.patch.object(time, "time", jumping):
        goes_on(folder, started=begun + random.uniform(-1e6, 1e6))
    seconds = json.loads((folder / "summary.json").read_bytes())["seconds"]
    require(all(value >= 0 for value in seconds.values()), f"seconds below zero: {seconds}")
