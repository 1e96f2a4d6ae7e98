"""The published forms of CIFAR, whole and damaged: every fault is a DataError that names the file."""

import os
import pickle
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cifar_files import (
    TINY10,
    TINY100,
    as_published,
    binary_files,
    make_part,
    members_of,
    python2_pickle,
    python_files,
    tar_gz,
    write_archive,
    write_files,
)

from jax_cifar.data.cifar import find_source
from jax_cifar.data.dataset import Dataset, Decoded
from jax_cifar.data.layouts import load_pickle
from jax_cifar.data.published import CIFAR10, CIFAR100, CifarSpec, read_members
from jax_cifar.errors import DataError

both_sets = pytest.mark.parametrize("spec", [TINY10, TINY100], ids=["cifar10", "cifar100"])


def decode(spec: CifarSpec, folder: Path) -> Decoded:
    source = find_source(spec, folder)
    assert source is not None
    return source.read()


def assert_is_tiny(spec: CifarSpec, decoded: Decoded) -> None:
    assert list(decoded.parts) == ["train", "test"]
    for name, part in decoded.parts.items():
        expected = make_part(spec, name)  # type: ignore[arg-type]
        np.testing.assert_array_equal(part.images, expected.images)
        np.testing.assert_array_equal(part.labels, expected.labels)
    assert decoded.label_names == ("ant", "bee", "cow")


@both_sets
@pytest.mark.parametrize("place", ["cifar-10-batches-bin", "cifar-100-binary", "renamed", "."])
def test_binary_layout_in_its_folder_or_as_the_folder(spec: CifarSpec, place: str, tmp_path: Path) -> None:
    write_files(tmp_path / place, binary_files(spec))
    if place == spec.binary_folder:
        assert_is_tiny(spec, decode(spec, tmp_path))
    assert_is_tiny(spec, decode(spec, tmp_path / place))


@both_sets
def test_python_layout(spec: CifarSpec, tmp_path: Path) -> None:
    write_files(tmp_path / spec.python_folder, python_files(spec))
    assert_is_tiny(spec, decode(spec, tmp_path))


@both_sets
@pytest.mark.parametrize("layout", ["binary", "python"])
def test_archives_are_read_in_place(spec: CifarSpec, layout: str, tmp_path: Path) -> None:
    published = write_archive(spec, layout, tmp_path)  # type: ignore[arg-type]
    assert_is_tiny(spec, decode(published, tmp_path))
    assert len(list(tmp_path.iterdir())) == 1, "nothing may be extracted"


def test_a_prepared_tfds_folder_is_found_after_everything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path / "cifar10" / "3.0.2", {"dataset_info.json": b"{}", "cifar10-train.array_record": b"x"})
    parts = {"train": make_part(TINY10, "train"), "test": make_part(TINY10, "test")}
    decoded = Decoded(parts, TINY10.label_names)
    monkeypatch.setattr("jax_cifar.data.tfds.load_prepared", lambda root, spec: decoded if root == tmp_path else None)
    assert_is_tiny(TINY10, decode(TINY10, tmp_path))
    source = find_source(TINY10, tmp_path)
    assert source is not None
    assert {file.name for file in source.files} == {"dataset_info.json", "cifar10-train.array_record"}
    assert find_source(TINY100, tmp_path) is None
    write_files(tmp_path / TINY10.binary_folder, binary_files(TINY10, seed=1))
    assert (decode(TINY10, tmp_path).parts["train"].images != parts["train"].images).any()


def test_label_names_fall_back_on_the_published_ones(tmp_path: Path) -> None:
    files = binary_files(TINY10)
    del files[TINY10.names_file]
    write_files(tmp_path / TINY10.binary_folder, files)
    assert decode(TINY10, tmp_path).label_names == TINY10.label_names


def test_published_tables() -> None:
    assert [spec.images_in(batch) for spec in (CIFAR10, CIFAR100) for batch in (spec.batches[0], spec.test_batch)] == [
        10_000,
        10_000,
        50_000,
        10_000,
    ]
    assert [len(set(spec.label_names)) for spec in (CIFAR10, CIFAR100)] == [10, 100]
    assert list(CIFAR100.label_names) == sorted(CIFAR100.label_names)
    archives = [archive for spec in (CIFAR10, CIFAR100) for archive in spec.archives]
    assert [archive.layout for archive in archives] == ["binary", "python"] * 2
    assert [archive.size for archive in archives] == [170_052_171, 170_498_071, 168_513_733, 169_001_437]
    assert len({archive.sha256 for archive in archives if len(archive.sha256) == 64}) == 4


