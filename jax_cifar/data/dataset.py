"""What every data source gives: uint8 images with their labels, in named splits, validated on construction."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int32, UInt8

from jax_cifar.errors import DataError

Images = np.ndarray  # uint8 or floating [n, height, width, channel]; what else a user may give is told in a message
_BLOCK_BYTES = 400_000  # what is read once and used three times has to stay in the processor's cache
_BLOCK_IMAGES = 256  # of 255 each, their sum still fits sixteen bits


class ImageSums(NamedTuple):
    """What one pass over all pixels gives. Sums are exact, so neither the order of the images nor rounding matters."""

    checksum: int  # CRC-32 of the bytes
    sums: tuple[int, ...]  # of the pixels of every channel
    squares: tuple[int, ...]  # of their squares


def sum_images(images: UInt8[np.ndarray, "n height width channel"]) -> ImageSums:
    """Read all images once, for their checksum and the sums of every channel."""
    shape, checksum = images.shape[1:], 0
    sums, squares = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    step = max(1, min(_BLOCK_IMAGES, _BLOCK_BYTES // max(1, int(np.prod(shape)))))
    for start in range(0, len(images), step):
        block = np.ascontiguousarray(images[start : start + step])
        checksum = zlib.crc32(block.data, checksum)
        sums += block.sum(axis=0, dtype=np.uint16)
        # 255 squared fits sixteen bits too.
        squares += np.square(block, dtype=np.uint16).sum(axis=0, dtype=np.uint32)
    totals = (values.reshape(-1, shape[-1]).sum(axis=0).tolist() for values in (sums, squares))
    return ImageSums(checksum, *map(tuple, totals))


def channel_statistics(
    images: UInt8[np.ndarray, "n height width channel"], known: ImageSums | None = None
) -> tuple[Float64[np.ndarray, "channel"], Float64[np.ndarray, "channel"]]:
    """Mean and population standard deviation of every channel, in units of the full range (pixels / 255).

    `known` are the sums of these images, where they were read over before.

    Raises:
        DataError: there is no image, or the pixels are not uint8 (already divided by 255, say).
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.size == 0:
        raise DataError(f"Images are {images.dtype} {list(images.shape)}; expected uint8 [n, height, width, channel].")
    _, sums, squares = known or sum_images(images)
    count = images.size // images.shape[-1]
    mean = np.array([value / (255 * count) for value in sums])
    # Python's integers do not overflow: n * sum(x^2) - sum(x)^2 is exact.
    variance = [(count * square - value**2) / (255 * count) ** 2 for value, square in zip(sums, squares, strict=True)]
    return mean, np.sqrt(np.array(variance))


def as_pixels(images: Images, shape: tuple[int, int, int]) -> UInt8[np.ndarray, "n height width channel"]:
    """Images as uint8 of this height, width and channel; raises `DataError` for what they are not."""
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[1:] != shape:
        raise DataError(
            f"Images have shape {list(images.shape)}; this network takes [n, {', '.join(map(str, shape))}]."
        )
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise DataError(f"Images are {images.dtype}; give uint8 from 0 to 255, or floating values between 0 and 1.")
    if images.size and not (images.min() >= 0 and images.max() <= 1):
        raise DataError(
            f"Floating images lie between {images.min():g} and {images.max():g}; give values between 0 and 1."
        )
    return np.rint(images * 255).astype(np.uint8)


