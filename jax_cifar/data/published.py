"""What CIFAR-10 and CIFAR-100 are, as published: classes, counts, file names; and the check that a copy is complete.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009, and the data sets' page,
https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from jax_cifar.data.archive import ARCHIVES, PublishedArchive
from jax_cifar.data.dataset import Dataset
from jax_cifar.errors import DataError

IMAGE_SHAPE = (32, 32, 3)  # height, width, channel
IMAGE_BYTES = 3 * 32 * 32  # on disk: the red, green and blue planes, each row by row


@dataclass(frozen=True)
class CifarSpec:
    """One of the two sets. The files of the binary layout are `<batch>.bin`, of the python layout `<batch>`."""

    name: Literal["cifar10", "cifar100"]
    label_names: tuple[str, ...]
    train_per_class: int
    test_per_class: int
    train_batches: tuple[str, ...]  # each holds the same number of images
    test_batch: str
    binary_folder: str
    names_file: str  # in the binary folder: one label name a line
    python_folder: str
    meta_file: str  # in the python folder: a pickle with the label names
    key_prefix: str  # of "labels" and "label_names" in the pickles
    coarse_classes: int | None  # binary records of CIFAR-100 begin with a coarse label, which is checked and left out
    archives: tuple[PublishedArchive, ...]

    @property
    def num_classes(self) -> int:
        """Number of (fine) classes."""
        return len(self.label_names)

    @property
    def batches(self) -> tuple[str, ...]:
        """All batch files, without suffix; the test batch comes last."""
        return (*self.train_batches, self.test_batch)

    def images_in(self, batch: str) -> int:
        """Number of images in the file of `batch`."""
        if batch == self.test_batch:
            return self.num_classes * self.test_per_class
        return self.num_classes * self.train_per_class // len(self.train_batches)


def check_complete(spec: CifarSpec, train: Dataset, test: Dataset, where: str) -> None:
    """Raise `DataError` unless both parts hold exactly the published number of 32x32x3 images of every class."""
    for part, dataset, per_class in (("training", train, spec.train_per_class), ("test", test, spec.test_per_class)):
        if dataset.images.shape[1:] != IMAGE_SHAPE:
            raise DataError(f"{where}: {part} images have shape {dataset.images.shape[1:]}, expected {IMAGE_SHAPE}.")
        check_labels(dataset.labels, spec.num_classes, f"{where}, {part} part")
        counts = np.bincount(dataset.labels, minlength=spec.num_classes)
        wrong = np.flatnonzero(counts != per_class)
        if wrong.size:
            label = int(wrong[0])
            raise DataError(
                f"{where}: the {part} part has {counts[label]:,} images of class {label} ({spec.label_names[label]}), "
                f"{spec.name} as published has {per_class:,}. Put the published files there again."
            )


def check_labels(labels: np.ndarray, num_classes: int, where: str) -> None:
    """Raise `DataError` unless every label (integer [n]) lies between 0 and `num_classes` - 1."""
    outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if outside.size:
        first = int(outside[0])
        raise DataError(
            f"{where}: record {first} has label {int(labels[first])}, expected 0 to {num_classes - 1}. "
            "Put the published files there again."
        )


def check_names(names: tuple[str, ...], num_classes: int, where: str) -> tuple[str, ...]:
    """Return `names`, one for each class and all different; raise `DataError` if they are not."""
    if len(names) != num_classes or len(set(names)) != num_classes:
        raise DataError(f"{where} has {len(set(names))} different label names, expected {num_classes}.")
    return names


_CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_CIFAR100_NAMES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm
"""

CIFAR10 = CifarSpec(
    name="cifar10",
    label_names=_CIFAR10_NAMES,
    train_per_class=5000,
    test_per_class=1000,
    train_batches=("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"),
    test_batch="test_batch",
    binary_folder="cifar-10-batches-bin",
    names_file="batches.meta.txt",
    python_folder="cifar-10-batches-py",
    meta_file="batches.meta",
    key_prefix="",
    coarse_classes=None,
    archives=ARCHIVES["cifar10"],
)

CIFAR100 = CifarSpec(
    name="cifar100",
    label_names=tuple(_CIFAR100_NAMES.split()),
    train_per_class=500,
    test_per_class=100,
    train_batches=("train",),
    test_batch="test",
    binary_folder="cifar-100-binary",
    names_file="fine_label_names.txt",
    python_folder="cifar-100-python",
    meta_file="meta",
    key_prefix="fine_",
    coarse_classes=20,
    archives=ARCHIVES["cifar100"],
)
