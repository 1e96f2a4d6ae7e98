"""Finding a CIFAR set in a folder: as extracted files, as a published archive, or as a prepared TFDS folder."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from jax_cifar.data.archive import PublishedArchive, read_members
from jax_cifar.data.binary import Parts, Reader, decode_binary
from jax_cifar.data.pickles import decode_python
from jax_cifar.data.published import CifarSpec, check_complete
from jax_cifar.errors import DataError

Layout = Literal["binary", "python"]
_DECODERS: dict[Layout, Callable[[CifarSpec, Reader, str], Parts]] = {"binary": decode_binary, "python": decode_python}


@dataclass(frozen=True)
class Source:
    """Files that hold one set, found but not yet read."""

    spec: CifarSpec
    description: str  # for the console
    files: tuple[Path, ...]  # everything that the decoded arrays depend on
    read: Callable[[], Parts]

    def fingerprint(self) -> list[list[str | int]]:
        """Path, size and modification time of every file, which change when the files do (JSON values)."""
        try:
            stats = [(file, file.stat()) for file in self.files]
        except OSError as error:
            raise DataError(f"{error.filename} cannot be read ({error.strerror}).") from None
        return [[str(file.resolve()), stat.st_size, stat.st_mtime_ns] for file, stat in stats]

    def decode(self) -> Parts:
        """Read and check everything: train, test and label names; `DataError` where the set is not as published."""
        train, test, names = self.read()
        check_complete(self.spec, train, test, self.description)
        return train, test, names


def find_source(spec: CifarSpec, folder: Path) -> Source | None:
    """The first form of the set that lies in `folder`, or None; no image is read yet.

    Extracted files come before archives, binary before python (no pickle), prepared TFDS folders last. Extracted files
    may lie in their published folder or in `folder` itself. What is found first is used or reported, never passed over.
    """
    layouts: tuple[Layout, ...] = ("binary", "python")
    for layout in layouts:
        for place in (folder / _folder_name(spec, layout), folder):
            files = tuple(place / file for file in _batch_files(spec, layout))
            named = place.name == _folder_name(spec, layout) and place.is_dir()
            if named or all(file.is_file() for file in files):
                return _extracted(spec, layout, place)
    for archive in spec.archives:
        if (folder / archive.file_name).is_file():
            return _archived(spec, archive, folder / archive.file_name)
    return _prepared(spec, folder)


def _folder_name(spec: CifarSpec, layout: Layout) -> str:
    return spec.binary_folder if layout == "binary" else spec.python_folder


def _batch_files(spec: CifarSpec, layout: Layout) -> list[str]:
    return [f"{batch}.bin" if layout == "binary" else batch for batch in spec.batches]


def _layout_files(spec: CifarSpec, layout: Layout) -> list[str]:
    return [*_batch_files(spec, layout), spec.names_file if layout == "binary" else spec.meta_file]


def _extracted(spec: CifarSpec, layout: Layout, place: Path) -> Source:
    def read(name: str) -> bytes | None:
        try:
            return (place / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DataError(f"{place / name} cannot be read ({error.strerror}).") from None

    # A missing file is left for the decoder to name, or to do without.
    files = tuple(place / name for name in _layout_files(spec, layout) if (place / name).exists())
    return Source(spec, f"{layout} files in {place}", files, partial(_DECODERS[layout], spec, read, str(place)))


def _archived(spec: CifarSpec, archive: PublishedArchive, path: Path) -> Source:
    def read() -> Parts:
        prefix = _folder_name(spec, archive.layout)
        wanted = {f"{prefix}/{name}": name for name in _layout_files(spec, archive.layout)}
        members = {wanted[name]: content for name, content in read_members(path, archive, wanted).items()}
        return _DECODERS[archive.layout](spec, members.get, f"{path}:{prefix}")

    return Source(spec, f"published archive {path}", (path,), read)


def _prepared(spec: CifarSpec, folder: Path) -> Source | None:
    # TFDS's own layout: <name>/<version>, or <name>/<config>/<version>.
    infos = [info for depth in ("*", "*/*") for info in (folder / spec.name).glob(f"{depth}/dataset_info.json")]
    if not infos:
        return None

    def read() -> Parts:
        from jax_cifar.data.tfds import load_prepared

        parts = load_prepared(folder, spec)
        if parts is None:
            raise DataError(f"{folder / spec.name} is no complete prepared TFDS folder. Prepare it again.")
        return parts

    files = tuple(sorted(file for info in infos for file in info.parent.iterdir() if file.is_file()))
    return Source(spec, f"prepared TFDS folder {folder / spec.name}", files, read)
