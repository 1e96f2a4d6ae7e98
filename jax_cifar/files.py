"""The one way in which files are written, and the user's cache folder."""

import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from jax_cifar.signals import last_acts

_SUFFIX = ".unfinished"
_DAY = 86_400  # seconds
_being_written: set[Path] = set()


def user_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/jax_cifar`, or `~/.cache/jax_cifar`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "jax_cifar"


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a binary file that becomes `path` when the block ends, and is removed when it fails.

    A reader sees the old file or the new one, never a part. Every writer has a file of its own, so that of several at
    once, on one machine or on several, one wins whole. What a killed process left in the folder goes with the next
    write after a day.

    Raises:
        OSError: the folder does not exist or cannot be written to, or the disk is full.
    """
    _remove_leftovers(path.parent)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_SUFFIX}")
    _being_written.add(unfinished)
    try:
        with unfinished.open("xb") as file:
            yield file
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    finally:
        _being_written.discard(unfinished)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text at once or not at all."""
    with atomic_write(path) as file:
        file.write(text.encode())


def write_json(path: Path, values: Any) -> None:
    """Write JSON at once or not at all.

    Raises:
        ValueError: a number is not finite.
    """
    write_text(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


@last_acts.append
def _remove_half_written() -> None:
    for path in list(_being_written):
        path.unlink(missing_ok=True)


def _remove_leftovers(folder: Path) -> None:
    for leftover in folder.glob(f".*{_SUFFIX}"):
        # Another process may have been quicker.
        with suppress(OSError):
            if time.time() - leftover.stat().st_mtime > _DAY:
                leftover.unlink()