def replace_byte(content: bytes, position: int, value: int) -> bytes:
    return content[:position] + bytes([value]) + content[position + 1 :]


# What is done to one file of the binary layout, and what the message has to say.
BINARY_FAULTS: dict[str, tuple[str, Callable[[bytes], bytes | None], str]] = {
    "missing": ("data_batch_2.bin", lambda content: None, "is missing"),
    "empty": ("test_batch.bin", lambda content: b"", "has 0 bytes, expected 18,438"),
    "truncated": ("data_batch_1.bin", lambda content: content[:-1], "has 18,437 bytes, expected 18,438"),
    "record length": ("data_batch_1.bin", lambda content: content + b"\0" * 6, "6 records of 3,073 bytes"),
    "label": (
        "data_batch_2.bin",
        lambda content: replace_byte(content, 3073, 3),
        "record 1 has label 3, expected 0 to 2",
    ),
    "web page": ("test_batch.bin", lambda content: b"<!DOCTYPE html>", "has 15 bytes"),
    "class counts": ("test_batch.bin", lambda content: replace_byte(content, 0, 1), "1 images of class 0 (ant)"),
    "names": ("batches.meta.txt", lambda content: b"ant\nbee\nbee\n", "2 different label names, expected 3"),
    "binary names": ("batches.meta.txt", lambda content: b"\xff\xfe\0", "label names"),
}


@pytest.mark.parametrize("fault", BINARY_FAULTS)
def test_damaged_binary_layout(fault: str, tmp_path: Path) -> None:
    name, damage, message = BINARY_FAULTS[fault]
    files = binary_files(TINY10)
    content = damage(files.pop(name))
    folder = write_files(tmp_path / TINY10.binary_folder, files if content is None else {**files, name: content})
    with pytest.raises(DataError) as caught:
        decode(TINY10, tmp_path)
    assert message in str(caught.value)
    assert str(folder if fault == "class counts" else folder / name) in str(caught.value)


def test_coarse_labels_are_checked(tmp_path: Path) -> None:
    files = binary_files(TINY100)
    write_files(tmp_path, {**files, "test.bin": replace_byte(files["test.bin"], 2 * 3074, 2)})
    with pytest.raises(DataError, match=r"test\.bin, coarse labels: record 2 has label 2, expected 0 to 1"):
        decode(TINY100, tmp_path)


def test_the_other_set_is_never_taken(tmp_path: Path) -> None:
    write_files(tmp_path / TINY100.binary_folder, binary_files(TINY100))
    write_files(tmp_path / TINY100.python_folder, python_files(TINY100))
    assert find_source(TINY10, tmp_path) is None
    assert find_source(TINY10, tmp_path / TINY100.binary_folder) is None


def test_published_pickles_need_no_numpy_globals() -> None:
    value = {b"data": np.arange(12, dtype=np.uint8).reshape(3, 4), b"labels": [1, 2]}
    content = python2_pickle(value)
    with warnings.catch_warnings():
        # NumPy 2.4 warns about the dtype of old pickles; the reader under test must not.
        warnings.simplefilter("ignore")
        unrestricted = pickle.loads(content, encoding="bytes")
    np.testing.assert_array_equal(unrestricted[b"data"], value[b"data"])
    loaded = load_pickle(content, "file")
    assert loaded[b"labels"] == [1, 2]
    np.testing.assert_array_equal(loaded[b"data"].value, value[b"data"])


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_pickled_by_this_numpy(protocol: int, order: str) -> None:
    array = np.asarray(np.arange(12, dtype=np.uint8).reshape(3, 4), order=order)  # type: ignore[arg-type]
    np.testing.assert_array_equal(load_pickle(pickle.dumps(array, protocol), "file").value, array)


