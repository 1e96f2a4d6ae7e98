"""The one way in which files are written, how files that others made are read, and the user's cache folder."""

import errno
import json
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

_SUFFIX = ".unfinished"
_DAY = 86_400  # seconds
_LARGEST_JSON = 1 << 26  # bytes; what runs write has kilobytes
_DEEPEST_JSON = 64  # lists and tables in one another; Python's own limit depends on who asks


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


def read_bytes(path: Path, most: int) -> bytes:
    """What a regular file of at most `most` bytes holds.

    A file that somebody else made may be anything: a pipe would be waited for, a device read for ever.

    Raises:
        OSError: it cannot be read, is no regular file, or is larger.
    """
    require_regular(path, most)
    with path.open("rb") as file:
        return file.read(most)


def require_regular(path: Path, most: int | None = None) -> int:
    """The size in bytes of a regular file, or of the one that a link leads to; of `most` bytes at most, if given.

    Raises:
        OSError: there is no such file, or it is something else or larger.
    """
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is a pipe or a device, no regular file", str(path))
    if most is not None and status.st_size > most:
        raise OSError(errno.EFBIG, f"it has {status.st_size:,} bytes, expected at most {most:,}", str(path))
    return status.st_size


def read_json(path: Path) -> Any:
    """The values of a JSON file that anybody may have made.

    Raises:
        OSError: as `read_bytes`.
        ValueError: it is no JSON, or names a field twice, or lists and tables lie in one another without end.
    """
    try:
        values = json.loads(read_bytes(path, _LARGEST_JSON), object_pairs_hook=_fields)
    except RecursionError:
        values, depth = None, _DEEPEST_JSON + 1
    else:
        depth = _depth(values)
    if depth > _DEEPEST_JSON:
        raise ValueError(f"lists and tables lie in one another, more than {_DEEPEST_JSON} deep")
    return values


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has {next(name for name in names if names.count(name) > 1)!r} twice")
    return fields


def _depth(values: Any) -> int:
    depth, level = 0, [values]
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [part for item in level for part in (item.values() if isinstance(item, dict) else item)]
    return depth
