"""Download of the published archives: whole, gone on with, shown, by one process at a time."""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from archive_site import CONTENT, FILE_NAME, Site, archive_server, names, publish  # noqa: F401

from jax_cifar import files, progress
from jax_cifar.data import cifar, download
from jax_cifar.data.download import download_archive
from jax_cifar.data.published import ARCHIVES, CIFAR10
from jax_cifar.errors import DataError


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


def test_an_existing_archive_is_left_alone(site: Site, tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"mine")
    assert download_archive("cifar10", tmp_path).read_bytes() == b"mine"
    assert site.requests == []


def test_a_proxy_of_the_environment_is_used(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = ARCHIVES["cifar10"][0].url.removesuffix(f"/kriz/{FILE_NAME}")
    monkeypatch.setenv("http_proxy", proxy)
    publish(monkeypatch, f"http://no.such.host.invalid/kriz/{FILE_NAME}")
    assert download_archive("cifar10", tmp_path).read_bytes() == CONTENT
    assert site.paths == [f"http://no.such.host.invalid/kriz/{FILE_NAME}"]


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
    target, lock, turns = tmp_path / FILE_NAME, files._lock, []

    def predecessor_finishes_first(descriptor: int, on_wait: Callable[[], object]) -> bool:
        had_locks = lock(descriptor, on_wait)
        turns.append(descriptor)
        if len(turns) == 1:
            (tmp_path / f"{FILE_NAME}.lock").unlink()
        if len(turns) == 2:
            (tmp_path / f"{FILE_NAME}.lock").unlink()
            (tmp_path / f"{FILE_NAME}.lock").write_text("of a third process")
        return had_locks

    monkeypatch.setattr(files, "_lock", predecessor_finishes_first)
    with download._only_process(target):
        assert len(turns) == 3


def test_it_is_said_what_is_waited_for_while_nothing_comes(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "FILE_SECONDS", 0.02)
    monkeypatch.setattr(download, "QUIET_SECONDS", 0.0)
    site.silence = 0.2
    download_archive("cifar10", tmp_path)
    host = ARCHIVES["cifar10"][0].url.split("/")[2]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"{FILE_NAME}: 0.0 of ")
    assert lines[0].endswith(f"waiting for {host}, 0 s of at most 120")


def test_a_log_file_gets_nothing_of_a_quick_download(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    download_archive("cifar10", tmp_path)
    assert capsys.readouterr() == ("", "")


def test_a_part_that_nobody_goes_on_with_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_CIFAR_DATA", str(tmp_path))
    monkeypatch.setattr(cifar, "_download", lambda spec, folder: pytest.fail("the download begins"))
    old, new = (tmp_path / f"cifar-{name}-binary.tar.gz.part" for name in ("10", "100"))
    whole = tmp_path / "cifar-10-python.tar.gz"
    long_ago = time.time() - 40 * 86_400
    for path, seconds in ((old, long_ago), (new, time.time()), (Path(f"{whole}.part"), time.time() - 90_000)):
        path.write_bytes(b"x")
        os.utime(path, (seconds, seconds))
    whole.write_bytes(b"")
    with pytest.raises(DataError, match="0 bytes"):
        cifar.load_cifar(CIFAR10)
    assert names(tmp_path) == [whole.name, new.name]
