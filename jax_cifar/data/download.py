"""Download of a published archive: resumable, verified, and never half-written under its final name."""

import http.client
import os
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from jax_cifar.data.published import ARCHIVES, PublishedArchive, check_archive
from jax_cifar.errors import DataError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

Progress = Callable[[int, int], None]  # bytes so far, bytes in all
_TIMEOUT = 5.0  # seconds without a connection, or without a byte
_CHUNK = 1 << 18
_GZIP_MAGIC = b"\x1f\x8b"
_NETWORK_ERRORS = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)


class _Unusable(Exception):
    """The server answers, but not with the archive."""


class _Unreachable(Exception):
    """The server cannot be reached, or stops sending."""


def download_archive(name: str, directory: Path, progress: Progress | None = None) -> Path:
    """Download the published binary archive of `name` (cifar10 or cifar100) into `directory` and return its path.

    Bytes are collected in a `.part` file, with which a later call goes on (HTTP Range); the final name appears only
    once size and sum are right. Of several processes that want the same file one downloads and the others wait for it.
    `progress` is called with (bytes so far, bytes in all); by default a terminal gets a line on stderr.

    Raises:
        DataError: no network, a folder that cannot be written to, or a file that is not the published one.
    """
    archive = ARCHIVES[name][0]
    target = directory / archive.file_name
    part = directory / f"{archive.file_name}.part"
    way_out = (
        f"Put {archive.file_name} ({archive.size:,} bytes, published at {archive.url}) into {directory}, "
        "or train without a network: --config configs/quickstart.py"
    )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _only_process(target):
            if not target.exists():
                _download(archive, part, progress or _terminal_progress(archive.file_name))
                os.replace(part, target)
    except _Unusable as error:
        raise DataError(f"{archive.url} did not give the published file: {error}. {way_out}") from None
    except _Unreachable as error:
        raise DataError(f"Cannot download {archive.url}: {error}. {way_out}") from None
    except OSError as error:
        message = f"Cannot write {target} ({error.strerror}). Let JAX_CIFAR_DATA name a folder that can be written to"
        raise DataError(message) from None
    return target


@contextmanager
def _only_process(target: Path) -> Iterator[None]:
    """Let one process at a time download `target`; the system lifts the lock of a process that dies."""
    path = target.with_name(target.name + ".lock")
    while True:
        with open(path, "w") as file:
            _lock(file.fileno(), target)
            # The process that was waited for has removed the file that it, and now this one, holds locked.
            if not _is_at(file.fileno(), path):
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _lock(descriptor: int, target: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"Waiting for another process that downloads {target}", file=sys.stderr)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:
        pass  # a file system without locks; the sum still keeps a mixed-up file from being used


def _download(archive: PublishedArchive, part: Path, progress: Progress) -> None:
    """Bring `part` to its full size, going on with what is there, and verify it; a file with a wrong sum is removed."""
    try:
        with open(part, "ab") as file:
            _complete(archive.url, file, archive.size, progress)
            os.fsync(file.fileno())
    finally:
        if part.exists() and part.stat().st_size == 0:
            part.unlink()
    try:
        check_archive(part, archive)
    except DataError:
        part.unlink()
        raise _Unusable("what came has another SHA-256, and was removed") from None


def _complete(url: str, file: BinaryIO, size: int, progress: Progress) -> None:
    """Transfer until `file` has `size` bytes; after a break go on, unless two tries in a row bring nothing new."""
    fruitless = 0
    while (have := file.seek(0, os.SEEK_END)) != size:
        if have > size:
            file.truncate(0)
            continue
        reason = "the connection closed early"
        try:
            _transfer(url, file, have, size, progress)
        except urllib.error.HTTPError as error:
            error.close()
            reason = str(error)
        except _NETWORK_ERRORS as error:
            cause = getattr(error, "reason", error)
            if isinstance(cause, socket.gaierror):
                raise _Unreachable(f"its host is unknown here ({cause.strerror})") from None
            reason = str(cause) or type(cause).__name__
        fruitless = 0 if file.seek(0, os.SEEK_END) > have else fruitless + 1
        if fruitless == 2:
            raise _Unreachable(reason)


def _transfer(url: str, file: BinaryIO, have: int, size: int, progress: Progress) -> None:
    """Make one request, for what follows the first `have` bytes, and append what comes, up to `size` bytes in all."""
    headers = {"User-Agent": "jax_cifar", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT) as response:
        # Refuse before the file is touched: a log-in page of a network must not cost what was downloaded before.
        if response.headers.get_content_type() == "text/html":
            raise _Unusable("the server sent a web page")
        start, total = _extent(response, size)
        if total != size:
            raise _Unusable(f"the server offers {total:,} bytes")
        if start != have:
            file.truncate(0)
        if start not in (0, have):
            return
        done = start
        progress(done, size)
        while done < size and (chunk := response.read1(min(_CHUNK, size - done))):
            if done == 0 and not _GZIP_MAGIC.startswith(chunk[:2]):
                raise _Unusable(f"the server sent something that begins with {chunk[:16]!r}, not a gzip file")
            file.write(chunk)
            done += len(chunk)
            progress(done, size)


def _extent(response: http.client.HTTPResponse, size: int) -> tuple[int, int]:
    """Return where in the file the answer begins and how long the whole file is; `size` where the server is silent."""
    if response.status != http.client.PARTIAL_CONTENT:
        return 0, int(response.headers.get("Content-Length") or size)
    extent, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    first = extent.partition("-")[0]
    return int(first) if first.isdecimal() else -1, int(total) if total.isdecimal() else size


def _terminal_progress(name: str) -> Progress:
    began, shown, had = time.monotonic(), 0.0, -1

    def show(done: int, total: int) -> None:
        nonlocal shown, had
        now = time.monotonic()
        had = done if had < 0 else had  # what an earlier run left says nothing about the speed
        if done < total and now - shown < 0.2:
            return
        shown = now
        rate = (done - had) / max(now - began, 1e-3)
        left = f", {(total - done) / rate:,.0f} s left" if rate > 0 else ""
        # The carriage return at the end lets whatever is printed next take the line over.
        line = f"{name}: {done / 1e6:,.1f} of {total / 1e6:,.1f} MB{left}"
        print(line.ljust(79), end="\r", file=sys.stderr, flush=True)

    return show if sys.stderr.isatty() else lambda done, total: None
