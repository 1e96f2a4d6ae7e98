"""TFDS record files read without TensorFlow: the framing of TFRecord and ArrayRecord.

The former's layout is that of tensorflow/core/lib/io/record_writer.h.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt32

from jax_cifar.errors import DataError
from jax_cifar.files import read_bytes

_CRC_BLOCK = 4096  # records checked together; bounds the memory of the padded copy
_LARGEST_RECORD, _LARGEST_FILE = 1 << 16, 1 << 30  # bytes


@contextlib.contextmanager
def needed_packages() -> Iterator[None]:
    """Inside, packages are imported that only TFDS folders need; `DataError` where one is not installed."""
    try:
        yield
    except ImportError as error:
        raise DataError(f"A TFDS folder needs {error.name}. Install it with: pip install -e '.[tfds]'") from None


def read_records(path: Path, file_format: str) -> list[bytes]:
    """Return the records of one file, in file order. `file_format` is TFDS's name: "tfrecord" or "array_record".

    Raises:
        DataError: the file is missing, truncated or damaged (both formats carry checksums, which are verified), or its
            format is another.
    """
    readers = {"tfrecord": _read_tfrecord, "array_record": _read_array_record}
    if file_format not in readers:
        raise DataError(f"{path.parent}: the file format {file_format!r} cannot be read; use one of {sorted(readers)}.")
    if not path.is_file():
        raise DataError(f"{path} is missing; delete {path.parent} and prepare it again.")
    try:
        return readers[file_format](path)
    except (ValueError, RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} is damaged ({reason}); delete {path.parent} and prepare it again.") from None


def crc32c(records: list[bytes]) -> UInt32[np.ndarray, " n"]:
    """Return the CRC-32C (Castagnoli, RFC 3720 B.4) of every record; all of them are walked in step, byte by byte.

    Raises:
        ValueError: a record is shorter than four bytes.
    """
    if not records:
        return np.zeros(0, np.uint32)
    lengths = np.array([len(record) for record in records])
    if lengths.min() < 4:
        raise ValueError(f"a record of {lengths.min()} bytes")
    # The register starts at zero and the first four bytes are inverted, which is the same checksum; so records of
    # unequal lengths can be padded with zeros in front, where they leave the register as it is.
    longest = int(lengths.max())
    padded = np.frombuffer(b"".join(record.rjust(longest, b"\0") for record in records), np.uint8)
    columns = np.ascontiguousarray(padded.reshape(len(records), longest).T)
    starts = longest - lengths
    for offset in range(4):
        columns[starts + offset, np.arange(len(records))] ^= np.uint8(0xFF)
    register = np.zeros(len(records), np.uint32)
    table = _crc_table()
    for column in columns:
        register = table[(register ^ column) & np.uint32(0xFF)] ^ (register >> np.uint32(8))
    return ~register


def masked(crc: UInt32[np.ndarray, " n"]) -> UInt32[np.ndarray, " n"]:
    """Return the rotated and shifted checksums that TFRecord files store (tensorflow/core/lib/hash/crc32c.h)."""
    return (crc >> np.uint32(15) | crc << np.uint32(17)) + np.uint32(0xA282EAD8)


def _crc_table() -> UInt32[np.ndarray, "256"]:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & np.uint32(1), table >> np.uint32(1) ^ np.uint32(0x82F63B78), table >> np.uint32(1))
    return table


def _read_tfrecord(path: Path) -> list[bytes]:
    """Split uint64 length, uint32 checksum of the length, data, uint32 checksum of the data; all little-endian."""
    content = read_bytes(path, _LARGEST_FILE)
    records, heads, sums = [], [], []
    position = 0
    while position < len(content):
        start = position + 12
        end = start + int.from_bytes(content[position : position + 8], "little")
        if end + 4 > len(content):
            raise ValueError(f"record {len(records)} is cut off")
        if end - start > _LARGEST_RECORD:
            raise ValueError(f"record {len(records)} has {end - start:,} bytes, a CIFAR example a few thousand")
        heads.append(content[position : position + 8])
        records.append(content[start:end])
        sums.append(content[position + 8 : start] + content[end : end + 4])
        position = end + 4
    stored = np.frombuffer(b"".join(sums), "<u4").reshape(-1, 2)
    for first in range(0, len(records), _CRC_BLOCK):
        block = slice(first, first + _CRC_BLOCK)
        computed = np.stack([masked(crc32c(heads[block])), masked(crc32c(records[block]))], axis=1)
        wrong = np.flatnonzero((computed != stored[block]).any(axis=1))
        if wrong.size:
            raise ValueError(f"wrong checksum of record {first + int(wrong[0])}")
    return records


def _read_array_record(path: Path) -> list[bytes]:
    with needed_packages():
        from array_record.python.array_record_module import ArrayRecordReader
    reader = ArrayRecordReader(str(path))
    try:
        return reader.read_all() if reader.ok() and reader.num_records() else []
    finally:
        # close() raises what made the reader not ok, which is the reason a damaged file deserves.
        reader.close()
