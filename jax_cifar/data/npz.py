"""Arrays of one's own in NumPy's .npz files: one file, or a folder with train.npz and test.npz.

A file holds `images` (uint8, or floats from 0 to 1; [n, side, side] or [n, side, side, 1 or 3]), `labels` (integers
[n], from 0) and, if wanted, `label_names` (text [classes]); a single file may hold `test_images` and `test_labels` too,
or else a seeded share of every class is taken for testing. Nothing is ever unpickled.
"""

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.lib.format import read_array_header_1_0, read_array_header_2_0, read_magic

from jax_cifar.config import DataConfig
from jax_cifar.data.dataset import Dataset, Decoded, Splits
from jax_cifar.data.splits import WHOLE, with_test_part
from jax_cifar.errors import DataError
from jax_cifar.files import require_regular

Names = tuple[str, ...] | None
Shape = tuple[int, int, int]
ARRAYS = ("images", "labels", "label_names", "test_images", "test_labels")
# Photographs shrink to a half, drawings to a tenth: what shrinks to less, beyond this size, is to fill the memory.
_UNPACKED_BYTES = 1 << 28
_MOST_SHRUNK = 100
_MOST_UNNAMED = 1 << 16  # classes without names; more are taken for identifiers


def load_npz(path: Path, config: DataConfig) -> Splits:
    """The arrays at `path`, a file or a folder. Without label names, the classes are called by their numbers.

    Raises:
        DataError: a file is missing or damaged, or an array is missing or not as described above.
        ConfigError: `data.test_fraction` cannot be met.
    """
    if path.is_dir():
        train, names = read_npz(path / "train.npz")
        test, other = read_npz(path / "test.npz")
        if other is not None and other != names:
            raise DataError(f"{path}: train.npz and test.npz have different label names, {names} and {other}.")
        parts = {"train": train, "test": test}
    else:
        arrays = _read_arrays(path)
        whole, names = _dataset(arrays, path), _label_names(arrays, path)
        has_test = any(f"test_{name}" in arrays for name in ("images", "labels"))
        parts = {"train": whole, "test": _dataset(arrays, path, "test_")} if has_test else {WHOLE: whole}
    if names is None:
        classes = 1 + max(int(part.labels.max(initial=0)) for part in parts.values())
        if classes > _MOST_UNNAMED:
            raise DataError(
                f"{path}: the labels run to {classes - 1:,}, so there would be as many classes. Number them from 0:"
                " names, labels = numpy.unique(labels, return_inverse=True)."
            )
        names = tuple(map(str, range(classes)))
    return with_test_part("npz", Decoded(parts, names), f"arrays in {path}", config)


def read_npz(path: Path, shape: Shape | None = None) -> tuple[Dataset, Names]:
    """The `images` and `labels` of one file, and its `label_names` or None.

    Args:
        path: the file.
        shape: height, width and channel of the images that a network takes, which then need be no squares.

    Raises:
        DataError: the file is missing or damaged, or an array is missing or not as this module describes.
    """
    arrays = _read_arrays(path)
    return _dataset(arrays, path, shape=shape), _label_names(arrays, path)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        size = require_regular(path)
        # NumPy would take any other file for a pickle, and say so.
        if not zipfile.is_zipfile(path):
            raise zipfile.BadZipFile("it is no zip archive")
        with zipfile.ZipFile(path) as archive:
            for name in {f"{name}.npy" for name in ARRAYS} & set(archive.namelist()):
                _check_member(archive, archive.getinfo(name), size)
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in ARRAYS if name in file.files}
    except FileNotFoundError:
        raise DataError(f"{path} does not exist. Name an .npz file, or a folder with train.npz and test.npz.") from None
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise _unreadable(path, error) from None
        raise DataError(f"{path} holds Python objects, which are not read; save numbers, or text.") from None
    # Damaged files surface as almost any exception, none of them of interest.
    except Exception as error:
        raise _unreadable(path, error) from None


