"""Where CIFAR is looked for, and the decoded cache: never stale, damaged, half-written or another set's."""

import os
import socket
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from cifar_files import TINY10, TINY100, binary_files, make_part, write_archive, write_files

from jax_cifar.config import DataConfig
from jax_cifar.data import cache, cifar, dataset, default_data_dir, load_data
from jax_cifar.data.cache import Entry, entry_path, read_entry
from jax_cifar.data.cifar import load_cifar
from jax_cifar.data.dataset import Splits
from jax_cifar.data.published import CIFAR10, CifarSpec
from jax_cifar.errors import DataError


@pytest.fixture(autouse=True)
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of its own for every test, and no folder named by the environment."""
    monkeypatch.delenv("JAX_CIFAR_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return tmp_path / "xdg" / "jax_cifar"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder that holds the tiny CIFAR-10 in the binary layout."""
    write_files(tmp_path / "data" / TINY10.binary_folder, binary_files(TINY10))
    return tmp_path / "data"


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The descriptions of the sources that were decoded, in order: whoever decodes tries to write what it found."""
    decoded: list[str] = []
    original = cache.write_entry

    def write_entry(path: Path, entry: Entry) -> None:
        decoded.append(entry.source)
        original(path, entry)

    monkeypatch.setattr(cache, "write_entry", write_entry)
    return decoded


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown_host(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown_host)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def assert_holds(splits: Splits, spec: CifarSpec, seed: int = 0) -> None:
    for part, name in ((splits.train, "train"), (splits.test, "test")):
        expected = make_part(spec, name, seed)  # type: ignore[arg-type]
        np.testing.assert_array_equal(part.images, expected.images)
        np.testing.assert_array_equal(part.labels, expected.labels)
    assert (splits.name, splits.label_names, splits.num_classes) == (spec.name, spec.label_names, 3)
    assert splits.validation is None


def test_second_start_reads_the_cache(folder: Path, decodes: list[str]) -> None:
    first = load_cifar(TINY10, str(folder))
    assert first.source == f"binary files in {folder / TINY10.binary_folder}"
    second = load_cifar(TINY10, str(folder))
    assert decodes == [first.source]
    assert second.source == f"{first.source} (decoded cache {entry_path('cifar10', folder)})"
    for splits in (first, second):
        assert_holds(splits, TINY10)


def test_changed_files_are_decoded_again(folder: Path, decodes: list[str]) -> None:
    load_cifar(TINY10, str(folder))
    write_files(folder / TINY10.binary_folder, binary_files(TINY10, seed=1))
    batch = folder / TINY10.binary_folder / "data_batch_1.bin"
    os.utime(batch, ns=(0, 0))
    assert_holds(load_cifar(TINY10, str(folder)), TINY10, seed=1)
    os.utime(batch, ns=(0, 1))
    load_cifar(TINY10, str(folder))
    assert len(decodes) == 3
    names = folder / TINY10.binary_folder / "batches.meta.txt"
    times = names.stat().st_atime_ns, names.stat().st_mtime_ns
    names.write_text("ant bee cows")
    os.utime(names, ns=times)
    assert load_cifar(TINY10, str(folder)).label_names == ("ant", "bee", "cows")


def test_files_damaged_after_caching_are_reported(folder: Path) -> None:
    load_cifar(TINY10, str(folder))
    (folder / TINY10.binary_folder / "test_batch.bin").write_bytes(b"short")
    with pytest.raises(DataError, match=r"test_batch\.bin has 5 bytes"):
        load_cifar(TINY10, str(folder))


def test_two_folders_and_two_sets_have_caches_of_their_own(folder: Path, tmp_path: Path, decodes: list[str]) -> None:
    other = tmp_path / "other"
    write_files(other / TINY10.binary_folder, binary_files(TINY10, seed=1))
    write_files(folder / TINY100.binary_folder, binary_files(TINY100, seed=2))
    for _ in range(2):
        assert_holds(load_cifar(TINY10, str(folder)), TINY10)
        assert_holds(load_cifar(TINY10, str(other)), TINY10, seed=1)
        assert_holds(load_cifar(TINY100, str(folder)), TINY100, seed=2)
    assert len(decodes) == 3


@pytest.mark.parametrize("damage", ["truncated", "pixel", "label name", "header", "empty", "text", "checksum"])
def test_damaged_cache_is_made_again(damage: str, folder: Path, decodes: list[str]) -> None:
    load_cifar(TINY10, str(folder))
    path = entry_path("cifar10", folder)
    good = path.read_bytes()
    middle = len(good) // 2
    path.write_bytes(
        {
            "truncated": good[:-1],
            "pixel": good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :],
            "label name": good.replace(b'"ant"', b'"ent"'),
            "header": good.replace(b'"format"', b'"fOrmat"'),
            "empty": b"",
            "text": b"not an array",
            "checksum": good[:-1] + bytes([good[-1] ^ 1]),
        }[damage]
    )
    assert path.read_bytes() != good
    assert_holds(load_cifar(TINY10, str(folder)), TINY10)
    assert len(decodes) == 2
    assert path.read_bytes() == good


def test_a_cache_file_of_an_older_format_is_replaced(folder: Path, decodes: list[str]) -> None:
    load_cifar(TINY10, str(folder))
    path = entry_path("cifar10", folder)
    header = np.frombuffer(b'{"format": 1, "name": "cifar10"}', np.uint8)
    with path.open("wb") as file:
        np.lib.format.write_array(file, header)
    assert_holds(load_cifar(TINY10, str(folder)), TINY10)
    load_cifar(TINY10, str(folder))
    assert len(decodes) == 2


def test_the_cache_knows_the_sums_of_the_images(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_cifar(TINY10, str(folder))
    monkeypatch.setattr(dataset, "sum_images", lambda images: pytest.fail("the images were read over again"))
    second = load_cifar(TINY10, str(folder))
    for part in ("train", "test"):
        fresh, cached = getattr(first, part), getattr(second, part)
        assert cached.sums == fresh.sums
        assert cached.checksum == zlib.crc32(fresh.labels.tobytes(), zlib.crc32(fresh.images.tobytes()))


def test_leftovers_of_a_killed_process_go_with_the_next_write(folder: Path, user_cache: Path) -> None:
    (user_cache / "decoded").mkdir(parents=True)
    leftover = user_cache / "decoded" / ".cifar10-0.npys.12345678.unfinished"
    leftover.write_bytes(b"half")
    os.utime(leftover, (0, 0))
    load_cifar(TINY10, str(folder))
    assert not leftover.exists()


def test_cache_of_another_set_is_not_taken(folder: Path) -> None:
    load_cifar(TINY10, str(folder))
    path = entry_path("cifar10", folder)
    assert read_entry(path, "cifar10", None) is not None
    assert read_entry(path, "cifar100", None) is None


def test_cache_folder_that_cannot_be_written(folder: Path, user_cache: Path, decodes: list[str]) -> None:
    """A file in place of the folder fails for root too, as a read-only folder does for a user."""
    user_cache.parent.mkdir()
    user_cache.write_text("in the way")
    for _ in range(2):
        splits = load_cifar(TINY10, str(folder))
        assert_holds(splits, TINY10)
        assert f"(decoded at every start: cannot write {user_cache / 'decoded'}, " in splits.source
    assert len(decodes) == 2
    assert user_cache.read_text() == "in the way"


def test_disk_full_leaves_nothing_behind(folder: Path, user_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    splits = load_cifar(TINY10, str(folder))
    assert_holds(splits, TINY10)
    assert "No space left on device" in splits.source
    assert list((user_cache / "decoded").iterdir()) == []


def test_named_folder_has_to_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(DataError, match=r"data\.dir = .*missing does not exist.*configs/quickstart\.py"):
        load_data(DataConfig(name="cifar10", dir=str(missing)))
    monkeypatch.setenv("JAX_CIFAR_DATA", str(missing))
    with pytest.raises(DataError, match=r"\$JAX_CIFAR_DATA = .*missing does not exist"):
        load_data(DataConfig(name="cifar100"))
    missing.write_text("a file")
    with pytest.raises(DataError, match="is a file, not a folder"):
        load_data(DataConfig(name="cifar10"))
    assert list(tmp_path.iterdir()) == [missing]


def test_named_folder_without_the_set(folder: Path, tmp_path: Path, decodes: list[str]) -> None:
    """Neither a download, nor the cache of another folder, nor that of files which have gone from this one."""
    load_cifar(TINY10, str(folder))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError) as caught:
        load_data(DataConfig(name="cifar10", dir=str(empty)))
    for part in (str(empty), "cifar-10-binary.tar.gz", "cifar-10-batches-bin/", "configs/quickstart.py"):
        assert part in str(caught.value)
    (folder / TINY10.binary_folder).rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="holds no cifar10"):
        load_data(DataConfig(name="cifar10", dir=str(folder)))
    assert len(decodes) == 1
    assert list(empty.iterdir()) == []


def test_default_folders(tmp_path: Path, user_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_data_dir() == user_cache
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_data_dir() == tmp_path / ".cache" / "jax_cifar"
    monkeypatch.setenv("JAX_CIFAR_DATA", "~/data")
    assert default_data_dir() == tmp_path / "data"
    monkeypatch.setenv("JAX_CIFAR_DATA", "")
    assert default_data_dir() == tmp_path / ".cache" / "jax_cifar"


def test_folder_named_by_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_CIFAR_DATA", str(folder))
    monkeypatch.setattr("jax_cifar.data.CIFAR10", TINY10)
    splits = load_data(DataConfig(name="cifar10", val_fraction=0.25))
    assert (len(splits.train), len(splits.test)) == (9, 6)
    assert splits.validation is not None
    assert len(splits.validation) == 3


def test_data_dir_comes_before_the_environment(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_CIFAR_DATA", str(tmp_path / "ignored"))
    assert_holds(load_cifar(TINY10, str(folder)), TINY10)


def test_nothing_at_hand_is_downloaded_once(
    user_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, decodes: list[str]
) -> None:
    spec = write_archive(TINY10, "binary", tmp_path)
    name = spec.archives[0].file_name
    asked: list[tuple[str, Path]] = []

    def download(name_of_set: str, directory: Path) -> Path:
        asked.append((name_of_set, directory))
        directory.mkdir(parents=True, exist_ok=True)
        return (tmp_path / name).rename(directory / name)

    monkeypatch.setattr("jax_cifar.data.download.download_archive", download)
    for _ in range(2):
        assert_holds(load_cifar(spec), TINY10)
    assert asked == [("cifar10", user_cache)]
    assert decodes == [f"published archive {user_cache / name}"]
    # What lay in a default folder may be removed to save space: its decode is enough.
    (user_cache / name).unlink()
    splits = load_cifar(spec)
    assert_holds(splits, TINY10)
    assert splits.source.endswith("since removed")
    assert len(asked) == 1


@pytest.mark.usefixtures("no_network")
def test_no_network_and_no_data(user_cache: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_cifar(CIFAR10)
    for part in (str(user_cache), "cifar-10-binary.tar.gz", "configs/quickstart.py"):
        assert part in str(caught.value)
    assert not [file for file in user_cache.rglob("*") if file.is_file()]


@pytest.mark.usefixtures("no_network")
def test_download_needs_a_folder_that_can_be_written(user_cache: Path) -> None:
    user_cache.parent.mkdir()
    user_cache.write_text("in the way")
    with pytest.raises(DataError, match="jax_cifar"):
        load_cifar(CIFAR10)


def test_download_that_vanishes(monkeypatch: pytest.MonkeyPatch, user_cache: Path) -> None:
    monkeypatch.setattr("jax_cifar.data.download.download_archive", lambda name, directory: directory / "gone")
    with pytest.raises(DataError, match="gone was downloaded but is not there any more"):
        cifar.load_cifar(TINY10)


RACE = """
import sys
sys.path.insert(0, sys.argv[1])
from cifar_files import TINY10, make_part
from jax_cifar.data.cache import entry_path
from jax_cifar.data.cifar import load_cifar
from pathlib import Path
expected = make_part(TINY10, "train")
for _ in range(100):
    entry_path("cifar10", Path(sys.argv[2])).unlink(missing_ok=True)
    splits = load_cifar(TINY10, sys.argv[2])
    assert (splits.train.images == expected.images).all() and (splits.train.labels == expected.labels).all()
    assert "cannot write" not in splits.source, splits.source
"""


def test_processes_that_start_at_once_do_not_disturb_each_other(folder: Path, user_cache: Path) -> None:
    """Each removes the entry, decodes and writes it again, and reads the other's, a hundred times over."""
    command = [sys.executable, "-W", "error", "-c", RACE, str(Path(__file__).parent), str(folder)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    path = entry_path("cifar10", folder)
    assert list((user_cache / "decoded").iterdir()) == [path]
    assert read_entry(path, "cifar10", None) is not None
