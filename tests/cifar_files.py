"""Small CIFAR look-alikes for the tests: a spec of three classes and its files in every published form."""

import dataclasses
import hashlib
import io
import struct
import tarfile
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jax_cifar.data.dataset import Dataset
from jax_cifar.data.published import CIFAR10, CIFAR100, CifarSpec, PublishedArchive

TINY10 = dataclasses.replace(
    CIFAR10,
    label_names=("ant", "bee", "cow"),
    train_per_class=4,
    test_per_class=2,
    train_batches=("data_batch_1", "data_batch_2"),
    archives=(),
)
TINY100 = dataclasses.replace(
    CIFAR100, label_names=("ant", "bee", "cow"), train_per_class=4, test_per_class=2, coarse_classes=2, archives=()
)


def make_part(spec: CifarSpec, part: Literal["train", "test"], seed: int = 0) -> Dataset:
    """Random images; labels 0, 1, 2, 0, 1, 2, ..."""
    per_class = spec.train_per_class if part == "train" else spec.test_per_class
    count = per_class * spec.num_classes
    random = np.random.default_rng([seed, part == "test"])
    images = random.integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)
    return Dataset(images, (np.arange(count) % spec.num_classes).astype(np.int32))


def batches(spec: CifarSpec, seed: int = 0) -> dict[str, Dataset]:
    """The content of every batch file."""
    train = make_part(spec, "train", seed)
    size = len(train) // len(spec.train_batches)
    chunks = {name: train.take(np.arange(size) + size * i) for i, name in enumerate(spec.train_batches)}
    return {**chunks, spec.test_batch: make_part(spec, "test", seed)}


def planes(images: np.ndarray) -> np.ndarray:
    """One row of colour planes an image."""
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def binary_files(spec: CifarSpec, seed: int = 0) -> dict[str, bytes]:
    """File name -> content of the binary layout."""
    files = {}
    for name, part in batches(spec, seed).items():
        labels = part.labels.astype(np.uint8)[:, None]
        coarse = labels[:, :0] if spec.coarse_classes is None else labels % spec.coarse_classes
        files[f"{name}.bin"] = np.concatenate([coarse, labels, planes(part.images)], axis=1).tobytes()
    # The published file ends in an empty line.
    files[spec.names_file] = "\n".join([*spec.label_names, "", ""]).encode()
    return files


def python_files(spec: CifarSpec, seed: int = 0) -> dict[str, bytes]:
    """File name -> content of the python layout."""
    prefix = spec.key_prefix.encode()
    files = {
        name: python2_pickle({b"data": planes(part.images), prefix + b"labels": part.labels.tolist()})
        for name, part in batches(spec, seed).items()
    }
    names = [name.encode() for name in spec.label_names]
    return {**files, spec.meta_file: python2_pickle({prefix + b"label_names": names})}


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def tar_gz(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def members_of(folder: str, files: dict[str, bytes]) -> list[tuple[tarfile.TarInfo, bytes]]:
    """Members as published: the folder itself, then its files."""
    top = tarfile.TarInfo(folder)
    top.type = tarfile.DIRTYPE
    return [(top, b""), *((tarfile.TarInfo(f"{folder}/{name}"), content) for name, content in files.items())]


def as_published(spec: CifarSpec, layout: Literal["binary", "python"], content: bytes) -> CifarSpec:
    """`spec`, with an archive of this content as the published one."""
    kind = CIFAR10 if spec.name == "cifar10" else CIFAR100
    name = next(archive.file_name for archive in kind.archives if archive.layout == layout)
    digest = hashlib.sha256(content).hexdigest()
    archive = PublishedArchive(name, layout, len(content), digest, f"https://example.org/{name}")
    return dataclasses.replace(spec, archives=(archive,))


def write_archive(spec: CifarSpec, layout: Literal["binary", "python"], directory: Path) -> CifarSpec:
    """Write the set's archive into `directory`; returns the spec that knows its sums."""
    folder = spec.binary_folder if layout == "binary" else spec.python_folder
    content = tar_gz(members_of(folder, binary_files(spec) if layout == "binary" else python_files(spec)))
    published = as_published(spec, layout, content)
    (directory / published.archives[0].file_name).write_bytes(content)
    return published


def python2_pickle(value: Any) -> bytes:
    """A pickle of protocol 2 as Python 2 and NumPy 1 wrote the published files."""
    return b"\x80\x02" + _python2(value) + b"."


def _python2(value: Any) -> bytes:
    if isinstance(value, bytes):
        return b"T" + struct.pack("<i", len(value)) + value
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, tuple):
        return b"(" + b"".join(map(_python2, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(_python2, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(_python2(key) + _python2(item) for key, item in value.items()) + b"u"
    code = value.dtype.str[1:].encode()
    dtype = b"cnumpy\ndtype\n" + _python2((code, 0, 1)) + b"R(K\x03" + _python2(b"|") + b"NNN"
    dtype += _python2(-1) + _python2(-1) + b"K\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + _python2((0,)) + _python2(b"b") + b"tR"
    return array + b"(K\x01" + _python2(value.shape) + dtype + b"\x89" + _python2(value.tobytes()) + b"tb"
