"""What every data source gives: uint8 images with their labels, in named splits, validated on construction."""

from dataclasses import dataclass

import numpy as np

from jax_cifar.errors import DataError


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and their labels, on the host.

    Raises:
        DataError: a dtype or shape is not the declared one, or the two lengths differ.
    """

    images: np.ndarray  # uint8 [n, height, width, channel], pixels 0 to 255
    labels: np.ndarray  # int32 [n]

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != np.uint8 or images.ndim != 4:
            shape = list(images.shape)
            raise DataError(f"Images are {images.dtype} {shape}; expected uint8 [n, height, width, channel], 0 to 255.")
        if labels.dtype != np.int32 or labels.shape != images.shape[:1]:
            shape = list(labels.shape)
            raise DataError(f"Labels are {labels.dtype} {shape}; expected int32 [{len(images)}], one for each image.")

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> "Dataset":
        """The examples at `indices` (int [k]), in that order."""
        return Dataset(self.images[indices], self.labels[indices])


@dataclass(frozen=True, eq=False)
class Splits:
    """A data set, ready to train on; `validation` is held out of the training part and shares no image with `train`.

    Raises:
        DataError: a part is empty, its images have another shape than the rest, or a label has no name.
    """

    name: str
    train: Dataset
    test: Dataset
    validation: Dataset | None
    label_names: tuple[str, ...]
    source: str  # where the bytes came from, for the console

    def __post_init__(self) -> None:
        for part, dataset in (("train", self.train), ("test", self.test), ("validation", self.validation)):
            if dataset is None:
                continue
            if len(dataset) == 0:
                raise DataError(f"The {part} part of {self.name} holds no image.")
            if dataset.images.shape[1:] != self.train.images.shape[1:]:
                shapes = f"{list(dataset.images.shape[1:])}, the training images {list(self.train.images.shape[1:])}"
                raise DataError(f"The {part} images of {self.name} have shape {shapes}.")
            lowest, highest = int(dataset.labels.min()), int(dataset.labels.max())
            if lowest < 0 or highest >= self.num_classes:
                raise DataError(
                    f"The {part} labels of {self.name} run from {lowest} to {highest}; "
                    f"expected 0 to {self.num_classes - 1}."
                )

    @property
    def num_classes(self) -> int:
        """Number of classes; labels run from 0 to one less."""
        return len(self.label_names)
