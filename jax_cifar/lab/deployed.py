"""Ways to run one trained network, side by side: accuracy, size, latency, how far logits lie from the first's."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from jax_cifar.backend.threads import cpu_count
from jax_cifar.data import Dataset
from jax_cifar.evaluation.latency import BATCHES, Latency, measure_latencies
from jax_cifar.lab.tables import markdown

ALL_AT_ONCE = 500  # images of a call where only the logits count

Logits = Float32[np.ndarray, "n classes"]
Predict = Callable[[UInt8[np.ndarray, "n height width channel"]], Logits]


@dataclass(frozen=True)
class Way:
    """A network in a runtime, and the bytes that it takes on disk."""

    predict: Predict  # any number of uint8 images to logits, on the host
    size: int | None  # bytes; None: it has no file of its own
    latencies: Mapping[int, Latency] | None = None  # by batch, of a way that measures itself; else measured here


def onnx_way(content: bytes) -> Way:
    """An ONNX file that takes uint8 images, in ONNX Runtime, with as many threads as the process has cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.intra_op_num_threads = cpu_count()
    # Threads that wait for their next call with all their might take the processor from who is timed after them.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session: Any = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return Way(in_batches(lambda images: session.run(["logits"], {"images": images})[0]), len(content))


@dataclass(frozen=True)
class Figures:
    """What was measured of one way."""

    name: str
    accuracy: float  # of all test images
    same: int  # images of the class that the first way says
    images: int
    gap: float  # largest difference of a logit from the first way's, in units of the first way's largest
    size: int | None  # bytes
    latencies: Mapping[int, Latency]  # of a call, by the images in it

    @property
    def images_per_second(self) -> float:
        """Of calls with as many images as were measured at most."""
        most = max(self.latencies)
        return most / self.latencies[most].p50


def compare(ways: Mapping[str, Way], test: Dataset, seconds: float = 1.0) -> list[Figures]:
    """Run all test images through every way, and time calls of `BATCHES` images of all of them in turn.

    Args:
        ways: by name; the first is what the others' logits are compared with.
        test: images and labels; batches to be timed are its first images.
        seconds: how long each way is timed for each batch, at least.
    """
    logits = {name: way.predict(test.images) for name, way in ways.items()}
    latencies: dict[int, Mapping[str, Latency]] = {}
    for count in BATCHES:
        images = np.resize(test.images, (count, *test.images.shape[1:]))
        calls = {name: partial(way.predict, images) for name, way in ways.items() if way.latencies is None}
        latencies[count] = measure_latencies(calls, seconds)
    first = next(iter(logits.values()))
    figures = []
    for name, way in ways.items():
        own = way.latencies or {count: latencies[count][name] for count in BATCHES}
        right, same = (int((logits[name].argmax(1) == classes).sum()) for classes in (test.labels, first.argmax(1)))
        gap = float(np.abs(logits[name] - first).max() / np.abs(first).max())
        figures.append(Figures(name, right / len(test), same, len(test), gap, way.size, own))
    return figures


def in_batches(predict: Predict) -> Predict:
    """The same for any number of images, of which so many are in memory at once that no call to be timed is cut."""

    def predict_all(images: np.ndarray) -> np.ndarray:
        starts = range(0, len(images), ALL_AT_ONCE)
        return np.concatenate([predict(images[start : start + ALL_AT_ONCE]) for start in starts])

    return predict_all


def table(figures: Sequence[Figures]) -> str:
    """A row for each way, losing cells too; sizes in units of the first way's file."""
    counts = sorted(figures[0].latencies)
    timings = [f"batch {count}: p50, p95 (ms)" for count in counts]
    head = ["", "test accuracy", "size (kB)", "of the first", *timings, "images/s", "same class", "logits within"]
    whole = next((row.size for row in figures if row.size is not None), None)
    rows = []
    for row in figures:
        size = ["-", "-"] if row.size is None else [f"{row.size / 1e3:,.1f}", f"{row.size / (whole or 1):.2f}"]
        times = [f"{1e3 * row.latencies[n].p50:.3g}, {1e3 * row.latencies[n].p95:.3g}" for n in counts]
        same = f"{row.same:,} of {row.images:,}"
        rows.append(
            [row.name, f"{row.accuracy:.2%}", *size, *times, f"{row.images_per_second:,.0f}", same, f"{row.gap:.1e}"]
        )
    return markdown(head, rows)
