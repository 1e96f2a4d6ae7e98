"""The decoded cache: one file a data set and data folder, so that the second start reads plain arrays.

A file is a sequence of arrays in NumPy's .npy format: a JSON header as bytes, its CRC-32, and the images and labels of
every part. The header holds the CRC-32 of each array and the channel sums of the images, so that nobody has to read
them over a second time. It is written at once or not at all, and a damaged one counts as none.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jax_cifar.data.dataset import Dataset, Decoded, ImageSums
from jax_cifar.errors import DataError
from jax_cifar.files import atomic_write, user_cache_dir
from jax_cifar.progress import progress

_FORMAT = 2
_READ_BYTES = 1 << 20  # read and summed up while they are in the processor's cache


@dataclass(frozen=True)
class Source:
    """Files that hold a data set, found but not yet read."""

    name: str  # of the data set
    description: str  # for the console
    files: tuple[Path, ...]  # everything that the decoded arrays depend on
    read: Callable[[], Decoded]  # raises DataError where the files are not what they claim to be

    def fingerprint(self) -> str:
        """A sum over path, size and modification time of every file, which change when the files do.

        Of a link both paths count: its own says the label, its target holds the pixels.
        """
        try:
            stats = [(file, file.stat()) for file in self.files]
        except OSError as error:
            raise DataError(f"{error.filename} cannot be read ({error.strerror}).") from None
        facts = [[str(file.absolute()), str(file.resolve()), stat.st_size, stat.st_mtime_ns] for file, stat in stats]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


@dataclass(frozen=True)
class Entry:
    """What a cache file holds: the arrays, and the description and fingerprint of the files they came from."""

    name: str
    source: str
    fingerprint: str
    decoded: Decoded


def load_decoded(source: Source, path: Path) -> tuple[Decoded, str]:
    """What `source` holds, from the cache file `path` where that was made of these very files; and where it came from.

    A cache that cannot be written costs time and is told, no more.

    Raises:
        DataError: the files cannot be read or are not what they claim to be.
    """
    fingerprint = source.fingerprint()
    entry = read_entry(path, source.name, fingerprint)
    if entry is not None:
        return entry.decoded, f"{entry.source} (decoded cache {path})"
    with progress(f"decoding {source.name}"):
        decoded = source.read()
    try:
        write_entry(path, Entry(source.name, source.description, fingerprint, decoded))
    except OSError as error:
        reason = error.strerror or error
        return decoded, f"{source.description} (decoded at every start: cannot write {path.parent}, {reason})"
    return decoded, source.description


def entry_path(name: str, folder: Path) -> Path:
    """The cache file of set `name` as it lies in the data folder `folder`."""
    key = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    return user_cache_dir() / "decoded" / f"{name}-{key}.npys"


def read_entry(path: Path, name: str, fingerprint: str | None) -> Entry | None:
    """Read and verify the cache file at `path`.

    Returns None where there is no such file, it is damaged, or it was made of other files than `fingerprint` says (None
    takes any). The source then has to be decoded again.
    """
    try:
        with path.open("rb") as file:
            header_bytes, checksum = _read_array(file)
            if _read_array(file)[0].tolist() != [checksum]:
                return None
            header = json.loads(header_bytes.tobytes())
            if header["format"] != _FORMAT or header["name"] != name:
                return None
            if fingerprint is not None and header["fingerprint"] != fingerprint:
                return None
            parts = {}
            for part, (shape, image_sums, label_checksum) in header["parts"].items():
                (images, checksum), (labels, found) = _read_array(file), _read_array(file)
                sums = ImageSums(image_sums[0], tuple(image_sums[1]), tuple(image_sums[2]))
                if (list(images.shape), checksum, found) != (shape, sums.checksum, label_checksum):
                    return None
                parts[part] = Dataset(images, labels, known_sums=sums)
        decoded = Decoded(parts, tuple(header["label_names"]))
        return Entry(name, header["source"], header["fingerprint"], decoded)
    # A damaged file can fail in any way, and none of them should stop a run whose source is at hand.
    except Exception:
        return None


def write_entry(path: Path, entry: Entry) -> None:
    """Write `entry` to `path`, at once or not at all.

    Raises:
        OSError: the folder cannot be made or written to, or the disk is full.
    """
    parts = entry.decoded.parts
    header = {
        "format": _FORMAT,
        "name": entry.name,
        "source": entry.source,
        "fingerprint": entry.fingerprint,
        "label_names": entry.decoded.label_names,
        "parts": {name: [part.images.shape, part.sums, _checksum(part.labels)] for name, part in parts.items()},
    }
    header_bytes = np.frombuffer(json.dumps(header).encode(), np.uint8)
    arrays = [array for part in parts.values() for array in (part.images, part.labels)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        for array in (header_bytes, np.array([_checksum(header_bytes)], np.uint32), *arrays):
            np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)


def _read_array(file: Any) -> tuple[np.ndarray, int]:
    """The next array and the CRC-32 of its bytes, summed up while they are read."""
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("an array in another format than was written")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    if fortran_order or dtype.hasobject:
        raise ValueError("an array of another kind than was written")
    array, checksum = np.empty(shape, dtype), 0
    content = array.reshape(-1).view(np.uint8).data
    for start in range(0, len(content), _READ_BYTES):
        block = content[start : start + _READ_BYTES]
        if file.readinto(block) != len(block):
            raise EOFError("the file is cut off")
        checksum = zlib.crc32(block, checksum)
    return array, checksum


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).data)
