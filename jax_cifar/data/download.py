"""Download of a published archive: resumable, verified, patient, and never half-written under its final name."""

import http.client
import math
import os
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from email.utils import mktime_tz, parsedate_tz
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from jax_cifar.data.published import ARCHIVES, PublishedArchive, check_archive
from jax_cifar.errors import DataError
from jax_cifar.files import open_locked, to_disk
from jax_cifar.progress import progress

Tell = Callable[[int, int], None]  # bytes so far, bytes in all
# Without a network one wants to know in seconds; a server that is reached may be slow.
CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 120.0  # before the first byte, and between two
QUIET_SECONDS = 2.0  # without a byte, until it is said that one is waited for
PAUSE_SECONDS = 5.0  # before a busy server is asked again, where it does not say itself
_TRIES = 2  # in a row, without a new byte
_BUSY = (429, 500, 502, 503, 504)
_BEYOND_THE_END = 416
_CHUNK = 1 << 18
_GZIP_MAGIC = b"\x1f\x8b"


class _Unusable(Exception):
    """The server answers, but not with the archive."""


class _Unreachable(Exception):
    """The server cannot be reached, or stops sending."""


class _Broken(Exception):
    """A request failed in a way that another may not; `pause` seconds are to be waited before it."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


def download_archive(name: str, directory: Path, tell: Tell | None = None) -> Path:
    """Download the published binary archive of `name` (cifar10 or cifar100) into `directory` and return its path.

    Bytes are collected in a `.part` file, with which a later call goes on (HTTP Range); the final name appears only
    once size and sum are right. Of several processes that want the same file one downloads and the others wait for it.
    Proxies are those of the environment (`https_proxy`). `tell` is called with (bytes so far, bytes in all); by
    default stderr is told, also what is waited for.

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
                with nullcontext(tell) if tell else _shown(archive, part) as told:
                    _download(archive, part, told)
                os.replace(part, target)
    except _Unusable as error:
        raise DataError(f"{archive.url} did not give the published file: {error}. {way_out}") from None
    except _Unreachable as error:
        kept = f" The {part.stat().st_size:,} bytes that came are kept, to go on with." if part.exists() else ""
        raise DataError(f"Cannot download {archive.url}: {error}.{kept} {way_out}") from None
    except OSError as error:
        message = f"Cannot write {target} ({error.strerror}). Let JAX_CIFAR_DATA name a folder that can be written to"
        raise DataError(message) from None
    return target


@contextmanager
def _only_process(target: Path) -> Iterator[None]:
    """Let one process at a time download `target`; the system lifts the lock of a process that dies."""
    path = target.with_name(target.name + ".lock")
    # Without locks too the sum keeps a mixed-up file from being used.
    descriptor, _ = open_locked(
        path, lambda: print(f"Waiting for another process that downloads {target}", file=sys.stderr)
    )
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


@contextmanager
def _shown(archive: PublishedArchive, part: Path) -> Iterator[Tell]:
    """A line on stderr: how far it is, and who has sent nothing for how long."""
    heard, host = time.monotonic(), urlsplit(archive.url).netloc
    have = part.stat().st_size if part.exists() else 0

    def waiting() -> str:
        seconds = time.monotonic() - heard
        return (
            f"waiting for {host}, {seconds:.0f} s of at most {SILENCE_SECONDS:.0f}" if seconds >= QUIET_SECONDS else ""
        )

    def tell(done: int, total: int) -> None:
        nonlocal heard
        heard = time.monotonic() if done < total else math.inf
        bar.update(done / 1e6, total / 1e6)

    with progress(archive.file_name, archive.size / 1e6, done=have / 1e6, unit="MB", form=",.1f") as bar:
        bar.update(have / 1e6, note=waiting)
        yield tell


def _download(archive: PublishedArchive, part: Path, tell: Tell) -> None:
    """Bring `part` to its full size, going on with what is there, and verify it; a file with a wrong sum is removed."""
    try:
        with open(part, "ab") as file:
            _complete(archive.url, file, archive.size, tell)
            to_disk(file)
    finally:
        if part.exists() and part.stat().st_size == 0:
            part.unlink()
    try:
        check_archive(part, archive)
    except DataError:
        part.unlink()
        raise _Unusable("what came has another SHA-256, and was removed") from None


