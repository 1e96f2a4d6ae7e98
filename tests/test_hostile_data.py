"""Data of somebody who means harm: nothing is run, waited for or unpacked without end, and nothing read elsewhere."""

import io
import json
import os
import pickle
import threading
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cifar_files import TINY10, as_published, batches, binary_files, planes, python2_pickle, write_files
from PIL import Image

from jax_cifar.config import DataConfig
from jax_cifar.data import cifar, load_data, npz, pictures, read_npz, tfds_records
from jax_cifar.data.layouts import decode_python, load_pickle
from jax_cifar.data.published import read_members
from jax_cifar.data.tfds import load_prepared, prepare
from jax_cifar.errors import DataError


def write_pictures(folder: Path) -> Path:
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (2, 2)).save(folder / name / "1.png")
    return folder


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (os.mkfifo, "pipe or a device"),
        (lambda at: at.symlink_to("/dev/zero"), "is a link that leads out of"),
        (lambda at: at.symlink_to("/etc/passwd"), "is a link that leads out of"),
        (lambda at: at.symlink_to("../../../outside/1.png"), "is a link that leads out of"),
        (lambda at: at.symlink_to("nowhere"), "No such file"),
        (lambda at: at.symlink_to(at.name), "symbolic links"),
        (lambda at: at.symlink_to(at.parent.parent / "b"), "is a link to a folder"),
    ],
)
def test_a_folder_of_pictures_is_read_from_its_own_files_only(make: Any, message: str, tmp_path: Path) -> None:
    write_pictures(tmp_path / "outside")
    folder = write_pictures(tmp_path / "mine")
    make(folder / "a" / "2.png")
    with pytest.raises(DataError, match=message):
        load_data(DataConfig(name="folder", dir=str(folder), test_fraction=0.5))


def test_a_class_may_not_lie_elsewhere_and_a_link_within_the_folder_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = write_pictures(tmp_path / "mine")
    for name in ("a", "b"):
        (folder / name / "2.png").symlink_to(folder / name / "1.png")
    (tmp_path / "linked").symlink_to(folder)
    config = DataConfig(name="folder", dir=str(tmp_path / "linked"), test_fraction=0.5)
    assert len(load_data(config).train) == 2
    (folder / "c").symlink_to(write_pictures(tmp_path / "outside") / "a")
    with pytest.raises(DataError, match=r"linked/c is a link"):
        load_data(config)


def test_of_large_pictures_one_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_LARGE_PIXELS", 15)
    at_once, most, turning = [], [], pictures.picture_to_array

    def watched(image: Image.Image, size: int) -> np.ndarray:
        at_once.append(threading.get_ident())
        most.append(len(at_once))
        time.sleep(0.01)
        at_once.remove(threading.get_ident())
        return turning(image, size)

    monkeypatch.setattr(pictures, "picture_to_array", watched)
    paths = [tmp_path / f"{index}.png" for index in range(6)]
    for path in paths:
        Image.new("RGB", (4, 4)).save(path)
    pictures.read_pictures(paths, 2)
    assert max(most) == 1
    monkeypatch.setattr(pictures, "_LARGE_PIXELS", 16)
    pictures.read_pictures(paths, 2)
    assert max(most) > 1


def test_a_picture_of_kilobytes_with_too_many_pixels_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "x.png")
    content = bytearray((tmp_path / "x.png").read_bytes())
    content[16:24] = (60_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(DataError, match="has more than 89,478,485 pixels"):
        pictures.read_pictures([tmp_path / "x.png"], 2)


def npy(shape: Any, dtype: str = "|u1", content: bytes = b"") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"shape": shape, "fortran_order": False, "descr": dtype})
    return stream.getvalue() + content