def normalize(
    images: UInt8[np.ndarray, "n height width channel"], mean: Sequence[float], std: Sequence[float]
) -> Float32[np.ndarray, "n channel height width"]:
    """What a network exported with `float_input` takes: float32 NCHW from uint8 NHWC."""
    pixels = images.astype(np.float32) / np.float32(255)
    normalized = (pixels - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return np.ascontiguousarray(normalized.transpose(0, 3, 1, 2))


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and their labels, on the host. Arrays are taken as they are; nothing may change them afterwards.

    Raises:
        DataError: an array, dtype or shape is not the declared one, or the lengths differ.
    """

    images: np.ndarray  # uint8 [n, height, width, channel], pixels 0 to 255
    labels: np.ndarray  # int32 [n]
    true_labels: np.ndarray | None = None  # int32 [n]: what `labels` were before some were made wrong on purpose
    known_sums: ImageSums | None = field(default=None, repr=False)  # of `images`, where they were read over before

    def __post_init__(self) -> None:
        _check_array("Images", self.images, np.uint8, None, "[n, height, width, channel], 0 to 255")
        count = self.images.shape[:1]
        _check_array("Labels", self.labels, np.int32, count, f"[{count[0]}], one for each image")
        if self.true_labels is not None:
            _check_array("True labels", self.true_labels, np.int32, count, f"[{count[0]}], one for each image")

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> "Dataset":
        """The examples at `indices` (int [k]), in that order."""
        true_labels = None if self.true_labels is None else self.true_labels[indices]
        return Dataset(self.images[indices], self.labels[indices], true_labels)

    def with_wrong_labels(self, labels: np.ndarray) -> "Dataset":
        """The same images with other labels (int32 [n]); the true ones are kept beside them."""
        true_labels = self.labels if self.true_labels is None else self.true_labels
        return replace(self, labels=labels, true_labels=true_labels)

    @cached_property
    def sums(self) -> ImageSums:
        """Checksum and channel sums of the images: those known, else of one pass when first asked for."""
        return self.known_sums or sum_images(self.images)

    @property
    def checksum(self) -> int:
        """CRC-32 of the bytes of images and labels, in this order."""
        return zlib.crc32(np.ascontiguousarray(self.labels).data, self.sums.checksum)

    @property
    def channel_statistics(self) -> tuple[Float64[np.ndarray, "channel"], Float64[np.ndarray, "channel"]]:
        """Mean and population standard deviation of every channel, as of the function of this name."""
        return channel_statistics(self.images, self.sums)


@dataclass(frozen=True, eq=False)
class Decoded:
    """What a source holds: its parts by name ("train", "test", ...) and the names of their labels."""

    parts: dict[str, Dataset]
    label_names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Splits:
    """A data set, ready to train on; `validation` is held out of the training part and shares no image with `train`.

    Raises:
        DataError: a part is no `Dataset` or empty, its images have another shape than the rest, a label has no name or
            an empty one, or two have the same.
    """

    name: str
    train: Dataset
    test: Dataset
    validation: Dataset | None
    label_names: tuple[str, ...]
    source: str = "arrays made in Python"  # where the bytes came from, for the console

    def __post_init__(self) -> None:
        names = self.label_names
        if not (isinstance(names, tuple) and all(isinstance(name, str) for name in names)):
            raise DataError(f"The label names of {self.name} are {names!r}; expected a tuple of strings.")
        nameless = next((i for i, name in enumerate(names) if not name.strip()), None)
        if nameless is not None:
            raise DataError(
                f"The label names of {self.name} hold {names[nameless]!r} for class {nameless};"
                " every class needs a name of its own."
            )
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(
                f"The label names of {self.name} hold {twice!r} twice; every class needs a name of its own."
            )
        for part in ("train", "test", "validation"):
            self._check_part(part, getattr(self, part))

    def _check_part(self, part: str, dataset: Dataset | None) -> None:
        if dataset is None and part == "validation":
            return
        if not isinstance(dataset, Dataset):
            raise DataError(f"The {part} part of {self.name} is {type(dataset).__name__}; expected a Dataset.")
        if len(dataset) == 0:
            raise DataError(f"The {part} part of {self.name} holds no image.")
        if dataset.images.shape[1:] != self.train.images.shape[1:]:
            shapes = f"{list(dataset.images.shape[1:])}, the training images {list(self.train.images.shape[1:])}"
            raise DataError(f"The {part} images of {self.name} have shape {shapes}.")
        check_labels(f"The {part} labels of {self.name}", dataset.labels, self.num_classes)

    @property
    def num_classes(self) -> int:
        """Number of classes; labels run from 0 to one less."""
        return len(self.label_names)


def check_labels(name: str, labels: Int32[np.ndarray, "n"], num_classes: int) -> None:
    """Raise `DataError` where one of the labels belongs to no class."""
    lowest, highest = int(labels.min(initial=0)), int(labels.max(initial=0))
    if lowest < 0 or highest >= num_classes:
        expected = f"expected 0 to {num_classes - 1}, by the number of label names"
        raise DataError(f"{name} run from {lowest} to {highest}; {expected}.")


def _check_array(name: str, values: object, dtype: type, shape: tuple[int, ...] | None, expected: str) -> None:
    """Raise `DataError` unless `values` are an array of this dtype and shape; None: of any with four axes."""
    if not isinstance(values, np.ndarray):
        raise DataError(
            f"{name} are of type {type(values).__name__}; expected a NumPy array, {dtype.__name__} {expected}."
        )
    fits = values.ndim == 4 if shape is None else values.shape == shape
    if values.dtype != dtype or not fits:
        raise DataError(f"{name} are {values.dtype} {list(values.shape)}; expected {dtype.__name__} {expected}.")
