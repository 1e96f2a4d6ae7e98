"""Prepared TFDS folders: made and read without TensorFlow, and nothing damaged is accepted."""

import dataclasses
import hashlib
import io
import socket
import struct
import sys
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tfds_folders import TINY10, TINY100, example, png, same, tfrecord, write_binary, write_tfrecords

from jax_cifar.data import tfds
from jax_cifar.data.published import CIFAR10, CifarSpec, PublishedArchive
from jax_cifar.data.tfds import load_prepared, prepare
from jax_cifar.data.tfds_records import crc32c
from jax_cifar.errors import DataError

SPECS = pytest.mark.parametrize("spec", [TINY10, TINY100], ids=lambda spec: spec.name)


@SPECS
def test_round_trip_is_bit_identical_and_quiet(
    spec: CifarSpec, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    train, test = write_binary(spec, tmp_path / "source")
    folder = prepare(spec, tmp_path / "source", tmp_path / "data")
    assert folder == tmp_path / "data" / spec.name / "3.0.2"
    assert [path.name for path in (tmp_path / "data").iterdir()] == [spec.name]
    assert [path.name for path in (tmp_path / "data" / spec.name).iterdir()] == ["3.0.2"]
    found = load_prepared(tmp_path / "data", spec)
    assert found is not None
    assert same(found.parts["train"], train)
    assert same(found.parts["test"], test)
    assert found.label_names == tuple(reversed(spec.label_names))
    assert capfd.readouterr() == ("", "")


def test_tfds_itself_reads_what_was_prepared(tmp_path: Path) -> None:
    _, test = write_binary(TINY100, tmp_path / "source")
    folder = prepare(TINY100, tmp_path / "source", tmp_path / "data")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tensorflow_datasets

        builder: Any = tensorflow_datasets.builder_from_directory(folder)
        examples = {example["id"]: example for example in builder.as_data_source("test")}
    assert builder.info.features["coarse_label"].names == ["fish", "flowers", "mammals"]
    for index, label in enumerate(test.labels):
        found = examples[f"test_{index:05d}".encode()]
        assert np.array_equal(found["image"], test.images[index])
        assert (found["label"], found["coarse_label"]) == (label, label % 3)


def test_prepares_from_the_archive(tmp_path: Path) -> None:
    train, _ = write_binary(TINY10, tmp_path)
    path = tmp_path / "tiny.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(tmp_path / TINY10.binary_folder, TINY10.binary_folder)
    content = path.read_bytes()
    archive = PublishedArchive(path.name, "binary", len(content), hashlib.sha256(content).hexdigest(), "")
    spec = dataclasses.replace(TINY10, archives=(archive,))
    prepare(spec, path, tmp_path / "data")
    found = load_prepared(tmp_path / "data", spec)
    assert found is not None
    assert same(found.parts["train"], train)
    path.write_bytes(content[:-1] + b"x")
    with pytest.raises(DataError, match=r"tiny\.tar\.gz is damaged"):
        prepare(spec, path, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_what_is_prepared_already_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / TINY10.name / "3.0.2"
    write_tfrecords(TINY10, folder)
    assert prepare(TINY10, tmp_path / "nowhere", tmp_path) == folder


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_binary(TINY10, tmp_path / "source")
    encode, calls = tfds._encode_png, []

    def full_disk(image: np.ndarray) -> io.BytesIO:
        calls.append(image)
        if len(calls) == 25:
            raise OSError(28, "No space left on device")
        return encode(image)

    monkeypatch.setattr(tfds, "_encode_png", full_disk)
    with pytest.raises(DataError, match="No space left"):
        prepare(TINY10, tmp_path / "source", tmp_path / "data")
    assert list((tmp_path / "data" / TINY10.name).iterdir()) == []


def test_a_folder_in_the_way_is_named(tmp_path: Path) -> None:
    write_binary(TINY10, tmp_path / "source")
    (tmp_path / "data" / TINY10.name / "3.0.2").mkdir(parents=True)
    (tmp_path / "data" / TINY10.name / "3.0.2" / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"3\.0\.2 is in the way"):
        prepare(TINY10, tmp_path / "source", tmp_path / "data")
    with pytest.raises(DataError, match=r"notes\.txt"):
        prepare(TINY10, tmp_path / "source", tmp_path / "data" / TINY10.name / "3.0.2" / "notes.txt")


def test_another_number_of_images_is_refused(tmp_path: Path) -> None:
    write_binary(TINY10, tmp_path)
    batches = [tmp_path / TINY10.binary_folder / f"{name}.bin" for name in TINY10.train_batches]
    batches[1].write_bytes(batches[0].read_bytes())
    with pytest.raises(DataError, match="of class"):
        prepare(TINY10, tmp_path, tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("shards", [1, 3])
def test_reads_tfrecord_folders_in_the_published_order(shards: int, tmp_path: Path) -> None:
    train, test = write_tfrecords(TINY10, tmp_path / "cifar10" / "3.0.2", shards)
    found = load_prepared(tmp_path, TINY10)
    assert found is not None
    assert same(found.parts["train"], train)
    assert same(found.parts["test"], test)
    assert found.label_names == TINY10.label_names


def test_without_ids_the_order_is_the_files(tmp_path: Path) -> None:
    train, _ = write_tfrecords(TINY10, tmp_path / "cifar10" / "1.0.2", with_id=False)
    found = load_prepared(tmp_path, TINY10)
    assert found is not None
    assert same(found.parts["train"], train.take(np.arange(len(train))[::-1]))


def test_without_a_names_file_the_published_names_are_taken(tmp_path: Path) -> None:
    write_tfrecords(TINY10, tmp_path / "cifar10" / "3.0.2")
    (tmp_path / "cifar10" / "3.0.2" / "label.labels.txt").unlink()
    found = load_prepared(tmp_path, TINY10)
    assert found is not None
    assert found.label_names == TINY10.label_names


def test_takes_the_newest_complete_version(tmp_path: Path) -> None:
    assert load_prepared(tmp_path, TINY10) is None
    root = tmp_path / "cifar10"
    for name in ("incomplete.ABC_3.0.2", "3.0.2", "config/3.0.10"):
        write_tfrecords(TINY10, root / name)
        if name != "config/3.0.10":
            (root / name / "dataset_info.json").write_text("damaged")
        if name == "incomplete.ABC_3.0.2":
            assert load_prepared(tmp_path, TINY10) is None
    assert load_prepared(tmp_path, TINY10) is not None
    assert load_prepared(tmp_path, TINY100) is None


def cut(content: bytes) -> bytes:
    return content[:-7]


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def huge_length(content: bytes) -> bytes:
    return struct.pack("<Q", 1 << 62) + content[8:]


def drop_a_record(content: bytes) -> bytes:
    return content[16 + struct.unpack("<Q", content[:8])[0] :]


def flip_a_label(content: bytes) -> bytes:
    place = content.index(b"label") + len(b"label") + 6
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def add_a_short_record(content: bytes) -> bytes:
    return tfrecord([b"ab"]) + content


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "record 19 is cut off"),
        (flip, "is damaged"),
        (flip_a_label, "wrong checksum of record 0"),
        (huge_length, "record 0 is cut off"),
        (add_a_short_record, "a record of 2 bytes"),
        (drop_a_record, "holds 19 records, expected 20"),
        (lambda content: b"", "holds 0 records"),
    ],
)
def test_a_damaged_tfrecord_file_is_named(damage: Callable[[bytes], bytes], message: str, tmp_path: Path) -> None:
    folder = tmp_path / "cifar10" / "3.0.2"
    write_tfrecords(TINY10, folder)
    path = folder / "cifar10-train.tfrecord-00000-of-00001"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=f"{path.name}.*{message}"):
        load_prepared(tmp_path, TINY10)


