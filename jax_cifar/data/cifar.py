"""Where CIFAR comes from: the decoded cache, a folder, or a verified download, in this order.

The folder is `data.dir`, else `$JAX_CIFAR_DATA`, else the user's cache folder. What the folder holds is always what is
used: a cached decode counts only while the files it was made of have the same paths, sizes and modification times.

A folder given as `data.dir` must exist and hold the set; it is never downloaded into, and the cache of a set that has
gone from it is not used. A default folder may be empty: a decode of what lay there before is then as good as the files,
and otherwise the binary archive is downloaded into it.
"""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from jax_cifar.data.cache import Source, entry_path, load_decoded, read_entry
from jax_cifar.data.dataset import Decoded, Splits
from jax_cifar.data.layouts import Reader, decode_binary, decode_python
from jax_cifar.data.published import ARCHIVES, LARGEST_MEMBER, CifarSpec, PublishedArchive, check_complete, read_members
from jax_cifar.errors import DataError
from jax_cifar.files import expand, read_bytes, user_cache_dir

Layout = Literal["binary", "python"]
_DECODERS: dict[Layout, Callable[[CifarSpec, Reader, str], Decoded]] = {
    "binary": decode_binary,
    "python": decode_python,
}

_DAY, _MONTH = 86_400, 30 * 86_400  # seconds
ENVIRONMENT_VARIABLE = "JAX_CIFAR_DATA"


def default_data_dir() -> Path:
    """The folder that is looked in when `data.dir` is not given: `$JAX_CIFAR_DATA`, else the user's cache folder."""
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    return expand(named) if named else user_cache_dir()


def load_cifar(spec: CifarSpec, directory: str | None = None) -> Splits:
    """Load the training and test images of `spec`; `directory` is `data.dir`.

    Raises:
        DataError: the folder is missing or holds no such set, the files are not as published, or nothing is at hand and
            the download fails.
    """
    folder = _existing_folder(directory)
    path = entry_path(spec.name, folder)
    source = find_source(spec, folder)
    if source is None and directory is not None:
        raise DataError(_nothing_there(spec, folder))
    if directory is None:
        _remove_leftovers(folder)
    if source is None:
        entry = read_entry(path, spec.name, fingerprint=None)
        if entry is not None:
            return _splits(spec, entry.decoded, f"decoded cache {path} of {entry.source}, since removed")
        source = _download(spec, folder)
    return _splits(spec, *load_decoded(source, path))


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


def _existing_folder(directory: str | None) -> Path:
    """The folder to look in; one that somebody named has to exist."""
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    if directory is None and not named:
        return default_data_dir()
    folder = default_data_dir() if directory is None else expand(directory)
    if not folder.is_dir():
        name, value = (f"${ENVIRONMENT_VARIABLE}", named) if directory is None else ("data.dir", directory)
        fault = "is a file, not a folder" if folder.exists() else "does not exist"
        raise DataError(
            f"{name} = {value!r}: {folder.absolute()} {fault}. Name the folder that holds the data set, leave it out "
            "to download, or train on embedded images: --config configs/quickstart.py."
        )
    return folder


def _remove_leftovers(folder: Path) -> None:
    """Remove what downloads have left that nobody goes on with: the archive came by another way, or a month ago."""
    for archive in (archive for archives in ARCHIVES.values() for archive in archives):
        part = folder / f"{archive.file_name}.part"
        # Another process may be at it, or the folder not be ours.
        with contextlib.suppress(OSError):
            age = time.time() - part.stat().st_mtime
            if age > (_DAY if (folder / archive.file_name).exists() else _MONTH):
                part.unlink()


def _download(spec: CifarSpec, folder: Path) -> Source:
    from jax_cifar.data.download import download_archive

    path = download_archive(spec.name, folder)
    source = find_source(spec, folder)
    if source is None:
        raise DataError(f"{path} was downloaded but is not there any more. Start again.")
    return source


def _nothing_there(spec: CifarSpec, folder: Path) -> str:
    archives = ", ".join(archive.file_name for archive in spec.archives)
    first = spec.archives[0]
    return (
        f"data.dir = {str(folder)!r} holds no {spec.name}: looked for {spec.binary_folder}/, {spec.python_folder}/, "
        f"{archives} and a prepared TFDS folder. Put {first.file_name} there ({first.url}), leave data.dir out to "
        "download it, or train on embedded images: --config configs/quickstart.py."
    )


def _folder_name(spec: CifarSpec, layout: Layout) -> str:
    return spec.binary_folder if layout == "binary" else spec.python_folder


def _batch_files(spec: CifarSpec, layout: Layout) -> list[str]:
    return [f"{batch}.bin" if layout == "binary" else batch for batch in spec.batches]


def _layout_files(spec: CifarSpec, layout: Layout) -> list[str]:
    return [*_batch_files(spec, layout), spec.names_file if layout == "binary" else spec.meta_file]


def _extracted(spec: CifarSpec, layout: Layout, place: Path) -> Source:
    def read(name: str) -> bytes | None:
        try:
            return read_bytes(place / name, LARGEST_MEMBER)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DataError(f"{place / name} cannot be read ({error.strerror}).") from None

    # A missing file is left for the decoder to name, or to do without.
    files = tuple(place / name for name in _layout_files(spec, layout) if (place / name).exists())
    return _checked(spec, f"{layout} files in {place}", files, lambda: _DECODERS[layout](spec, read, str(place)))


def _archived(spec: CifarSpec, archive: PublishedArchive, path: Path) -> Source:
    def read() -> Decoded:
        prefix = _folder_name(spec, archive.layout)
        wanted = {f"{prefix}/{name}": name for name in _layout_files(spec, archive.layout)}
        members = {wanted[name]: content for name, content in read_members(path, archive, wanted).items()}
        return _DECODERS[archive.layout](spec, members.get, f"{path}:{prefix}")

    return _checked(spec, f"published archive {path}", (path,), read)


def _prepared(spec: CifarSpec, folder: Path) -> Source | None:
    # TFDS's own layout: <name>/<version>, or <name>/<config>/<version>.
    infos = [info for depth in ("*", "*/*") for info in (folder / spec.name).glob(f"{depth}/dataset_info.json")]
    if not infos:
        return None

    def read() -> Decoded:
        from jax_cifar.data.tfds import load_prepared

        decoded = load_prepared(folder, spec)
        if decoded is None:
            raise DataError(f"{folder / spec.name} is no complete prepared TFDS folder. Prepare it again.")
        return decoded

    files = tuple(sorted(file for info in infos for file in info.parent.iterdir() if file.is_file()))
    return _checked(spec, f"prepared TFDS folder {folder / spec.name}", files, read)


def _checked(spec: CifarSpec, description: str, files: tuple[Path, ...], read: Callable[[], Decoded]) -> Source:
    """A source whose reading fails where the set is not complete."""

    def read_all() -> Decoded:
        decoded = read()
        check_complete(spec, decoded.parts["train"], decoded.parts["test"], description)
        return decoded

    return Source(spec.name, description, files, read_all)


def _splits(spec: CifarSpec, decoded: Decoded, origin: str) -> Splits:
    return Splits(spec.name, decoded.parts["train"], decoded.parts["test"], None, decoded.label_names, origin)