class Runs:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def test_foreign_globals_are_named_and_never_called(tmp_path: Path) -> None:
    victim = tmp_path / "made by the pickle"
    files = python_files(TINY10)
    for payload, name in (
        (Runs(os.mkdir, str(victim)), r"\w+\.mkdir"),
        (Runs(eval, "1"), r"(__builtin__|builtins)\.eval"),
    ):
        for protocol in (2, 5):
            files["data_batch_2"] = pickle.dumps([payload], protocol)
            write_files(tmp_path / TINY10.python_folder, files)
            with pytest.raises(DataError, match=rf"data_batch_2 is not a published CIFAR file: it asks for {name}"):
                decode(TINY10, tmp_path)
    assert not victim.exists()


def with_labels(labels: list[object]) -> bytes:
    return python2_pickle({b"data": planes_of_six(), b"labels": labels})


def planes_of_six() -> np.ndarray:
    return np.zeros((6, 3072), np.uint8)


PYTHON_FAULTS: dict[str, tuple[str, bytes, str]] = {
    "empty": ("data_batch_1", b"", "damaged pickle"),
    "truncated": ("data_batch_1", with_labels([0] * 6)[:-100], "damaged pickle|not a published"),
    "web page": ("data_batch_1", b"<html>sorry</html>", "not a published CIFAR file|damaged pickle"),
    "label": ("data_batch_1", with_labels([0, 1, 2, 0, 1, 3]), "record 5 has label 3"),
    "negative label": ("data_batch_1", with_labels([0, 1, 2, 0, 1, -1]), "record 5 has label -1"),
    "text labels": ("data_batch_1", with_labels([b"ant"] * 6), "no images and labels"),
    "label count": ("data_batch_1", with_labels([0, 1]), r"labels \[2\]"),
    "ragged": ("data_batch_1", with_labels([0, [1], 2, 0, 1, 2]), "no images and labels"),
    "image size": (
        "data_batch_1",
        python2_pickle({b"data": np.zeros((6, 3000), np.uint8), b"labels": [0] * 6}),
        r"images \[6, 3000\]",
    ),
    "dtype": ("data_batch_1", python2_pickle({b"data": np.zeros((6, 3072), np.float64)}), "b'f8', not of uint8"),
    "no array": ("data_batch_1", python2_pickle({b"data": [1, 2], b"labels": [0] * 6}), "no images and labels"),
    "other set": ("data_batch_1", python2_pickle({b"data": planes_of_six(), b"fine_labels": [0] * 6}), "of cifar10"),
    "no dictionary": ("data_batch_1", python2_pickle([1]), "no images and labels"),
    "forged state": ("data_batch_1", python2_pickle(planes_of_six()).replace(b"\x89", b"\x89\x89"), "damaged pickle"),
    "names": ("batches.meta", python2_pickle({b"label_names": [b"ant"]}), "1 different label names, expected 3"),
    "no names": ("batches.meta", python2_pickle({b"names": [b"ant"]}), "holds no label names"),
}


@pytest.mark.parametrize("fault", PYTHON_FAULTS)
def test_damaged_python_layout(fault: str, tmp_path: Path) -> None:
    name, content, message = PYTHON_FAULTS[fault]
    write_files(tmp_path / TINY10.python_folder, {**python_files(TINY10), name: content})
    with pytest.raises(DataError, match=message) as caught:
        decode(TINY10, tmp_path)
    assert f"{TINY10.python_folder}/{name}" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda good: b"\n <!DOCTYPE html><html>502 Bad Gateway</html>", "is a web page"),
        (lambda good: b"<html>".ljust(len(good), b" "), "is a web page"),
        (lambda good: good[:-10], "bytes, the published archive"),
        (lambda good: b"", "has 0 bytes"),
        (lambda good: replace_byte(good, len(good) // 2, good[len(good) // 2] ^ 1), "is damaged: its SHA-256 is"),
    ],
    ids=["web page", "web page of the right size", "truncated", "empty", "flipped bit"],
)
def test_archive_that_is_not_the_published_one(content: Callable[[bytes], bytes], message: str, tmp_path: Path) -> None:
    published = write_archive(TINY10, "binary", tmp_path)
    path = tmp_path / published.archives[0].file_name
    path.write_bytes(content(path.read_bytes()))
    with pytest.raises(DataError, match=message) as caught:
        decode(published, tmp_path)
    assert str(path) in str(caught.value)
    assert published.archives[0].url in str(caught.value)


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