def _check_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, size: int) -> None:
    """Raise `ValueError` where an array is larger than what lies packed in a file of `size` bytes; none is read yet."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{info.filename} is packed as NumPy packs nothing")
    if info.compress_size > size or info.file_size > max(_UNPACKED_BYTES, _MOST_SHRUNK * info.compress_size):
        raise ValueError(f"{info.filename} unpacks from {info.compress_size:,} to {info.file_size:,} bytes")
    with archive.open(info) as file:
        read_header = {(1, 0): read_array_header_1_0, (2, 0): read_array_header_2_0}[read_magic(file)]
        shape, _, dtype = read_header(file)
        claimed = math.prod(shape) * dtype.itemsize
        if not dtype.hasobject and claimed != info.file_size - file.tell():
            raise ValueError(f"{info.filename} claims an array of {claimed:,} bytes in {info.file_size:,}")


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = getattr(error, "strerror", None) or error or type(error).__name__
    return DataError(f"{path} is no .npz file that can be read ({reason}). Make it with numpy.savez.")


def _dataset(arrays: Mapping[str, np.ndarray], path: Path, prefix: str = "", shape: Shape | None = None) -> Dataset:
    names = [f"{prefix}{name}" for name in ("images", "labels")]
    for name in names:
        if name not in arrays:
            raise DataError(f"{path} holds no array {name!r}, only {', '.join(arrays) or 'none that is read'}.")
    images = _images(arrays[names[0]], f"{path}: {names[0]}", shape)
    labels = _labels(arrays[names[1]], f"{path}: {names[1]}")
    if len(images) != len(labels):
        raise DataError(
            f"{path} holds {len(images):,} {names[0]} and {len(labels):,} {names[1]}; expected one for each."
        )
    return Dataset(images, labels)


def _images(values: np.ndarray, where: str, shape: Shape | None) -> np.ndarray:
    """The images as uint8 [n, side, side, channel], or of a network's shape."""
    if values.ndim == 3:
        values = values[..., None]
    if shape is not None:
        if values.shape[1:] != shape:
            wanted = ", ".join(map(str, shape))
            raise DataError(f"{where} has shape {list(values.shape)}; this network takes [n, {wanted}].")
    elif values.ndim != 4 or values.shape[1] != values.shape[2] or values.shape[3] not in (1, 3):
        expected = "[n, side, side] or [n, side, side, 1 or 3], channels last"
        raise DataError(f"{where} has shape {list(values.shape)}; expected square images, {expected}.")
    if values.size == 0:
        raise DataError(f"{where} holds no image.")
    if values.dtype == np.uint8:
        return values
    expected = "expected uint8 from 0 to 255, or floating point from 0 to 1"
    if values.dtype.kind != "f":
        raise DataError(f"{where} is {values.dtype}; {expected}.")
    lowest, highest = values.min(), values.max()
    if not (lowest >= 0 and highest <= 1):  # false of NaN too
        raise DataError(f"{where} runs from {lowest} to {highest}; {expected}.")
    return np.rint(values.astype(np.float64) * 255).astype(np.uint8)


def _labels(values: np.ndarray, where: str) -> np.ndarray:
    if values.dtype.kind not in "iu" or values.ndim != 1:
        raise DataError(f"{where} is {values.dtype} {list(values.shape)}; expected integers [n], one for each image.")
    if values.size and (values.min() < 0 or values.max() >= 2**31):
        raise DataError(f"{where} runs from {values.min()} to {values.max()}; expected labels from 0 on.")
    return values.astype(np.int32)


def _label_names(arrays: Mapping[str, np.ndarray], path: Path) -> Names:
    if "label_names" not in arrays:
        return None
    names = arrays["label_names"]
    if names.dtype.kind != "U" or names.ndim != 1:
        raise DataError(f"{path}: label_names is {names.dtype} {list(names.shape)}; expected text, one for each class.")
    return tuple(names.tolist())
