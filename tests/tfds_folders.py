"""Tiny CIFAR-like sets on disk, in the binary layout and as prepared TFDS folders, for the tests of the readers."""

import dataclasses
import io
import json
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from jax_cifar.data.dataset import Dataset
from jax_cifar.data.published import CIFAR10, CIFAR100, CifarSpec

TINY10 = dataclasses.replace(CIFAR10, train_per_class=2, test_per_class=1, train_batches=("one", "two"))
TINY100 = dataclasses.replace(
    CIFAR100, label_names=CIFAR100.label_names[:5], train_per_class=2, test_per_class=1, coarse_classes=3
)


def make_dataset(spec: CifarSpec, per_class: int, seed: int) -> Dataset:
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.repeat(np.arange(spec.num_classes, dtype=np.int32), per_class))
    return Dataset(generator.integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8), labels)


def make_parts(spec: CifarSpec) -> tuple[Dataset, Dataset]:
    return make_dataset(spec, spec.train_per_class, 0), make_dataset(spec, spec.test_per_class, 1)


def write_binary(spec: CifarSpec, root: Path) -> tuple[Dataset, Dataset]:
    """Write the binary layout below `root`; the coarse label is the fine one modulo three."""
    train, test = make_parts(spec)
    folder = root / spec.binary_folder
    folder.mkdir(parents=True)
    starts = {batch: index * spec.images_in(batch) for index, batch in enumerate(spec.train_batches)}
    for batch in spec.batches:
        part, start = (test, 0) if batch == spec.test_batch else (train, starts[batch])
        content = b""
        for image, label in zip(part.images[start:], part.labels[start:], strict=True):
            coarse = bytes([label % 3]) if spec.coarse_classes else b""
            content += coarse + bytes([label]) + image.transpose(2, 0, 1).tobytes()
        record = len(content) // len(part.labels[start:])
        (folder / f"{batch}.bin").write_bytes(content[: spec.images_in(batch) * record])
    (folder / spec.names_file).write_text("\n".join(reversed(spec.label_names)) + "\n\n")
    if spec.coarse_classes:
        (folder / "coarse_label_names.txt").write_text("fish\nflowers\nmammals\n")
    return train, test


def same(left: Dataset, right: Dataset) -> bool:
    return np.array_equal(left.images, right.images) and np.array_equal(left.labels, right.labels)


# A writer of TFRecord files and tf.train.Example messages that shares nothing with the reader.


def slow_crc32c(content: bytes) -> int:
    register = 0xFFFFFFFF
    for byte in content:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def masked(crc: int) -> int:
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def tfrecord(records: list[bytes]) -> bytes:
    lengths = [struct.pack("<Q", len(record)) for record in records]
    sums = [
        (masked(slow_crc32c(head)), masked(slow_crc32c(record))) for head, record in zip(lengths, records, strict=True)
    ]
    parts = zip(lengths, sums, records, strict=True)
    return b"".join(head + struct.pack("<I", a) + record + struct.pack("<I", b) for head, (a, b), record in parts)


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def message(*fields: tuple[int, bytes | int]) -> bytes:
    encoded = b""
    for number, value in fields:
        body = varint(value) if isinstance(value, int) else varint(len(value)) + value
        encoded += varint(number << 3 | (0 if isinstance(value, int) else 2)) + body
    return encoded


def example(features: dict[str, bytes | int]) -> bytes:
    entries = []
    for name, value in features.items():
        values = (
            message((3, message((1, varint(value))))) if isinstance(value, int) else message((1, message((1, value))))
        )
        entries.append((1, message((1, name.encode()), (2, values))))
    return message((1, message(*entries)))


def png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def write_tfrecords(spec: CifarSpec, folder: Path, shards: int = 1, with_id: bool = True) -> tuple[Dataset, Dataset]:
    """Write a prepared folder as TFDS does by default: TFRecord files, the examples in another order than published.

    Old versions had neither ids nor a note of the file format.
    """
    folder.mkdir(parents=True)
    info: dict[str, object] = {"name": spec.name, "fileFormat": "tfrecord"} if with_id else {"name": spec.name}
    splits = []
    parts = make_parts(spec)
    for split, part in zip(("train", "test"), parts, strict=True):
        records = []
        for index in reversed(range(len(part))):
            features: dict[str, bytes | int] = {"image": png(part.images[index]), "label": int(part.labels[index])}
            records.append(example(features | ({"id": f"{split}_{index:05d}".encode()} if with_id else {})))
        pieces = [records[shard::shards] for shard in range(shards)]
        for shard, piece in enumerate(pieces):
            name = f"{spec.name}-{split}.tfrecord-{shard:05d}-of-{shards:05d}"
            (folder / name).write_bytes(tfrecord(piece))
        splits.append({"name": split, "shardLengths": [str(len(piece)) for piece in pieces]})
    (folder / "dataset_info.json").write_text(json.dumps({**info, "splits": splits}))
    (folder / "label.labels.txt").write_text("".join(f"{name}\n" for name in spec.label_names))
    return parts
