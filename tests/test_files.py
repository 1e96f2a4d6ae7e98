"""Files are written at once or not at all, whatever happens to the writer."""

import os
import stat
import tempfile
import threading
from pathlib import Path

import pytest

from jax_cifar import files
from jax_cifar.errors import ConfigError
from jax_cifar.files import atomic_write, expand, read_record, user_cache_dir, write_json, write_record, write_text


def test_a_written_file_replaces_the_old_one_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "a.json"
    write_text(path, "old")
    write_json(path, {"accuracy": 0.5})
    assert path.read_text() == '{\n  "accuracy": 0.5\n}\n'
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_record_lies_on_the_disk_before_it_takes_the_old_ones_place(tmp_path, monkeypatch):
    """A power cut may otherwise leave an empty file: a run without its config.json cannot go on."""
    path, seen, fsync = tmp_path / "config.json", [], os.fsync
    write_record(path, {"lr": 0.1})

    def watched(number):
        fsync(number)
        seen.append((read_record(path), os.fstat(number).st_size))

    monkeypatch.setattr(os, "fsync", watched)
    write_record(path, {"lr": 0.2})
    assert seen == [({"lr": 0.1}, path.stat().st_size)] and read_record(path) == {"lr": 0.2}


def test_a_block_that_fails_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as file:
        file.write(b"half of the n")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_number_that_is_not_finite_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert os.listdir(tmp_path) == []


def test_readers_see_the_old_file_while_the_new_one_is_written(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_of_several_writers_at_once_one_wins_whole(tmp_path):
    path, barrier = tmp_path / "a.txt", threading.Barrier(4)

    def write(letter: str) -> None:
        with atomic_write(path) as file:
            barrier.wait()
            for _ in range(1000):
                file.write(letter.encode())

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in {letter * 1000 for letter in "abcd"}
    assert os.listdir(tmp_path) == ["a.txt"]


def test_what_a_killed_process_left_goes_after_a_day_and_a_writer_at_work_is_left_alone(tmp_path):
    with atomic_write(tmp_path / "killed") as file:
        leftover = file.name
        os.link(leftover, tmp_path / "kept")
    (tmp_path / "kept").rename(leftover)
    write_text(tmp_path / "a.txt", "1")
    assert os.path.exists(leftover)
    os.utime(leftover, (0, 0))
    write_text(tmp_path / "a.txt", "2")
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "killed"]


def test_a_written_file_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    write_text(tmp_path / "a.txt", "1")
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_a_users_path_is_read_as_a_shell_reads_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", "somewhere")
    assert expand("~/a b") == tmp_path / "a b"
    assert expand("$PLACE/${PLACE}/漢字") == Path("somewhere/somewhere/漢字")
    assert expand("cost$5/a$") == Path("cost$5/a$")
    with pytest.raises(ConfigError, match=r"'\$GONE/a' cannot be found: \$GONE is not set"):
        expand("$GONE/a")
    with pytest.raises(ConfigError, match=r"'~nobody-here/a' cannot be found: ~nobody-here is no home folder"):
        expand("~nobody-here/a")
    with pytest.raises(ConfigError, match=r"^'' is no path"):
        expand("")
    Path("$PLACE").mkdir()
    assert expand("$PLACE") == Path("$PLACE")  # somebody made it, and it is what a listing shows


def test_a_user_without_a_home_has_a_cache_that_nobody_else_can_fill(tmp_path, monkeypatch):
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: str(path))  # as it is without an entry in passwd either
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    files._temporary_home.cache_clear()
    place = tmp_path / f"cache-{os.getuid()}"
    assert user_cache_dir() == place / "jax_cifar"
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    place.chmod(0o777)
    files._temporary_home.cache_clear()
    other = user_cache_dir()
    assert other.parent != place and stat.S_IMODE(other.parent.stat().st_mode) == 0o700
    files._temporary_home.cache_clear()


def test_a_name_that_is_no_text_is_refused_before_anything_fails_on_it():
    with pytest.raises(
        ConfigError, match=r"^'runs/\\udcff' is no text in this system's encoding, utf-8: set LANG=C\.UTF-8"
    ):
        expand(os.fsdecode(b"runs/\xff"))


def test_a_record_with_a_flipped_digit_is_none_and_one_without_a_sum_is_taken_as_it_is(tmp_path):
    path = tmp_path / "record.json"
    write_record(path, {"mean": [0.5, 0.25]})
    assert read_record(path) == {"mean": [0.5, 0.25]}
    path.write_text(path.read_text().replace("0.25", "0.35"))
    with pytest.raises(
        ValueError, match=r"not the values that were written: sha256 \w{8}\.\.\. differs; if that was you"
    ):
        read_record(path)
    write_json(path, {"mean": [0.5, 0.35]})
    assert read_record(path) == {"mean": [0.5, 0.35]}
