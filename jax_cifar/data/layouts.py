"""The two published layouts of CIFAR: binary records, and pickled dictionaries of arrays.

A binary record is `<label><3072 pixels>` in CIFAR-10 and `<coarse label><fine label><3072 pixels>` in CIFAR-100; the
pixels are the red, green and blue planes of a 32x32 image.

The python layout is read by an unpickler that can build uint8 arrays and nothing else. `pickle.load` runs whatever a
file asks for. Here the three names that the published files use stand for classes of this module, so no outside code
is ever called; any other name stops the reading.
"""

import io
import operator
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import UInt8

from jax_cifar.data.dataset import Dataset, Decoded
from jax_cifar.data.published import IMAGE_BYTES, CifarSpec, check_labels, check_names
from jax_cifar.errors import DataError

# The content of a file of the layout's folder by its name; None where the folder does not hold it.
Reader = Callable[[str], bytes | None]


def decode_binary(spec: CifarSpec, read: Reader, where: str) -> Decoded:
    """Decode the files of the binary layout; `where` names the folder or archive in messages.

    Raises:
        DataError: a file is missing or has the wrong length, a label is out of range, or the label names are not one
            for each class. The class counts are the caller's to check, with `check_complete`.
    """
    batches = {batch: _decode_batch(spec, batch, read, where) for batch in spec.batches}
    return _decoded(spec, batches, _read_names(spec, read, where))


def decode_python(spec: CifarSpec, read: Reader, where: str) -> Decoded:
    """Decode the files of the python layout; `where` names the folder or archive in messages.

    Raises:
        DataError: a file is missing, is not a pickle of plain values and uint8 arrays, or its content has the wrong
            shape or range. The class counts are the caller's to check, with `check_complete`.
    """
    batches = {batch: _unpickle_batch(spec, batch, read, where) for batch in spec.batches}
    meta = _load_file(spec.meta_file, read, where)
    try:
        names = tuple(name.decode() for name in meta[f"{spec.key_prefix}label_names".encode()])
    except (KeyError, TypeError, AttributeError):
        raise DataError(f"{where}/{spec.meta_file} holds no label names. Put the published file there again.") from None
    names = check_names(names, spec.num_classes, f"{where}/{spec.meta_file}")
    return _decoded(spec, batches, names)


def load_pickle(content: bytes, where: str) -> Any:
    """Unpickle plain values (byte strings stay bytes) and uint8 arrays.

    Raises:
        DataError: the pickle refers to any other global (the message names it), or is damaged.
    """
    try:
        return _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{where} is not a published CIFAR file: {error}. Put the published file there again."
        ) from None
    # Damaged opcodes surface as almost any exception, none of them of interest.
    except Exception as error:
        raise DataError(f"{where} is a damaged pickle ({error!r}). Put the published file there again.") from error


def _decoded(spec: CifarSpec, batches: dict[str, Dataset], names: tuple[str, ...]) -> Decoded:
    """The training batches as one dataset, in the published order, and the test batch."""
    parts = [batches[batch] for batch in spec.train_batches]
    train = parts[0]
    if len(parts) > 1:
        images, labels = ([getattr(part, name) for part in parts] for name in ("images", "labels"))
        train = Dataset(np.concatenate(images), np.concatenate(labels))
    return Decoded({"train": train, "test": batches[spec.test_batch]}, names)


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
    return Dataset(_planes_to_images(records[:, label_bytes:]), labels.astype(np.int32))


def _read_names(spec: CifarSpec, read: Reader, where: str) -> tuple[str, ...]:
    content = read(spec.names_file)
    if content is None:
        return spec.label_names
    names = tuple(content.decode(errors="replace").split())
    return check_names(names, spec.num_classes, f"{where}/{spec.names_file}")


def _planes_to_images(planes: UInt8[np.ndarray, "n 3072"]) -> UInt8[np.ndarray, "n 32 32 3"]:
    """Turn rows of colour planes into contiguous NHWC images."""
    return np.ascontiguousarray(planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


class _Array:
    """Stands for numpy.ndarray; takes the state of a uint8 array, which NumPy writes as below."""

    def __init__(self, *_: object) -> None:
        self.value = np.zeros(0, np.uint8)

    def __setstate__(self, state: tuple[int, tuple[int, ...], object, bool, bytes]) -> None:
        _version, shape, dtype, fortran_order, content = state
        if not isinstance(dtype, _UInt8):
            raise pickle.UnpicklingError("it holds an array without a dtype")
        self.value = np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran_order else "C")


class _UInt8:
    """Stands for numpy.dtype, which newer NumPy warns about when old pickles build it."""

    def __init__(self, code: object = None, *_: object) -> None:
        if code not in ("u1", b"u1"):
            raise pickle.UnpicklingError(f"it holds an array of {code!r}, not of uint8")

    def __setstate__(self, state: object) -> None:
        pass


_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _UInt8,
}


# The one in Python: the other sets memory aside for whatever number of objects a few bytes claim.
class _Unpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> type:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which may run foreign code") from None


def _load_file(file: str, read: Reader, where: str) -> Any:
    content = read(file)
    if content is None:
        raise DataError(f"{where}/{file} is missing. Put the published files there again.")
    return load_pickle(content, f"{where}/{file}")


def _unpickle_batch(spec: CifarSpec, batch: str, read: Reader, where: str) -> Dataset:
    file, count = f"{where}/{batch}", spec.images_in(batch)
    content = _load_file(batch, read, where)
    try:
        planes, labels = content[b"data"].value, content[f"{spec.key_prefix}labels".encode()]
        # Lists that hold one another would be walked without end.
        labels = np.array([operator.index(label) for label in labels], np.int64)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError):
        raise DataError(
            f"{file} holds no images and labels of {spec.name}. Put the published file there again."
        ) from None
    if planes.shape != (count, IMAGE_BYTES) or labels.shape != (count,):
        raise DataError(
            f"{file} holds images {list(planes.shape)} and labels {list(labels.shape)}, "
            f"expected [{count}, {IMAGE_BYTES}] and [{count}]. Put the published file there again."
        )
    check_labels(labels, spec.num_classes, file)
    return Dataset(_planes_to_images(planes), labels.astype(np.int32))
