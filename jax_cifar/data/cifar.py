"""Where CIFAR comes from: the decoded cache, a folder, or a verified download, in this order.

The folder is `data.dir`, else `$JAX_CIFAR_DATA`, else the user's cache folder. What the folder holds is always what is
used: a cached decode counts only while the files it was made of have the same paths, sizes and modification times.

A folder given as `data.dir` must exist and hold the set; it is never downloaded into, and the cache of a set that has
gone from it is not used. A default folder may be empty: a decode of what lay there before is then as good as the files,
and otherwise the binary archive is downloaded into it.
"""

import os
from pathlib import Path

from jax_cifar.data.cache import Entry, entry_path, read_entry, write_entry
from jax_cifar.data.dataset import Splits
from jax_cifar.data.published import CifarSpec
from jax_cifar.data.sources import Source, find_source
from jax_cifar.errors import DataError
from jax_cifar.files import user_cache_dir

ENVIRONMENT_VARIABLE = "JAX_CIFAR_DATA"


def default_data_dir() -> Path:
    """The folder that is looked in when `data.dir` is not given: `$JAX_CIFAR_DATA`, else the user's cache folder."""
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    return Path(named).expanduser() if named else user_cache_dir()


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
    if source is None:
        entry = read_entry(path, spec.name, fingerprint=None)
        if entry is not None:
            return _splits(entry, f"decoded cache {path} of {entry.source}, since removed")
        source = _download(spec, folder)
    fingerprint = source.fingerprint()
    entry = read_entry(path, spec.name, fingerprint)
    if entry is not None:
        return _splits(entry, f"{entry.source} (decoded cache {path})")
    entry = Entry(spec.name, source.description, fingerprint, source.decode())
    try:
        write_entry(path, entry)
    except OSError as error:
        reason = error.strerror or error
        return _splits(entry, f"{entry.source} (decoded at every start: cannot write {path.parent}, {reason})")
    return _splits(entry, entry.source)


def _existing_folder(directory: str | None) -> Path:
    """The folder to look in; one that somebody named has to exist."""
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    if directory is None and not named:
        return default_data_dir()
    folder = default_data_dir() if directory is None else Path(directory).expanduser()
    if not folder.is_dir():
        name, value = (f"${ENVIRONMENT_VARIABLE}", named) if directory is None else ("data.dir", directory)
        fault = "is a file, not a folder" if folder.exists() else "does not exist"
        raise DataError(
            f"{name} = {value!r}: {folder.absolute()} {fault}. Name the folder that holds the data set, leave it out "
            "to download, or train on embedded images: --config configs/quickstart.py."
        )
    return folder


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


def _splits(entry: Entry, source: str) -> Splits:
    train, test, label_names = entry.parts
    return Splits(entry.name, train, test, None, label_names, source)
