"""The face that every exported file has once it is read back: that of a run."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int

from jax_cifar.config.spec import InputSpec
from jax_cifar.data.dataset import Images
from jax_cifar.evaluation.classify import softmax


@dataclass(frozen=True)
class ExportedModel(ABC):
    """A trained network from a file; use it as a `Run`."""

    spec: InputSpec
    metadata: Mapping[str, Any]  # all that the file says of itself, as it says it

    @abstractmethod
    def logits(self, images: Images) -> Float32[np.ndarray, "n classes"]:
        """Logits of any number of images, in order.

        Args:
            images: uint8 [n, height, width, channel], or floating between 0 and 1, which are rounded to 256 levels.

        Raises:
            DataError: the images have another shape, dtype or range.
        """

    @property
    def label_names(self) -> tuple[str, ...]:
        """Name of every class."""
        return self.spec.label_names

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channel of the images that the network is given."""
        return self.spec.image_shape

    def predict(self, images: Images) -> Int[np.ndarray, " n"]:
        """The most likely class of every image: an index into `label_names`. Images as for `logits`."""
        return self.logits(images).argmax(axis=1)

    def probabilities(self, images: Images) -> Float32[np.ndarray, "n classes"]:
        """Softmax of the logits. Images as for `logits`."""
        return softmax(self.logits(images))
