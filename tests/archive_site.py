"""A server on this machine that gives a published archive and can misbehave, for the tests of downloads."""

import gzip
import hashlib
import http.server
import socket
import struct
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from jax_cifar.data import download
from jax_cifar.data.published import ARCHIVES, PublishedArchive

CONTENT = gzip.compress(np.random.default_rng(0).bytes(5000), mtime=0)
FILE_NAME = "cifar-10-binary.tar.gz"
PAGE = b"<html><body>Please log in</body></html>"


@dataclass
class Site:
    """What the server does next, and the Range header and status of every request so far."""

    content: bytes = CONTENT
    content_type: str = "application/x-gzip"
    honours_range: bool = True
    total: int | None = None  # length of the file that a partial answer claims
    silence: float = 0.0  # seconds before the first byte of an answer
    resets: bool = False  # connections end with a reset
    closes_after: list[int] = field(default_factory=list)  # bytes of body before the connection closes, by request
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)  # sent with every answer that is no archive
    refusals: int | None = None  # how many requests get that status; None: all
    paths: list[str] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)  # seconds that were waited
    requests: list[str | None] = field(default_factory=list)


class Handler(http.server.BaseHTTPRequestHandler):
    site: Site

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        site = self.site
        threading.Event().wait(site.silence)
        if self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", f"/kriz/{FILE_NAME}")
            self.end_headers()
            return
        wanted = self.headers.get("Range")
        site.requests.append(wanted)
        site.paths.append(self.path)
        if site.status != 200 and len(site.requests) <= (site.refusals or len(site.requests)):
            self.send_response(site.status)
            for name, value in site.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and site.honours_range else 0
        body = site.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", site.content_type)
        self.send_header("Content-Length", str(len(body)))
        if start:
            total = site.total or len(site.content)
            self.send_header("Content-Range", f"bytes {start}-{len(site.content) - 1}/{total}")
        self.end_headers()
        if site.resets and site.closes_after:
            self.wfile.write(body[: site.closes_after.pop(0)])
            # Closed with nothing lingering, a socket tells the other side so by a reset.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            return
        self.wfile.write(body[: site.closes_after.pop(0)] if site.closes_after else body)


@pytest.fixture(name="site")
def archive_server(monkeypatch: pytest.MonkeyPatch):
    """A server, and the table of published archives pointed at it."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download.time, "sleep", lambda seconds: site.pauses.append(seconds) if seconds else None)
    site = Site()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("SiteHandler", (Handler,), {"site": site}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    publish(monkeypatch, f"http://127.0.0.1:{server.server_port}/kriz/{FILE_NAME}")
    yield site
    server.shutdown()
    thread.join()
    server.server_close()


def publish(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    monkeypatch.setitem(ARCHIVES, "cifar10", (PublishedArchive(FILE_NAME, "binary", len(CONTENT), sha256, url),))


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())
