"""Download of the published archives, from a server on this machine that can misbehave."""

import gzip
import hashlib
import http.server
import io
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from jax_cifar.data import download
from jax_cifar.data.download import download_archive
from jax_cifar.data.published import ARCHIVES, PublishedArchive
from jax_cifar.errors import DataError

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
    closes_after: list[int] = field(default_factory=list)  # bytes of body before the connection closes, by request
    status: int = 200
    requests: list[str | None] = field(default_factory=list)


class Handler(http.server.BaseHTTPRequestHandler):
    site: Site

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        site = self.site
        if self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", f"/kriz/{FILE_NAME}")
            self.end_headers()
            return
        wanted = self.headers.get("Range")
        site.requests.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and site.honours_range else 0
        body = site.content[start:]
        self.send_response(206 if start else site.status)
        self.send_header("Content-Type", site.content_type)
        self.send_header("Content-Length", str(len(body)))
        if start:
            total = site.total or len(site.content)
            self.send_header("Content-Range", f"bytes {start}-{len(site.content) - 1}/{total}")
        self.end_headers()
        self.wfile.write(body[: site.closes_after.pop(0)] if site.closes_after else body)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch):
    """A server, and the table of published archives pointed at it."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
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


def test_downloads_into_a_new_folder_and_reports_progress(site: Site, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    path = download_archive("cifar10", tmp_path / "new" / "folder", lambda done, total: calls.append((done, total)))
    assert path == tmp_path / "new" / "folder" / FILE_NAME
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == [FILE_NAME]
    assert calls[0] == (0, len(CONTENT))
    assert calls[-1] == (len(CONTENT), len(CONTENT))
    assert calls == sorted(calls)


def test_follows_redirects_and_keeps_the_range(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, ARCHIVES["cifar10"][0].url.replace("/kriz/", "/moved/"))
    (tmp_path / f"{FILE_NAME}.part").write_bytes(CONTENT[:100])
    assert download_archive("cifar10", tmp_path).read_bytes() == CONTENT
    assert site.requests == ["bytes=100-"]


def test_goes_on_with_what_an_earlier_run_left(site: Site, tmp_path: Path) -> None:
    (tmp_path / f"{FILE_NAME}.part").write_bytes(CONTENT[:1234])
    assert download_archive("cifar10", tmp_path).read_bytes() == CONTENT
    assert site.requests == ["bytes=1234-"]
    assert names(tmp_path) == [FILE_NAME]


def test_a_complete_part_needs_no_request(site: Site, tmp_path: Path) -> None:
    (tmp_path / f"{FILE_NAME}.part").write_bytes(CONTENT)
    assert download_archive("cifar10", tmp_path).read_bytes() == CONTENT
    assert site.requests == []


def test_starts_again_where_the_part_is_too_long(site: Site, tmp_path: Path) -> None:
    (tmp_path / f"{FILE_NAME}.part").write_bytes(CONTENT + b"more")
    assert download_archive("cifar10", tmp_path).read_bytes() == CONTENT
    assert site.requests == [None]


def test_starts_again_where_the_server_ignores_the_range(site: Site, tmp_path: Path) -> None:
    site.honours_range = False
    (tmp_path / f"{FILE_NAME}.part").write_bytes(CONTENT[:1234])
    assert download_archive("cifar10", tmp_path).read_bytes() == CONTENT
    assert site.requests == ["bytes=1234-"]


def test_goes_on_within_a_call_when_the_connection_closes_early(site: Site, tmp_path: Path) -> None:
    site.closes_after = [1000, 500]
    assert download_archive("cifar10", tmp_path).read_bytes() == CONTENT
    assert site.requests == [None, "bytes=1000-", "bytes=1500-"]


def test_gives_up_when_nothing_new_comes_and_goes_on_in_the_next_call(site: Site, tmp_path: Path) -> None:
    site.closes_after = [1000, 0, 0]
    with pytest.raises(DataError, match="connection closed early"):
        download_archive("cifar10", tmp_path)
    assert names(tmp_path) == [f"{FILE_NAME}.part"]
    assert download_archive("cifar10", tmp_path).read_bytes() == CONTENT
    assert site.requests == [None] + ["bytes=1000-"] * 3


def test_an_existing_archive_is_left_alone(site: Site, tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"mine")
    assert download_archive("cifar10", tmp_path).read_bytes() == b"mine"
    assert site.requests == []


def test_a_web_page_is_refused_and_the_part_kept(site: Site, tmp_path: Path) -> None:
    site.content, site.content_type, site.honours_range = PAGE, "text/html; charset=utf-8", False
    part = tmp_path / f"{FILE_NAME}.part"
    part.write_bytes(CONTENT[:1234])
    with pytest.raises(DataError, match=r"web page.*quickstart"):
        download_archive("cifar10", tmp_path)
    assert part.read_bytes() == CONTENT[:1234]
    assert names(tmp_path) == [part.name]


def test_a_web_page_under_another_type_and_of_the_right_size_is_refused(site: Site, tmp_path: Path) -> None:
    site.content = PAGE.ljust(len(CONTENT))
    with pytest.raises(DataError, match="not a gzip file"):
        download_archive("cifar10", tmp_path)
    assert names(tmp_path) == []


def test_another_size_is_refused_before_anything_is_written(site: Site, tmp_path: Path) -> None:
    site.content = CONTENT + b"more"
    with pytest.raises(DataError, match=f"offers {len(CONTENT) + 4:,} bytes"):
        download_archive("cifar10", tmp_path)
    site.content, site.total = CONTENT, 99
    part = tmp_path / f"{FILE_NAME}.part"
    part.write_bytes(CONTENT[:1234])
    with pytest.raises(DataError, match="offers 99 bytes"):
        download_archive("cifar10", tmp_path)
    assert part.read_bytes() == CONTENT[:1234]


def test_a_wrong_sum_is_refused_and_removed(site: Site, tmp_path: Path) -> None:
    site.content = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    with pytest.raises(DataError, match="another SHA-256"):
        download_archive("cifar10", tmp_path)
    assert names(tmp_path) == []


def test_an_error_of_the_server_is_reported(site: Site, tmp_path: Path) -> None:
    site.status = 503
    with pytest.raises(DataError, match="HTTP Error 503"):
        download_archive("cifar10", tmp_path)
    assert len(site.requests) == 2
    assert names(tmp_path) == []


def test_a_refused_connection_names_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    publish(monkeypatch, f"http://127.0.0.1:{port}/kriz/{FILE_NAME}")
    with pytest.raises(DataError, match="refused") as caught:
        download_archive("cifar10", tmp_path)
    message = str(caught.value)
    for piece in (str(tmp_path), FILE_NAME, f"{len(CONTENT):,} bytes", f":{port}/kriz/", "configs/quickstart.py"):
        assert piece in message
    assert names(tmp_path) == []


def test_an_unknown_host_is_asked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lookups: list[object] = []

    def unknown(host: object, *args: object, **kwargs: object) -> None:
        lookups.append(host)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(DataError, match=r"www.cs.toronto.edu.*Temporary failure"):
        download_archive("cifar100", tmp_path)
    assert lookups == ["www.cs.toronto.edu"]


def test_a_silent_server_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "_TIMEOUT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        publish(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}/kriz/{FILE_NAME}")
        with pytest.raises(DataError, match="timed out"):
            download_archive("cifar10", tmp_path)


def test_a_folder_that_cannot_be_made_is_named(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=rf"{tmp_path / 'file' / 'data'}.*JAX_CIFAR_DATA"):
        download_archive("cifar10", tmp_path / "file" / "data")
    assert site.requests == []


def test_of_two_at_once_one_downloads(site: Site, tmp_path: Path) -> None:
    both_started = threading.Barrier(2)

    def start(_: int) -> Path:
        both_started.wait()
        return download_archive("cifar10", tmp_path)

    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(start, range(2)))
    assert [path.read_bytes() for path in paths] == [CONTENT, CONTENT]
    assert site.requests == [None]
    assert names(tmp_path) == [FILE_NAME]


def test_a_lock_removed_while_waiting_for_it_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, lock, turns = tmp_path / FILE_NAME, download._lock, []

    def predecessor_finishes_first(descriptor: int, target: Path) -> None:
        lock(descriptor, target)
        turns.append(descriptor)
        if len(turns) == 1:
            (tmp_path / f"{FILE_NAME}.lock").unlink()
        if len(turns) == 2:
            (tmp_path / f"{FILE_NAME}.lock").unlink()
            (tmp_path / f"{FILE_NAME}.lock").write_text("of a third process")

    monkeypatch.setattr(download, "_lock", predecessor_finishes_first)
    with download._only_process(target):
        assert len(turns) == 3


def test_a_terminal_gets_one_line(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    download_archive("cifar10", tmp_path)
    assert FILE_NAME in terminal.getvalue()
    assert "\n" not in terminal.getvalue()


def test_a_log_file_gets_nothing(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    download_archive("cifar10", tmp_path)
    assert capsys.readouterr() == ("", "")
