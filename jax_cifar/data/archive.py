"""The four published CIFAR archives: verified by size and SHA-256, then read in memory; nothing is ever extracted."""

import hashlib
import tarfile
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Literal

from jax_cifar.errors import DataError

# The largest member of the four archives is train.bin of CIFAR-100, 153.7 MB.
_LARGEST_MEMBER = 160_000_000


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


def read_members(path: Path, archive: PublishedArchive, wanted: Collection[str]) -> dict[str, bytes]:
    """Verify the archive at `path`, then read its `wanted` members; those it lacks are absent from the result.

    The file is opened once, so what was verified is what is read.

    Raises:
        DataError: the file is not `archive` (an HTML page, truncated, altered), cannot be read, or holds a link, an
            absolute name, a name with `..` or a member larger than any published one.
    """
    try:
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
    if member.size > _LARGEST_MEMBER:
        raise DataError(f"{path}: its member {member.name!r} claims {member.size:,} bytes. {_again(archive)}")


def _again(archive: PublishedArchive) -> str:
    return f"Delete it and fetch {archive.url} again."
