"""What CIFAR-10 and CIFAR-100 are, as published: classes, counts, files, archives; and the checks that a copy is whole.

An archive is verified by size and SHA-256, then read in memory; nothing is ever extracted.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009, and the data sets' page,
https://www.cs.toronto.edu/~kriz/cifar.html.
"""

import hashlib
import tarfile
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from jax_cifar.data.dataset import Dataset
from jax_cifar.errors import DataError
from jax_cifar.files import require_regular

IMAGE_SHAPE = (32, 32, 3)  # height, width, channel
IMAGE_BYTES = 3 * 32 * 32  # on disk: the red, green and blue planes, each row by row
# The largest member of the four archives is train.bin of CIFAR-100, 153.7 MB.
LARGEST_MEMBER = 160_000_000


@dataclass(frozen=True)
class PublishedArchive:
    """A file as its author published it."""

    file_name: str
    layout: Literal["binary", "python"]
    size: int  # bytes
    sha256: str
    url: str


def _published(file_name: str, layout: Literal["binary", "python"], size: int, sha256: str) -> PublishedArchive:
    return PublishedArchive(file_name, layout, size, sha256, f"https://www.cs.toronto.edu/~kriz/{file_name}")


@dataclass(frozen=True)
class CifarSpec:
    """One of the two sets. The files of the binary layout are `<batch>.bin`, of the python layout `<batch>`."""

    name: Literal["cifar10", "cifar100"]
    label_names: tuple[str, ...]
    train_per_class: int
    test_per_class: int
    train_batches: tuple[str, ...]  # each holds the same number of images
    test_batch: str
    binary_folder: str
    names_file: str  # in the binary folder: one label name a line
    python_folder: str
    meta_file: str  # in the python folder: a pickle with the label names
    key_prefix: str  # of "labels" and "label_names" in the pickles
    coarse_classes: int | None  # binary records of CIFAR-100 begin with a coarse label, which is checked and left out
    archives: tuple[PublishedArchive, ...]

    @property
    def num_classes(self) -> int:
        """Number of (fine) classes."""
        return len(self.label_names)

    @property
    def batches(self) -> tuple[str, ...]:
        """All batch files, without suffix; the test batch comes last."""
        return (*self.train_batches, self.test_batch)

    def images_in(self, batch: str) -> int:
        """Number of images in the file of `batch`."""
        if batch == self.test_batch:
            return self.num_classes * self.test_per_class
        return self.num_classes * self.train_per_class // len(self.train_batches)


def check_complete(spec: CifarSpec, train: Dataset, test: Dataset, where: str) -> None:
    """Raise `DataError` unless both parts hold exactly the published number of 32x32x3 images of every class."""
    for part, dataset, per_class in (("training", train, spec.train_per_class), ("test", test, spec.test_per_class)):
        if dataset.images.shape[1:] != IMAGE_SHAPE:
            raise DataError(f"{where}: {part} images have shape {dataset.images.shape[1:]}, expected {IMAGE_SHAPE}.")
        check_labels(dataset.labels, spec.num_classes, f"{where}, {part} part")
        counts = np.bincount(dataset.labels, minlength=spec.num_classes)
        wrong = np.flatnonzero(counts != per_class)
        if wrong.size:
            label = int(wrong[0])
            raise DataError(
                f"{where}: the {part} part has {counts[label]:,} images of class {label} ({spec.label_names[label]}), "
                f"{spec.name} as published has {per_class:,}. Put the published files there again."
            )


def check_labels(labels: np.ndarray, num_classes: int, where: str) -> None:
    """Raise `DataError` unless every label (integer [n]) lies between 0 and `num_classes` - 1."""
    outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if outside.size:
        first = int(outside[0])
        raise DataError(
            f"{where}: record {first} has label {int(labels[first])}, expected 0 to {num_classes - 1}. "
            "Put the published files there again."
        )


def check_names(names: tuple[str, ...], num_classes: int, where: str) -> tuple[str, ...]:
    """Return `names`, one for each class and all different; raise `DataError` if they are not."""
    if len(names) != num_classes or len(set(names)) != num_classes:
        raise DataError(f"{where} has {len(set(names))} different label names, expected {num_classes}.")
    return names