def _complete(url: str, file: BinaryIO, size: int, tell: Tell) -> None:
    """Transfer until `file` has `size` bytes; after a break go on, unless two tries in a row bring nothing new."""
    fruitless = 0
    while (have := file.seek(0, os.SEEK_END)) != size:
        if have > size:
            file.truncate(0)
            continue
        broken = _Broken("the connection closed early")
        try:
            _transfer(url, file, have, size, tell)
        except _Broken as error:
            broken = error
        fruitless = 0 if file.seek(0, os.SEEK_END) > have else fruitless + 1
        if fruitless == _TRIES:
            raise _Unreachable(str(broken))
        time.sleep(broken.pause)


def _transfer(url: str, file: BinaryIO, have: int, size: int, tell: Tell) -> None:
    """Make one request, for what follows the first `have` bytes, and append what comes, up to `size` bytes in all."""
    headers = {"User-Agent": "jax_cifar", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        with _network():
            response = _opener().open(urllib.request.Request(url, headers=headers), timeout=CONNECT_SECONDS)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == _BEYOND_THE_END:
                file.truncate(0)
            raise _refused(error) from None
    with response:
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
        tell(done, size)
        while done < size and (chunk := _next_bytes(response, size - done)):
            if done == 0 and not _GZIP_MAGIC.startswith(chunk[:2]):
                raise _Unusable(f"the server sent something that begins with {chunk[:16]!r}, not a gzip file")
            file.write(chunk)
            done += len(chunk)
            tell(done, size)


def _next_bytes(response: http.client.HTTPResponse, most: int) -> bytes:
    with _network():
        return response.read1(min(_CHUNK, most))


@contextmanager
def _network() -> Iterator[None]:
    """Tell errors of the network, which are `OSError`s as those of the disk are, as `_Broken`.

    Raises:
        _Unreachable: the host has no address.
        HTTPError: the server answered with an error.
    """
    try:
        yield
    except urllib.error.HTTPError:
        raise
    except TimeoutError:
        raise _Broken(f"it sent nothing for {SILENCE_SECONDS:g} s") from None
    except (OSError, http.client.HTTPException) as error:
        cause = getattr(error, "reason", error)
        if isinstance(cause, socket.gaierror):
            raise _Unreachable(f"its host is unknown here ({cause.strerror})") from None
        if isinstance(cause, TimeoutError):
            cause = f"it cannot be reached within {CONNECT_SECONDS:g} s"
        raise _Broken(str(cause) or type(cause).__name__) from None


def _refused(error: urllib.error.HTTPError) -> Exception:
    """What an answer of the server's means: that it may be asked again, after a while, or that it may not."""
    if error.code in _BUSY:
        return _Broken(str(error), min(_retry_after(error.headers.get("Retry-After")), SILENCE_SECONDS))
    return _Broken(str(error)) if error.code == _BEYOND_THE_END else _Unusable(str(error))


def _retry_after(text: str | None) -> float:
    """Seconds that a server asks to wait, given as a number or as a date; the usual pause where it asks for none."""
    if text is not None and text.isdecimal():
        return float(text)
    date = parsedate_tz(text) if text else None
    return PAUSE_SECONDS if date is None else max(0.0, mktime_tz(date) - time.time())


def _extent(response: http.client.HTTPResponse, size: int) -> tuple[int, int]:
    """Return where in the file the answer begins and how long the whole file is; `size` where the server is silent."""
    if response.status != http.client.PARTIAL_CONTENT:
        return 0, _number(response.headers.get("Content-Length"), size)
    extent, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    return _number(extent.partition("-")[0], -1), _number(total, size)


def _number(text: str | None, otherwise: int) -> int:
    return int(text) if text and text.isdecimal() and len(text) < 20 else otherwise


def _opener() -> urllib.request.OpenerDirector:
    """What opens a URL through the environment's proxies, quick to give up a connection and slow to give up a byte."""
    return urllib.request.build_opener(_Handler, _TLSHandler)


class _Connection(http.client.HTTPConnection):
    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(SILENCE_SECONDS)


class _TLSConnection(http.client.HTTPSConnection):
    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(SILENCE_SECONDS)


class _Handler(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Connection, request)


class _TLSHandler(urllib.request.HTTPSHandler):
    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_TLSConnection, request)