@pytest.mark.parametrize("damage", [cut, flip, lambda content: b"", lambda content: b"<html>" * 20000])
def test_a_damaged_array_record_file_is_named(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    write_binary(TINY10, tmp_path)
    folder = prepare(TINY10, tmp_path, tmp_path)
    path = folder / "cifar10-test.array_record-00000-of-00001"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=path.name):
        load_prepared(tmp_path, TINY10)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "cifar10" / "3.0.2"
    write_tfrecords(TINY10, folder, shards=2)
    path = folder / "cifar10-test.tfrecord-00001-of-00002"
    path.unlink()
    with pytest.raises(DataError, match=f"{path.name} is missing"):
        load_prepared(tmp_path, TINY10)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"label": 1, "image": png(np.zeros((28, 28, 3), np.uint8))}, "28x28"),
        ({"label": 1, "image": png(np.zeros((32, 32), np.uint8))}, "a L image"),
        ({"label": 1, "image": b"no picture"}, "cannot identify"),
        ({"label": 1}, "not enough values"),
        ({"image": png(np.zeros((32, 32, 3), np.uint8)), "label": b"cat"}, "not enough values"),
    ],
)
def test_a_record_that_is_no_cifar_image_is_named(
    features: dict[str, bytes | int], message: str, tmp_path: Path
) -> None:
    folder = tmp_path / "cifar10" / "3.0.2"
    write_tfrecords(TINY10, folder)
    good = example({"label": 1, "image": png(np.zeros((32, 32, 3), np.uint8))})
    path = folder / "cifar10-test.tfrecord-00000-of-00001"
    path.write_bytes(tfrecord([good] * 3 + [example(features)] + [good] * 6))
    with pytest.raises(DataError, match=f"{path.name}: record 3 .*{message}"):
        load_prepared(tmp_path, TINY10)