def read_members(path: Path, archive: PublishedArchive, wanted: Collection[str]) -> dict[str, bytes]:
    """Verify the archive at `path`, then read its `wanted` members; those it lacks are absent from the result.

    The file is opened once, so what was verified is what is read.

    Raises:
        DataError: the file is not `archive` (an HTML page, truncated, altered), cannot be read, or holds a link, an
            absolute name, a name with `..` or a member larger than any published one.
    """
    try:
        require_regular(path)
        with path.open("rb") as file:
            _verify(file, path, archive)
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:gz") as tar:
                members = {}
                for member in tar:
                    _check_member(member, path, archive)
                    if member.name in wanted:
                        stream = tar.extractfile(member)
                        if stream is None:
                            raise DataError(
                                f"{path}: its member {member.name} is not a regular file. {_again(archive)}"
                            )
                        members[member.name] = stream.read()
                return members
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"{path} cannot be read ({error}). {_again(archive)}") from error


def check_archive(path: Path, archive: PublishedArchive) -> None:
    """Raise `DataError` unless the file at `path` is `archive`, by size and SHA-256."""
    try:
        with path.open("rb") as file:
            _verify(file, path, archive)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}). {_again(archive)}") from error


def _verify(file: BufferedReader, path: Path, archive: PublishedArchive) -> None:
    head = file.read(256).lstrip().lower()
    size = file.seek(0, 2)
    if head.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")):
        raise DataError(f"{path} is a web page, not the published archive: the server sent an error. {_again(archive)}")
    if size != archive.size:
        raise DataError(f"{path} has {size:,} bytes, the published archive {archive.size:,}. {_again(archive)}")
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != archive.sha256:
        raise DataError(
            f"{path} is damaged: its SHA-256 is {digest[:16]}..., the published one {archive.sha256[:16]}.... "
            f"{_again(archive)}"
        )


def _check_member(member: tarfile.TarInfo, path: Path, archive: PublishedArchive) -> None:
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts:
        raise DataError(f"{path} holds a member that points outside of it, {member.name!r}. {_again(archive)}")
    if not (member.isfile() or member.isdir()):
        raise DataError(f"{path} holds a link or a device, {member.name!r}. {_again(archive)}")
    if member.size > LARGEST_MEMBER:
        raise DataError(f"{path}: its member {member.name!r} claims {member.size:,} bytes. {_again(archive)}")


def _again(archive: PublishedArchive) -> str:
    return f"Delete it and fetch {archive.url} again."


# By data set; the binary archive, which needs no pickle, comes first and is the one to download.
ARCHIVES: dict[str, tuple[PublishedArchive, ...]] = {
    "cifar10": (
        _published(
            "cifar-10-binary.tar.gz",
            "binary",
            170_052_171,
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        ),
        _published(
            "cifar-10-python.tar.gz",
            "python",
            170_498_071,
            "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        ),
    ),
    "cifar100": (
        _published(
            "cifar-100-binary.tar.gz",
            "binary",
            168_513_733,
            "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        ),
        _published(
            "cifar-100-python.tar.gz",
            "python",
            169_001_437,
            "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        ),
    ),
}

_CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_CIFAR100_NAMES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm
"""

CIFAR10 = CifarSpec(
    name="cifar10",
    label_names=_CIFAR10_NAMES,
    train_per_class=5000,
    test_per_class=1000,
    train_batches=("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"),
    test_batch="test_batch",
    binary_folder="cifar-10-batches-bin",
    names_file="batches.meta.txt",
    python_folder="cifar-10-batches-py",
    meta_file="batches.meta",
    key_prefix="",
    coarse_classes=None,
    archives=ARCHIVES["cifar10"],
)

CIFAR100 = CifarSpec(
    name="cifar100",
    label_names=tuple(_CIFAR100_NAMES.split()),
    train_per_class=500,
    test_per_class=100,
    train_batches=("train",),
    test_batch="test",
    binary_folder="cifar-100-binary",
    names_file="fine_label_names.txt",
    python_folder="cifar-100-python",
    meta_file="meta",
    key_prefix="fine_",
    coarse_classes=20,
    archives=ARCHIVES["cifar100"],
)
