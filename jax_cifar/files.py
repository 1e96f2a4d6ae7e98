"""How files are written, locked and read that others may have made, what a user's path means, and the cache folder."""

import errno
import functools
import hashlib
import json
import os
import re
import secrets
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal

from jax_cifar.errors import ConfigError
from jax_cifar.signals import last_acts

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOADED = time.time()  # about when this process began to load this library
_LIBRARY = Path(__file__).parent
_SUFFIX = ".unfinished"
_DAY = 86_400  # seconds
_LARGEST_JSON = 1 << 26  # bytes; what runs write has kilobytes
_DEEPEST_JSON = 64  # lists and tables in one another; Python's own limit depends on who asks
_being_written: set[Path] = set()
_VARIABLE = re.compile(r"\$([A-Za-z_]\w*|\{[^}]*\})")


def shipped(name: Literal["scripts", "configs"]) -> Path:
    """The folder of the scripts, or of the experiments: in the library where a wheel was installed, else beside it."""
    inside = _LIBRARY / name
    return inside if inside.is_dir() else _LIBRARY.parent / name


def with_library(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """An environment, by default this process's, in which another Python process has this library as this one does."""
    known = os.environ if environment is None else environment
    paths = [str(Path(__file__).parents[1]), *filter(None, [known.get("PYTHONPATH")])]
    return {**known, "PYTHONPATH": os.pathsep.join(paths)}


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


def open_locked(path: Path, on_wait: Callable[[], object] | None = None) -> tuple[int, bool]:
    """Open a file, made where it is missing, and lock it; the system lifts the lock of a process that dies.

    Returns its descriptor, which holds the lock until it is closed, and False where the file system has no locks.
    A lock that another process holds is waited for after `on_wait()`, if given.

    Raises:
        BlockingIOError: another process holds the lock, and there is no `on_wait`.
        OSError: the file cannot be opened.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            has_locks = _lock(descriptor, on_wait)
            # Its last holder may have removed the file between the two calls: another one then stands in its place.
            if not has_locks or os.path.samestat(os.fstat(descriptor), path.lstat()):
                return descriptor, has_locks
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, on_wait: Callable[[], object] | None) -> bool:
    """Whether the file system has locks; as `open_locked` where another process has this one."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # What a network file system may say in place of EAGAIN.
        if error.errno in (errno.EAGAIN, errno.EACCES):
            if on_wait is None:
                raise BlockingIOError(error.errno, error.strerror) from None
            on_wait()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            return True
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


def to_disk(file: IO[Any]) -> None:
    """Have all that was written lie on the disk, so that a power cut finds it there."""
    file.flush()
    os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text at once or not at all; a power cut leaves the old file or the new one, too."""
    with atomic_write(path) as file:
        file.write(text.encode())
        to_disk(file)


def write_json(path: Path, values: Any) -> None:
    """Write JSON at once or not at all.

    Raises:
        ValueError: a number is not finite.
    """
    write_text(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


def write_record(path: Path, values: dict[str, Any]) -> None:
    """As `write_json`, with a sum of all values, by which `read_record` notices a flipped digit."""
    write_json(path, {**values, "sha256": sha256_of_json(values)})


def read_record(path: Path) -> Any:
    """What `write_record` wrote; or any JSON without a sum, as earlier versions and people write it.

    Raises:
        OSError, ValueError: as `read_json`, or the values are not those that were written.
    """
    values = read_json(path)
    if isinstance(values, dict) and (digest := values.pop("sha256", None)) not in (None, sha256_of_json(values)):
        shown = str(digest)[:8]
        raise ValueError(f"not the values that were written: sha256 {shown}... differs; if that was you, remove it")
    return values


def sha256_of_json(values: dict[str, Any]) -> str:
    """Checksum of JSON values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


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
