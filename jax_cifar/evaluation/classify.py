"""What a network says of pictures: any files and folders, whatever the network was read from. Needs NumPy and Pillow.

for found in predict_pictures(load_run("runs/first"), ["cat.jpg", "holiday"]):
    print(found.file, found.error or found.predictions[0].label)
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8

from jax_cifar.data.folder import find_files
from jax_cifar.data.pictures import Picture, grey, try_pictures
from jax_cifar.errors import ConfigError, DataError, check
from jax_cifar.files import expand


@runtime_checkable
class Classifier(Protocol):
    """What is asked of a network here; a run has it, and so have the exported files that are read back."""

    @property
    def label_names(self) -> tuple[str, ...]:
        """Name of every class."""
        ...

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channel of its images."""
        ...

    def probabilities(self, images: UInt8[np.ndarray, "n height width channel"], /) -> Float32[np.ndarray, "n classes"]:
        """Of every class for every image."""
        ...


class Guess(NamedTuple):
    """A class, and how probable the network holds it to be."""

    label: str
    index: int  # in `label_names`
    probability: float


class Prediction(NamedTuple):
    """What is said of one picture, the most probable class first; or why nothing is."""

    file: str  # as it was given, or found in a folder; "-" where its bytes were given
    predictions: tuple[Guess, ...] = ()
    picture: Picture | None = None  # what the network was shown
    error: DataError | None = None


def predict_pictures(
    model: Classifier, sources: Iterable[str | Path | bytes], top: int = 5, batch_size: int = 256
) -> Iterator[Prediction]:
    """Classify pictures, one prediction for each, in order; one that cannot be read stops none of the others.

    Pictures are prepared as `jax_cifar.data.pictures.picture_to_array` says; for a network of one channel they turn
    grey. A batch of them is in memory at a time.

    Args:
        model: from `load_run` or `load_onnx`.
        sources: files, folders (every file in them that is not hidden, at any depth), or the bytes of a picture.
        top: how many classes are told of a picture, at most.
        batch_size: pictures read and classified at once.

    Raises:
        DataError: the network takes no square pictures, grey or in colour.
        ConfigError: `top` or `batch_size` is less than 1.
    """
    check(top >= 1, "top", top, "it must be at least 1")
    check(batch_size >= 1, "batch_size", batch_size, "it must be at least 1")
    height, width, channels = model.image_shape
    if height != width or channels not in (1, 3):
        shape = f"images of {height} x {width} pixels with {channels} channels"
        raise DataError(f"The network takes {shape}; pictures become squares, grey or RGB. Give it arrays instead.")
    return _predict(model, _find(sources), top, batch_size)


def softmax(logits: Float32[np.ndarray, "n classes"]) -> Float32[np.ndarray, "n classes"]:
    """Probabilities of logits: exp(logit), divided by the sum over all classes."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


Found = tuple[str, Path | bytes | DataError]  # the name of a picture, and where it is or why it is not read


def _find(sources: Iterable[str | Path | bytes]) -> Iterator[Found]:
    for source in sources:
        if isinstance(source, bytes):
            yield "-", source
            continue
        try:
            path = expand(source)
        except ConfigError as error:
            yield str(source), DataError(str(error))
            continue
        if not path.is_dir():
            yield str(source), path
            continue
        files = find_files(path, path)
        file, error = next(files, (source, DataError(f"{source} holds no picture.")))
        yield str(file), error or Path(file)
        yield from ((str(file), error or file) for file, error in files)


def _predict(model: Classifier, found: Iterator[Found], top: int, batch_size: int) -> Iterator[Prediction]:
    while batch := list(islice(found, batch_size)):
        sources = [source for _, source in batch if not isinstance(source, DataError)]
        read = iter(try_pictures(sources, model.image_shape[0]))
        pictures = [source if isinstance(source, DataError) else next(read) for _, source in batch]
        rows = _probabilities(model, pictures)
        for (name, _), picture, row in zip(batch, pictures, rows, strict=True):
            if isinstance(picture, DataError):
                yield Prediction(name, error=picture)
            elif not np.isfinite(row).all():
                yield Prediction(name, error=DataError(f"{name}: what the network says of it is not finite."))
            else:
                yield Prediction(name, _best(row, model.label_names, top), picture)


def _probabilities(model: Classifier, pictures: Sequence[Picture | DataError]) -> Float32[np.ndarray, "n classes"]:
    """A row for every picture, for the missing ones too: batches of one size are compiled once."""
    size, _, channels = model.image_shape
    images = np.zeros((len(pictures), size, size, 3), np.uint8)
    for image, picture in zip(images, pictures, strict=True):
        if isinstance(picture, Picture):
            image[...] = picture.pixels
    return model.probabilities(grey(images) if channels == 1 else images)


def _best(row: Float32[np.ndarray, "classes"], names: tuple[str, ...], top: int) -> tuple[Guess, ...]:
    order = np.argsort(-row, kind="stable")[:top]
    return tuple(Guess(names[index], int(index), float(row[index])) for index in order)
