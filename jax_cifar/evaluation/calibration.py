"""How well a network knows how sure it may be: its probabilities beside how often it is right."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

BINS = 15


@dataclass(frozen=True)
class Calibration:
    """Images in bins of equal width, by the probability of the class that was predicted.

    A bin holds what lies above its lower edge and at most at its upper one. Of a bin without images confidence and
    accuracy are 0.
    """

    edges: Float[np.ndarray, " edges"]  # 0 to 1
    counts: Int[np.ndarray, " bins"]  # images
    confidence: Float[np.ndarray, " bins"]  # mean probability of the predicted class
    accuracy: Float[np.ndarray, " bins"]  # share of the images that were right

    @property
    def error(self) -> float:
        """Expected calibration error: the mean distance between confidence and accuracy, each bin by its images."""
        return float(np.average(np.abs(self.confidence - self.accuracy), weights=self.counts))

    @property
    def bias(self) -> float:
        """Mean confidence minus accuracy over all images: above zero the network is too sure of itself."""
        return float(np.average(self.confidence - self.accuracy, weights=self.counts))


def calibrate(
    probabilities: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"], bins: int = BINS
) -> Calibration:
    """Put the images of a whole set into bins (Naeini et al. 2015; 15 bins: Guo et al. 2017).

    Args:
        probabilities: one row per image, in the order of the labels; they sum to 1.
        labels: true class of every image.
        bins: of equal width.

    Raises:
        ValueError: there is no image, or the two do not fit one another.
    """
    if len(probabilities) != len(labels) or len(labels) == 0:
        raise ValueError(f"probabilities of {len(probabilities)} images and labels of {len(labels)} do not fit")
    edges = np.linspace(0, 1, bins + 1)
    sure = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    places = np.clip(np.searchsorted(edges, sure, side="left") - 1, 0, bins - 1)
    counts = np.bincount(places, minlength=bins)
    many = np.maximum(counts, 1)
    confidence = np.bincount(places, weights=sure, minlength=bins) / many
    accuracy = np.bincount(places, weights=right, minlength=bins) / many
    return Calibration(edges, counts, confidence, accuracy)
