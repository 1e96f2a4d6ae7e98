"""The decoded cache: one file a data set and data folder, so that the second start reads plain arrays.

A file is a sequence of arrays in NumPy's .npy format: a JSON header as bytes, training images and labels, test images
and labels, and the CRC-32 of each of those, last. It is written under a temporary name and renamed, so that readers see
the old file, the new one or none, however many processes start at once; a damaged one counts as none.
"""

import hashlib
import json
import os
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jax_cifar.data.binary import Parts
from jax_cifar.data.dataset import Dataset
from jax_cifar.files import user_cache_dir

_FORMAT = 1


@dataclass(frozen=True)
class Entry:
    """What a cache file holds: the arrays, and the description and fingerprint of the files they came from."""

    name: str
    source: str
    fingerprint: list[list[str | int]]
    parts: Parts


def entry_path(name: str, folder: Path) -> Path:
    """The cache file of set `name` as it lies in the data folder `folder`."""
    key = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    return user_cache_dir() / "decoded" / f"{name}-{key}.npys"


def read_entry(path: Path, name: str, fingerprint: list[list[str | int]] | None) -> Entry | None:
    """Read and verify the cache file at `path`.

    Returns None where there is no such file, it is damaged, or it was made of other files than `fingerprint` says (None
    takes any). The source then has to be decoded again.
    """
    try:
        with path.open("rb") as file:
            header_bytes = _load(file)
            header = json.loads(header_bytes.tobytes())
            if header["format"] != _FORMAT or header["name"] != name:
                return None
            if fingerprint is not None and header["fingerprint"] != fingerprint:
                return None
            arrays = [_load(file) for _ in range(4)]
            if _checksums(header_bytes, *arrays).tolist() != _load(file).tolist():
                return None
        parts = Dataset(arrays[0], arrays[1]), Dataset(arrays[2], arrays[3]), tuple(header["label_names"])
        return Entry(name, header["source"], header["fingerprint"], parts)
    # A damaged file can fail in any way, and none of them should stop a run whose source is at hand.
    except Exception:
        return None


def write_entry(path: Path, entry: Entry) -> None:
    """Write `entry` to `path`, at once or not at all.

    Raises:
        OSError: the folder cannot be made or written to, or the disk is full.
    """
    train, test, label_names = entry.parts
    header = {
        "format": _FORMAT,
        "name": entry.name,
        "source": entry.source,
        "fingerprint": entry.fingerprint,
        "label_names": label_names,
    }
    header_bytes = np.frombuffer(json.dumps(header).encode(), np.uint8)
    arrays = header_bytes, train.images, train.labels, test.images, test.labels
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.", suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            for array in (*arrays, _checksums(*arrays)):
                np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _load(file: Any) -> np.ndarray:
    return np.lib.format.read_array(file, allow_pickle=False)


def _checksums(*arrays: np.ndarray) -> np.ndarray:
    return np.array([zlib.crc32(np.ascontiguousarray(array).data) for array in arrays], np.uint32)