@pytest.mark.parametrize("broken", [b"\x0a\x05ab", b"\x0a", b"\x80" * 11 + b"\x08\x01", b"\x0b"])
def test_a_malformed_example_is_named(broken: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "cifar10" / "3.0.2"
    write_tfrecords(TINY10, folder)
    good = example({"label": 1, "image": png(np.zeros((32, 32, 3), np.uint8))})
    path = folder / "cifar10-test.tfrecord-00000-of-00001"
    path.write_bytes(tfrecord([good] * 3 + [broken.ljust(4, b"\0")] + [good] * 6))
    with pytest.raises(DataError, match=f"{path.name}: record 3 is not a CIFAR example"):
        load_prepared(tmp_path, TINY10)


def test_a_source_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere does not exist\. Name cifar-10-binary\.tar\.gz, or the folder"):
        prepare(TINY10, tmp_path / "nowhere", tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["cifar-10-python.tar.gz", "cifar-10-batches-py"])
def test_a_source_of_the_python_layout_is_not_called_damaged(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir() if name.endswith("py") else (tmp_path / name).write_bytes(b"\x1f\x8b")
    with pytest.raises(DataError, match=rf"{name} holds the python layout.*Name cifar-10-binary\.tar\.gz"):
        prepare(CIFAR10, tmp_path / name, tmp_path / "data")


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ("{", "dataset_info.json is damaged"),
        ("[]", "dataset_info.json is damaged"),
        ('{"name": "cifar10", "splits": [{"name": "train", "shardLengths": ["20"]}]}', "dataset_info.json.*test"),
        ('{"name": "cifar10", "splits": [{"name": "train"}, {"name": "test"}]}', "dataset_info.json.*shardLengths"),
    ],
)
def test_a_damaged_info_file_is_named(info: str, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "cifar10" / "3.0.2"
    write_tfrecords(TINY10, folder)
    (folder / "dataset_info.json").write_text(info)
    with pytest.raises(DataError, match=message):
        load_prepared(tmp_path, TINY10)


def test_another_file_format_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "cifar10" / "3.0.2"
    write_tfrecords(TINY10, folder)
    path = folder / "dataset_info.json"
    path.write_text(path.read_text().replace('"tfrecord"', '"parquet"'))
    with pytest.raises(DataError, match=r"'parquet' cannot be read; .*array_record"):
        load_prepared(tmp_path, TINY10)


@pytest.mark.parametrize(
    "missing", ["google.protobuf.message", "tensorflow_datasets.proto", "array_record.python.array_record_module"]
)
def test_where_packages_are_missing_the_extra_is_named(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_binary(TINY10, tmp_path)
    prepare(TINY10, tmp_path, tmp_path)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(DataError, match=rf"A TFDS folder needs {missing}\. .* pip install -e '\.\[tfds\]'$"):
        load_prepared(tmp_path, TINY10)


def test_no_folder_is_made_where_tfds_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_binary(TINY10, tmp_path / "source")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(DataError, match=r"needs tensorflow_datasets\. .* pip install -e '\.\[tfds\]'$"):
        prepare(TINY10, tmp_path / "source", tmp_path / "data")
    assert list((tmp_path / "data").rglob("*.array_record*")) == []


def test_crc32c_gives_the_published_values() -> None:
    # RFC 3720 B.4, and the check value of the CRC catalogue.
    records = [bytes(32), b"\xff" * 32, bytes(range(32)), b"123456789"]
    assert crc32c(records).tolist() == [0x8A9136AA, 0x62A8AB43, 0x46DD794E, 0xE3069283]
