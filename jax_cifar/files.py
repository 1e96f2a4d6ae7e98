"""The one way in which files are written and locked, what a user's path means, and the user's cache folder."""

import errno
import functools
import json
import os
import re
import secrets
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from jax_cifar.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_SUFFIX = ".unfinished"
_DAY = 86_400  # seconds
_VARIABLE = re.compile(r"\$([A-Za-z_]\w*|\{[^}]*\})")


def expand(path: str | Path) -> Path:
    """The path that a user means: `~` and `$VAR` replaced, unless something of exactly this name is there.

    Raises:
        ConfigError: there is no such variable or home folder, or the name is no text in this system's encoding, which
            not all that will read or write there can handle.
    """
    if not str(path):
        raise ConfigError("'' is no path: name a file or a folder.")
    try:
        str(path).encode()
    except UnicodeEncodeError:
        expected = f"in this system's encoding, {sys.getfilesystemencoding()}: set LANG=C.UTF-8, or choose another name"
        raise ConfigError(f"{str(path)!a} is no text {expected}.") from None
    if os.path.lexists(path):
        return Path(path)
    expanded = os.path.expandvars(os.path.expanduser(path))
    missing = _VARIABLE.search(expanded)
    if missing:
        raise ConfigError(f"{str(path)!r} cannot be found: {missing[0]} is not set. Set it, or name the folder.")
    if expanded.startswith("~"):
        home = expanded.split(os.sep)[0]
        raise ConfigError(f"{str(path)!r} cannot be found: {home} is no home folder here. Name the folder itself.")
    return Path(expanded)


def user_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/jax_cifar`, or `~/.cache/jax_cifar`; of a user without a home, among the temporary files."""
    folder = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return (_temporary_home() if folder.startswith("~") else Path(folder)) / "jax_cifar"


@functools.cache
def _temporary_home() -> Path:
    """A folder that outlives the process and that nobody else can have put anything into."""
    folder = Path(tempfile.gettempdir()) / f"cache-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(0o700)
    found = folder.lstat()
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022:
        return folder
    return Path(tempfile.mkdtemp(prefix="cache-"))


def open_locked(path: Path) -> tuple[int, bool]:
    """Open a file, made where it is missing, and lock it; the system lifts the lock of a process that dies.

    Returns its descriptor, which holds the lock until it is closed, and False where the file system has no locks.

    Raises:
        BlockingIOError: another process holds the lock.
        OSError: the file cannot be opened.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            has_locks = _lock(descriptor)
            # Its last holder may have removed the file between the two calls: another one then stands in its place.
            if not has_locks or os.path.samestat(os.fstat(descriptor), path.lstat()):
                return descriptor, has_locks
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Whether the file system has locks; raises `BlockingIOError` where another process has this one."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # What a network file system may say in place of EAGAIN.
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise BlockingIOError(error.errno, error.strerror) from None
        return False
    return True


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
    try:
        with unfinished.open("xb") as file:
            yield file
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


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


def _remove_leftovers(folder: Path) -> None:
    for leftover in folder.glob(f".*{_SUFFIX}"):
        # Another process may have been quicker.
        with suppress(OSError):
            if time.time() - leftover.stat().st_mtime > _DAY:
                leftover.unlink()
