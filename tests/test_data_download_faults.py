"""Download of the published archives where the server, the network or what comes is not as it should be."""

import socket
from pathlib import Path

import pytest
from archive_site import CONTENT, FILE_NAME, PAGE, Site, archive_server, names, publish  # noqa: F401

from jax_cifar.data import download
from jax_cifar.data.download import download_archive
from jax_cifar.errors import DataError


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


def test_an_error_of_the_server_is_reported_and_not_asked_for_again(site: Site, tmp_path: Path) -> None:
    site.status = 404
    with pytest.raises(DataError, match="HTTP Error 404"):
        download_archive("cifar10", tmp_path)
    assert len(site.requests) == 1
    assert names(tmp_path) == []


def test_a_busy_server_is_asked_again_when_it_says(site: Site, tmp_path: Path) -> None:
    site.status, site.refusals, site.headers = 503, 1, {"Retry-After": "7"}
    assert download_archive("cifar10", tmp_path).read_bytes() == CONTENT
    assert (len(site.requests), site.pauses) == (2, [7.0])


@pytest.mark.parametrize(
    ("text", "seconds"), [(None, 5.0), ("soon", 5.0), ("9" * 30, 120.0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0)]
)
def test_a_server_that_stays_busy_is_given_up(site: Site, tmp_path: Path, text: str | None, seconds: float) -> None:
    site.status, site.headers = 503, {"Retry-After": text} if text else {}
    with pytest.raises(DataError, match="HTTP Error 503"):
        download_archive("cifar10", tmp_path)
    assert (len(site.requests), site.pauses) == (2, [seconds] * (seconds > 0))
    assert names(tmp_path) == []


def test_starts_again_where_the_server_has_less_than_is_here(site: Site, tmp_path: Path) -> None:
    site.status, site.refusals = 416, 1
    (tmp_path / f"{FILE_NAME}.part").write_bytes(b"x" * (len(CONTENT) - 1))
    assert download_archive("cifar10", tmp_path).read_bytes() == CONTENT
    assert site.requests == [f"bytes={len(CONTENT) - 1}-", None]


def test_headers_that_are_no_numbers_are_passed_over(site: Site, tmp_path: Path) -> None:
    site.total = "9" * 5000  # type: ignore[assignment]
    (tmp_path / f"{FILE_NAME}.part").write_bytes(CONTENT[:10])
    assert download_archive("cifar10", tmp_path).read_bytes() == CONTENT


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
    monkeypatch.setattr(download, "SILENCE_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        publish(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}/kriz/{FILE_NAME}")
        with pytest.raises(DataError, match=r"it sent nothing for 0\.05 s"):
            download_archive("cifar10", tmp_path)


def test_a_server_that_takes_its_time_is_waited_for_longer_than_one_that_cannot_be_reached(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert download.CONNECT_SECONDS <= 10 and download.SILENCE_SECONDS >= 60
    monkeypatch.setattr(download, "CONNECT_SECONDS", 0.2)
    site.silence = 0.4  # before the first byte
    assert download_archive("cifar10", tmp_path).read_bytes() == CONTENT
    assert site.requests == [None]


def test_a_connection_that_is_reset_is_taken_up_again(site: Site, tmp_path: Path) -> None:
    site.closes_after, site.resets = [1000], True
    assert download_archive("cifar10", tmp_path).read_bytes() == CONTENT
    assert site.requests[0] is None and len(site.requests) == 2


def test_what_came_before_a_break_is_told_and_kept(site: Site, tmp_path: Path) -> None:
    site.closes_after = [1000, 0, 0]
    with pytest.raises(DataError, match=r"The 1,000 bytes that came are kept, to go on with\. Put cifar"):
        download_archive("cifar10", tmp_path)
