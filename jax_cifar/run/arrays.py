"""The arrays of one checkpoint, written and read by Orbax, and verified. The only file that knows Orbax.

Orbax reads flipped bits back without complaint, so every array is compared with its digest. What it cannot read may be
damaged, or only out of reach for now; it does not say which, so the files are then read one by one.
"""

import contextlib
import errno
import functools
import hashlib
import logging
import os
import stat
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

from jax_cifar.run.manifest import (
    Damaged,
    cause,
    os_error_code,
    read_manifest,
    sha256,
    signature,
    unreadable,
)
from jax_cifar.run.untrusted import Leaves, check_claims, check_state

STATE = "state"
SPARE_FILES = 16  # that this process must be able to open for Orbax; it was seen to use 5
_GONE = (errno.ENOENT, errno.ENOTDIR)


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> dict[str, tuple[int, str]]:
    """Write arrays into a new folder; size and SHA-256 of every file in it, by its path from there."""
    ocp = _orbax()
    with _checkpointer() as checkpointer:
        checkpointer.save(path, args=ocp.args.PyTreeSave(arrays))
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {file.relative_to(path).as_posix(): _size_and_digest(file) for file in files}


def read_verified(path: Path, prefixes: tuple[str, ...] = ("",)) -> dict[str, np.ndarray]:
    """The arrays of one checkpoint whose paths begin so, every byte as it was saved.

    Raises:
        Damaged, Foreign, CheckpointError: as `read_manifest`, and likewise for the arrays.
    """
    manifest = read_manifest(path)
    leaves = manifest["leaves"]
    check_state(path / STATE, leaves)
    try:
        arrays = read_arrays(path / STATE, leaves)
    except (ImportError, MemoryError):
        raise  # no fault of the checkpoint
    except Exception as error:  # Orbax and TensorStore raise every other kind, bare Exception included
        raise _fault(path, manifest.get("files"), error) from error
    expected = {name: leaf for name, leaf in leaves.items() if name.startswith(prefixes)}
    for name, (shape, dtype, digest) in expected.items():
        if signature(arrays[name]) != (shape, dtype) or sha256(arrays[name]) != digest:
            raise Damaged(f"{name} is not what was saved (sha256 differs)")
    return {name: arrays[name] for name in expected}


def read_arrays(path: Path, leaves: Leaves) -> dict[str, np.ndarray]:
    """What Orbax makes of a folder. It opens a handful of files at a time, however many arrays there are."""
    ocp = _orbax()
    with contextlib.ExitStack() as spare:
        # Without them Orbax falls over half-way, and its event loops complain to stderr.
        for _ in range(SPARE_FILES):
            spare.enter_context(open(os.devnull))
    as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in leaves}
    with _checkpointer() as checkpointer:
        metadata = checkpointer.handler.metadata(path)
        # Shapes first: TensorStore ends the process where memory for one cannot be had.
        check_claims(getattr(metadata, "tree", metadata), leaves)
        return checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))


def _checkpointer() -> Any:
    """Orbax's reader and writer, for this process alone: it would wait for others that never come."""
    ocp = _orbax()
    here = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"process_{here}"
    )
    given = {"multiprocessing_options": alone} if jax.process_count() > 1 else {}
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**given), **given)


def _fault(path: Path, files: dict[str, Any] | None, error: Exception) -> Exception:
    """What kept Orbax from reading a checkpoint: `Damaged` where its bytes differ, else `CheckpointError`."""
    try:
        if files is not None:
            for name, (size, digest) in files.items():
                _compare(path / STATE / name, name, size, digest)
            return unreadable(path, error)
        for folder, _, names in os.walk(path / STATE, onerror=_raise):
            for name in names:
                _size_and_digest(Path(folder, name))
    except Damaged as damage:
        return damage
    except OSError as failure:
        if files is not None or failure.errno not in _GONE:
            return unreadable(path, failure)
    # The formats that list no files: an error of the system's, or of a library that has changed, proves nothing.
    code = os_error_code(error)
    if isinstance(error, TypeError | AttributeError) or (code is not None and code not in _GONE):
        return unreadable(path, error)
    return Damaged(f"its arrays cannot be read ({cause(error)})")


def _raise(error: OSError) -> None:
    raise error


def _compare(file: Path, name: str, size: int, digest: str) -> None:
    """Raise `Damaged` unless a file has this size and SHA-256, `OSError` where that cannot be told now."""
    try:
        found = file.stat()
        # Of a size that differs nothing is read: it may be a device without end.
        same = stat.S_ISREG(found.st_mode) and found.st_size == size and _size_and_digest(file)[1] == digest
    except (FileNotFoundError, NotADirectoryError):
        raise Damaged(f"{STATE}/{name} is missing") from None
    if not same:
        raise Damaged(f"{STATE}/{name} is not what was saved (size or sha256 differs)")


def _size_and_digest(file: Path) -> tuple[int, str]:
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
        return opened.tell(), digest


@functools.cache
def _orbax() -> ModuleType:
    """Orbax, told once to be quiet about failures that reach us as exceptions anyway."""
    handlers = logging.root.handlers[:]
    import orbax.checkpoint as ocp

    # It has logging set up by the way, and what a program then asks of `logging.basicConfig` would do nothing.
    logging.root.handlers[:] = handlers

    def drop_stragglers(event: Any) -> None:
        # At the first array that fails Orbax closes its event loop, and the other arrays complain to stderr of that.
        if not (event.object is None and str(event.exc_value) == "Event loop is closed"):
            previous(event)

    previous, sys.unraisablehook = sys.unraisablehook, drop_stragglers
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    return ocp