HOSTILE_MEMBERS = {
    "parent": (member("../outside.bin"), "points outside"),
    "hidden parent": (member("cifar-10-batches-bin/../../outside.bin"), "points outside"),
    "absolute": (member("/tmp/outside.bin"), "points outside"),
    "symbolic link": (
        member("cifar-10-batches-bin/test_batch.bin", tarfile.SYMTYPE, "/etc/passwd"),
        "link or a device",
    ),
    "hard link": (member("cifar-10-batches-bin/x", tarfile.LNKTYPE, "cifar-10-batches-bin/y"), "link or a device"),
    "device": (member("cifar-10-batches-bin/x", tarfile.CHRTYPE), "link or a device"),
    "folder for file": (member("cifar-10-batches-bin/test_batch.bin", tarfile.DIRTYPE), "not a regular file"),
}


@pytest.mark.parametrize("kind", HOSTILE_MEMBERS)
def test_archive_with_hostile_members(kind: str, tmp_path: Path) -> None:
    info, message = HOSTILE_MEMBERS[kind]
    content = tar_gz([(info, b""), *members_of(TINY10.binary_folder, binary_files(TINY10))])
    published = as_published(TINY10, "binary", content)
    path = tmp_path / "data" / published.archives[0].file_name
    write_files(path.parent, {path.name: content})
    with pytest.raises(DataError, match=message) as caught:
        decode(published, path.parent)
    assert str(path) in str(caught.value)
    assert list(tmp_path.rglob("*")) == [path.parent, path]


def test_archive_with_a_member_larger_than_any_published_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = write_archive(TINY10, "binary", tmp_path)
    monkeypatch.setattr("jax_cifar.data.published.LARGEST_MEMBER", 18_437)
    with pytest.raises(DataError, match="claims 18,438 bytes"):
        decode(published, tmp_path)


@pytest.mark.parametrize("cut", [100, 20_000], ids=["not a tar", "cut inside a member"])
def test_archive_damaged_inside(cut: int, tmp_path: Path) -> None:
    """The sums are right and the content is not, as if a wrong table had been published."""
    whole = tar_gz(members_of(TINY10.binary_folder, binary_files(TINY10)))
    published = as_published(TINY10, "binary", whole[:cut])
    archive = published.archives[0]
    (tmp_path / archive.file_name).write_bytes(whole[:cut])
    with pytest.raises(DataError, match="cannot be read"):
        read_members(tmp_path / archive.file_name, archive, {"cifar-10-batches-bin/test_batch.bin"})


def test_archive_without_a_batch(tmp_path: Path) -> None:
    files = binary_files(TINY10)
    del files["data_batch_2.bin"]
    content = tar_gz(members_of(TINY10.binary_folder, files))
    published = as_published(TINY10, "binary", content)
    (tmp_path / published.archives[0].file_name).write_bytes(content)
    with pytest.raises(DataError, match=r"binary\.tar\.gz:cifar-10-batches-bin/data_batch_2\.bin is missing"):
        decode(published, tmp_path)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    """A folder in place of a file fails as an unreadable file does, also for root."""
    folder = write_files(tmp_path / TINY10.binary_folder, binary_files(TINY10))
    (folder / "test_batch.bin").unlink()
    (folder / "test_batch.bin").mkdir()
    with pytest.raises(DataError, match=r"test_batch\.bin cannot be read"):
        decode(TINY10, tmp_path)


def test_wrong_image_shape_of_a_prepared_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = Dataset(np.zeros((12, 8, 8, 3), np.uint8), make_part(TINY10, "train").labels)
    write_files(tmp_path / "cifar10" / "3.0.2", {"dataset_info.json": b"{}"})
    decoded = Decoded({"train": small, "test": make_part(TINY10, "test")}, TINY10.label_names)
    monkeypatch.setattr("jax_cifar.data.tfds.load_prepared", lambda root, spec: decoded)
    with pytest.raises(DataError, match="training images have shape"):
        decode(TINY10, tmp_path)
    monkeypatch.setattr("jax_cifar.data.tfds.load_prepared", lambda root, spec: None)
    with pytest.raises(DataError, match="no complete prepared TFDS folder"):
        decode(TINY10, tmp_path)
