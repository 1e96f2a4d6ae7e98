"""The published binary layout: records of label bytes followed by the red, green and blue planes of a 32x32 image.

A record is `<label><3072 pixels>` in CIFAR-10 and `<coarse label><fine label><3072 pixels>` in CIFAR-100.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

from jax_cifar.data.dataset import Dataset
from jax_cifar.data.published import IMAGE_BYTES, CifarSpec, check_labels, check_names
from jax_cifar.errors import DataError

# The content of a file of the layout's folder by its name; None where the folder does not hold it.
Reader = Callable[[str], bytes | None]
Parts = tuple[Dataset, Dataset, tuple[str, ...]]  # train, test, label names


def decode_binary(spec: CifarSpec, read: Reader, where: str) -> Parts:
    """Decode the files of the binary layout; `where` names the folder or archive in messages.

    Raises:
        DataError: a file is missing or has the wrong length, a label is out of range, or the label names are not one
            for each class. The class counts are the caller's to check, with `check_complete`.
    """
    batches = {batch: _decode_batch(spec, batch, read, where) for batch in spec.batches}
    return join_batches(spec, batches), batches[spec.test_batch], _label_names(spec, read, where)


def join_batches(spec: CifarSpec, batches: dict[str, Dataset]) -> Dataset:
    """The training batches as one dataset, in the published order."""
    parts = [batches[batch] for batch in spec.train_batches]
    if len(parts) == 1:
        return parts[0]
    return Dataset(np.concatenate([part.images for part in parts]), np.concatenate([part.labels for part in parts]))


def planes_to_images(planes: UInt8[np.ndarray, "n 3072"]) -> UInt8[np.ndarray, "n 32 32 3"]:
    """Turn rows of colour planes into contiguous NHWC images."""
    return np.ascontiguousarray(planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _decode_batch(spec: CifarSpec, batch: str, read: Reader, where: str) -> Dataset:
    file = f"{where}/{batch}.bin"
    content = read(f"{batch}.bin")
    if content is None:
        raise DataError(f"{file} is missing. Put the published files there again.")
    label_bytes = 1 if spec.coarse_classes is None else 2
    record, count = label_bytes + IMAGE_BYTES, spec.images_in(batch)
    if len(content) != count * record:
        raise DataError(
            f"{file} has {len(content):,} bytes, expected {count * record:,}: {count:,} records of {record:,} bytes. "
            "It is truncated or another file; put the published one there again."
        )
    records = np.frombuffer(content, np.uint8).reshape(count, record)
    if spec.coarse_classes is not None:
        check_labels(records[:, 0], spec.coarse_classes, f"{file}, coarse labels")
    labels = records[:, label_bytes - 1]
    check_labels(labels, spec.num_classes, file)
    return Dataset(planes_to_images(records[:, label_bytes:]), labels.astype(np.int32))


def _label_names(spec: CifarSpec, read: Reader, where: str) -> tuple[str, ...]:
    content = read(spec.names_file)
    if content is None:
        return spec.label_names
    names = tuple(content.decode(errors="replace").split())
    return check_names(names, spec.num_classes, f"{where}/{spec.names_file}")
