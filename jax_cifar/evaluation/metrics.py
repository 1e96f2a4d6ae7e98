"""What is measured: sums over a batch on the device, and a full report over a whole set on the host.

Means of batch means are wrong as soon as the last batch is shorter, so batches only ever yield sums and counts; the one
division happens at the end.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int

from jax_cifar.errors import printable

TOP_K = 5
Sums = dict[str, Float32[Array, ""]]


def batch_metrics(
    logits: Float[Array, "batch classes"],
    targets: Int[Array, " batch"] | Float[Array, "batch classes"],
    loss: Float[Array, " batch"],
) -> Sums:
    """Sums of one batch, for `add_sums` with those of other batches and one division by `mean_metrics`.

    Args:
      logits: one row per image.
      targets: class indices, or a distribution over the classes (mixed or smoothed labels). For a distribution an image
        counts as correct by the share that its target gives to the predicted class.
      loss: loss of every image.

    Returns:
      `{"loss", "correct", "count"}`, float32 scalars (whole numbers are exact up to 2**24 images).
    """
    predictions = jnp.argmax(logits, axis=-1)
    if targets.ndim == 1:
        correct = predictions == targets.astype(predictions.dtype)
    else:
        correct = jnp.take_along_axis(targets, predictions[:, None], axis=-1)[:, 0]
    rows = {"loss": loss, "correct": correct, "count": jnp.ones_like(loss)}
    return {name: jnp.sum(row.astype(jnp.float32)) for name, row in rows.items()}


def add_sums(first: Sums, second: Sums) -> Sums:
    """The sums of two sets of images together; both must have the same names."""
    if first.keys() != second.keys():
        raise ValueError(f"sums of {sorted(first)} cannot be added to sums of {sorted(second)}")
    return {name: first[name] + second[name] for name in first}


def mean_metrics(sums: Mapping[str, Any]) -> dict[str, float]:
    """Means `{"loss", "accuracy"}` of added-up `batch_metrics`; accuracy is a share between 0 and 1.

    Raises:
      ZeroDivisionError: if the sums hold no image.
    """
    count = float(sums["count"])
    return {"loss": float(sums["loss"]) / count, "accuracy": float(sums["correct"]) / count}


@dataclass(frozen=True)
class Report:
    """How well a set was classified. Shares lie between 0 and 1; per-class arrays follow `label_names`."""

    label_names: tuple[str, ...]
    loss: float  # mean cross-entropy in nats
    accuracy: float  # share of images whose largest logit is the label's
    top5: float  # share of images whose label is among the five largest logits
    precision: Float[np.ndarray, " classes"]
    recall: Float[np.ndarray, " classes"]
    f1: Float[np.ndarray, " classes"]
    confusion: Int[np.ndarray, "classes classes"]  # images by true class (row) and predicted class (column)

    @property
    def support(self) -> Int[np.ndarray, " classes"]:
        """Number of images of every class."""
        return self.confusion.sum(axis=1)

    @property
    def count(self) -> int:
        """Number of images."""
        return int(self.confusion.sum())

    @property
    def is_seen(self) -> Bool[np.ndarray, " classes"]:
        """Whether a class has images, or was predicted: of another one the figures say nothing."""
        return self.support + self.confusion.sum(axis=0) > 0

    @property
    def macro(self) -> dict[str, float]:
        """Unweighted means of precision, recall and F1 over the classes that have images or were predicted."""
        return {name: float(np.mean(getattr(self, name)[self.is_seen])) for name in ("precision", "recall", "f1")}

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values; a loss that is not finite becomes null."""
        columns = (self.precision.tolist(), self.recall.tolist(), self.f1.tolist(), self.support.tolist())
        names = ("precision", "recall", "f1", "support")
        per_class = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
        return {
            "count": self.count,
            "loss": self.loss if math.isfinite(self.loss) else None,
            "accuracy": self.accuracy,
            "top5": self.top5,
            "macro": self.macro,
            "per_class": dict(zip(self.label_names, per_class, strict=True)),
            "confusion": self.confusion.tolist(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Report":
        """The report that `to_dict` made these values of; raises `KeyError` or `TypeError` where they are of no report.

        A loss that is null becomes NaN.
        """
        per_class = values["per_class"]
        columns = {name: np.array([row[name] for row in per_class.values()]) for name in ("precision", "recall", "f1")}
        loss = math.nan if values["loss"] is None else values["loss"]
        figures = (loss, values["accuracy"], values["top5"])
        return cls(tuple(per_class), *figures, **columns, confusion=np.array(values["confusion"]))

    def table(self) -> str:
        """The report as text: one line per class, the macro averages, and the figures over all images."""
        names = [printable(name, keep="") for name in self.label_names]
        width = max(len("macro average"), *map(len, names))
        macro = self.macro
        rows = list(zip(names, self.is_seen, self.precision, self.recall, self.f1, self.support, strict=True))
        rows.append(("macro average", True, macro["precision"], macro["recall"], macro["f1"], self.count))
        lines = [f"{'class':<{width}}  precision  recall      F1   images"]
        for name, is_seen, *shares, images in rows:
            precision, recall, f1 = (f"{share:.1%}" if is_seen else "-" for share in shares)
            lines.append(f"{name:<{width}}  {precision:>9}  {recall:>6}  {f1:>6}  {images:>7,}")
        top5 = f"   top-5 {self.top5:.2%}" if len(names) > TOP_K else ""  # of fewer classes it is always right
        figures = f"accuracy {self.accuracy:.2%}{top5}   loss {self.loss:.4f}   images {self.count:,}"
        return "\n".join([*lines, "", figures])


def report(
    logits: Float[np.ndarray, "images classes"], labels: Int[np.ndarray, " images"], label_names: Sequence[str]
) -> Report:
    """Judge the logits of a whole set.

    Of equal logits the first class wins, as in `argmax`, for the prediction and for the top five alike. A class that is
    never predicted has precision 0, one without images recall 0 (scikit-learn's
    `zero_division=0`, and its `average="macro"`).

    Args:
      logits: one row per image, in the order of the labels.
      labels: true class of every image.
      label_names: name of every class.

    Raises:
      ValueError: if the three do not fit one another.
    """
    if logits.shape != (len(labels), len(label_names)):
        shape = f"[{len(labels)}, {len(label_names)}]"
        raise ValueError(f"logits have shape {list(logits.shape)}, labels and label_names ask for {shape}")
    ranking = np.argsort(-logits, axis=1, kind="stable")
    classes = len(label_names)
    confusion = np.bincount(labels * classes + ranking[:, 0], minlength=classes**2).reshape(classes, classes)
    hits, actual, predicted = np.diagonal(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    return Report(
        label_names=tuple(label_names),
        loss=_mean_cross_entropy(logits, labels),
        accuracy=float(np.mean(ranking[:, 0] == labels)),
        top5=float(np.mean((ranking[:, :TOP_K] == labels[:, None]).any(axis=1))),
        precision=_share(hits, predicted),
        recall=_share(hits, actual),
        f1=_share(2 * hits, actual + predicted),
        confusion=confusion,
    )


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, and 0 where there is nothing."""
    return part / np.maximum(whole, 1)


def _mean_cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    with np.errstate(invalid="ignore"):  # infinite logits: the loss is NaN, and says so by itself
        shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(shifted).sum(axis=1))
        return float(np.mean(log_sum - shifted[np.arange(len(labels)), labels]))