def write_npz(path: Path, images: bytes, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("images.npy", images)
        archive.writestr("labels.npy", npy((1,), "<i8", bytes(8)))
    return path


class Evil:
    def __reduce__(self) -> Any:
        return (os.mkdir, ("executed",))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (npy((10**12, 2, 2, 3)), r"claims an array of 12,000,000,000,000 bytes in \d+"),
        (npy((-1, 2, 2, 3)), "claims an array"),
        (npy((1, 2, 2, 3), content=bytes(13)), "claims an array of 12 bytes"),
        (npy((1,), "<U100000000"), "claims an array of 400,000,000 bytes"),
        (npy((1,), "|O", pickle.dumps(Evil())), "Python objects"),
        (pickle.dumps(Evil()), "magic string"),
        (b"\x93NUMPY\x01\x00\x10\x00" + b"9" * 16, "Header is not a dictionary"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535, "header|large"),
        (b"\x93NUMPY\x09\x00", "9"),
    ],
)
def test_an_array_is_no_larger_than_its_file_and_never_unpickled(
    images: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        read_npz(write_npz(tmp_path / "x.npz", images))
    assert not (tmp_path / "executed").exists()


def test_zeros_without_end_are_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz, "_UNPACKED_BYTES", 1 << 16)
    shape = (100, 32, 32, 1)
    with pytest.raises(DataError, match=r"images\.npy unpacks from \d,?\d+ to 102,528 bytes"):
        read_npz(write_npz(tmp_path / "x.npz", npy(shape, content=bytes(102_400))))
    with pytest.raises(DataError, match=r"(images|labels)\.npy is packed as NumPy packs nothing"):
        read_npz(write_npz(tmp_path / "x.npz", npy(shape, content=bytes(102_400)), zipfile.ZIP_BZIP2))
    noise = np.random.default_rng(0).bytes(102_400)
    with pytest.raises(DataError, match="100 images and 1 labels"):  # read, and so refused for another reason
        read_npz(write_npz(tmp_path / "x.npz", npy(shape, content=noise)))


def test_a_pipe_in_place_of_a_data_file_is_not_waited_for(tmp_path: Path) -> None:
    folder = write_files(tmp_path / TINY10.binary_folder, binary_files(TINY10))
    published = as_published(TINY10, "binary", b"")
    (archive,) = published.archives
    (folder / "data_batch_1.bin").unlink()
    pipes = [tmp_path / "x.npz", folder / "data_batch_1.bin", tmp_path / archive.file_name]
    for path in pipes:
        os.mkfifo(path)
    with pytest.raises(DataError, match="pipe or a device"):
        read_npz(pipes[0])
    with pytest.raises(DataError, match="pipe or a device"):
        cifar.load_cifar(TINY10, str(tmp_path))
    for read in (lambda: read_members(pipes[2], archive, []), lambda: prepare(published, pipes[2], tmp_path / "out")):
        with pytest.raises(DataError, match="pipe or a device"):
            read()


def test_a_file_larger_than_any_published_one_is_not_read(tmp_path: Path) -> None:
    folder = write_files(tmp_path / TINY10.binary_folder, binary_files(TINY10))
    os.truncate(folder / "data_batch_1.bin", 10 << 30)  # zeros that take no space on the disk
    with pytest.raises(DataError, match=r"it has 10,737,418,240 bytes, expected at most 160,000,000"):
        cifar.load_cifar(TINY10, str(tmp_path))


def test_a_pickle_calls_nothing_and_sets_no_memory_aside_for_what_it_claims() -> None:
    with pytest.raises(DataError, match=r"it asks for posix\.mkdir"):
        load_pickle(pickle.dumps(Evil()), "x")
    began = time.monotonic()
    # An object put at place 2,000,000,000 of the memory: a table of 16 GB for the unpickler written in C.
    assert load_pickle(b"\x80\x02]r\x00\x94\x35\x77.", "x") == []
    assert time.monotonic() - began < 0.5


def test_labels_that_hold_one_another_are_not_walked() -> None:
    images = python2_pickle(planes(batches(TINY10)["test_batch"].images))[2:-1]
    # A list of ten ones, and forty times a list of ten times the list before: 10^41 labels.
    labels = b"](" + b"K\x01" * 10 + b"eq\x01" + (b"0](" + b"h\x01" * 10 + b"eq\x01") * 40
    content = b"\x80\x02}(U\x04data" + images + b"U\x06labels" + labels + b"u."
    with pytest.raises(DataError, match="holds no images and labels"):
        decode_python(TINY10, lambda name: content, "x")


@pytest.mark.parametrize("template", ["../../x", "/etc/passwd", "{SPLIT:>9999999999}/x", "{DATASET.__class__}/..", ""])
def test_a_prepared_folder_names_files_of_its_own(template: str, tmp_path: Path) -> None:
    folder = tmp_path / TINY10.name / "3.0.2"
    folder.mkdir(parents=True)
    splits = [{"name": name, "shardLengths": ["1"], "filepathTemplate": template} for name in ("train", "test")]
    (folder / "dataset_info.json").write_text(json.dumps({"name": "x", "splits": splits}))
    with pytest.raises(DataError, match="is no file in this folder"):
        load_prepared(tmp_path, TINY10)


def test_a_record_is_no_larger_than_a_picture_of_cifar(tmp_path: Path) -> None:
    record = (1 << 17).to_bytes(8, "little") + bytes(4) + bytes((1 << 17) + 4)
    (tmp_path / "x").write_bytes(record)
    with pytest.raises(DataError, match="record 0 has 131,072 bytes"):
        tfds_records.read_records(tmp_path / "x", "tfrecord")
