"""TFDS record files read without TensorFlow: TFRecord and ArrayRecord framing, and the `tf.train.Example` message.

The layouts are those of tensorflow/core/lib/io/record_writer.h and tensorflow/core/example/{example,feature}.proto.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt32

from jax_cifar.errors import DataError

Value = int | bytes
_CRC_BLOCK = 4096  # records checked together; bounds the memory of the padded copy


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


def parse_example(record: bytes) -> dict[str, list[Value]]:
    """Return the byte and integer features of a serialized `tf.train.Example`, by name; float features are left out.

    Raises:
        ValueError: the message is malformed.
    """
    features: dict[str, list[Value]] = {}
    for entry in (entry for message in _submessages(record, 1) for entry in _submessages(message, 1)):
        name, values = b"", []
        for number, value in _fields(entry):
            if number == 1 and isinstance(value, bytes):
                name = value
            elif number == 2 and isinstance(value, bytes):
                values = _feature_values(value)
        features[name.decode()] = values
    return features


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
    content = path.read_bytes()
    records, heads, sums = [], [], []
    position = 0
    while position < len(content):
        start = position + 12
        end = start + int.from_bytes(content[position : position + 8], "little")
        if end + 4 > len(content):
            raise ValueError(f"record {len(records)} is cut off")
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
    try:
        from array_record.python.array_record_module import ArrayRecordReader
    except ImportError:
        raise DataError(f"{path} needs the package array_record: pip install array_record") from None
    reader = ArrayRecordReader(str(path))
    try:
        return reader.read_all() if reader.ok() and reader.num_records() else []
    finally:
        # close() raises what made the reader not ok, which is the reason a damaged file deserves.
        reader.close()


def _submessages(message: bytes, wanted: int) -> Iterator[bytes]:
    return (value for number, value in _fields(message) if number == wanted and isinstance(value, bytes))


def _feature_values(feature: bytes) -> list[Value]:
    """Return the values of a `tf.train.Feature`: field 1 holds byte strings, field 3 integers, packed or not."""
    values: list[Value] = []
    for kind, content in _fields(feature):
        for _, value in _fields(content) if isinstance(content, bytes) and kind in (1, 3) else ():
            if kind == 1 or isinstance(value, int):
                values.append(value)
                continue
            position = 0
            while position < len(value):
                number, position = _varint(value, position)
                values.append(number)
    return values


def _fields(message: bytes) -> Iterator[tuple[int, Value]]:
    """Yield (field number, value) of a protocol-buffer message, in wire order."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            value, position = _varint(message, position)
            yield number, value
            continue
        if wire_type not in (1, 2, 5):
            raise ValueError(f"wire type {wire_type} in an example")
        length, position = _varint(message, position) if wire_type == 2 else ({1: 8, 5: 4}[wire_type], position)
        if position + length > len(message):
            raise ValueError("an example is cut off")
        yield number, message[position : position + length]
        position += length


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(message) and shift < 64:
        byte = message[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
    raise ValueError("a number in an example is cut off")
