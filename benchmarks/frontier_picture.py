"""The picture of `benchmarks.frontier`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.timing import Case
from jax_cifar.backend.mesh import find_devices
from jax_cifar.backend.threads import cpu_count
from jax_cifar.telemetry.environment import describe_devices
from jax_cifar.telemetry.plots import INK, MUTED, SPLITS, plain, save
from jax_cifar.telemetry.trade_off import best_of_both

# Hours after which a test accuracy of 94 % was first reached, and the accuracy then: DAWNBench (Stanford, 2017),
# CIFAR10/train of its repository dawn-bench-entries, its four entries without a GPU: ResNet-164 on 16 virtual cores
# (n1-standard-16), PyTorch 0.1.12 and TensorFlow 1.2, without and with bottlenecks.
DAWNBENCH = ((79.45, 0.9405), (94.16, 0.9402), (97.18, 0.9440), (102.80, 0.9404))
TICKS = {1: "1 s", 10: "10 s", 60: "1 min", 600: "10 min", 3600: "1 h", 36_000: "10 h", 360_000: "100 h"}
LABEL = {"textcoords": "offset points", "ha": "right", "color": INK, "fontsize": 9}
COLORS = {"jax": SPLITS["train"][1], "torch": SPLITS["test"][1], "DAWNBench": MUTED}


def draw(cases: Sequence[Case], path: Path) -> Path:
    """Draw mean accuracy against mean seconds of every recipe; a line joins those that no other of its kind beats."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for way in dict.fromkeys(way for case in cases for way in case.timings):
        means = [(np.mean(case.timings[way].seconds), np.mean(case.accuracies[way])) for case in cases]
        kind = "jax" if way == "jax" else "torch"
        if kind == "jax":
            for case, (seconds, accuracy) in zip(cases, means, strict=True):
                name = case.name.removeprefix("cifar10_")
                axes.annotate(name, (seconds, 100 * accuracy), (-18, 3), **LABEL)
        _series(axes, "jax_cifar" if kind == "jax" else f"PyTorch ({way}), the same recipes", means, COLORS[kind])
    far = [(3600 * hours, accuracy) for hours, accuracy in DAWNBENCH]
    _series(axes, "DAWNBench, 16 cores", far, COLORS["DAWNBench"], joined=False)
    axes.set_xscale("log")
    seconds = [float(np.mean(timing.seconds)) for case in cases for timing in case.timings.values()]
    axes.set_xlim(min(seconds) / 6, 2 * far[-1][0])
    axes.set_xticks(*zip(*[(at, text) for at, text in TICKS.items() if at >= min(seconds) / 6], strict=True))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_title("CIFAR-10: accuracy against time", loc="left", color=INK, fontsize=14, weight="bold")
    on_cpu = find_devices()[0].platform == "cpu"
    where = f"on {cpu_count()} CPU cores" if on_cpu else f"({describe_devices()})"
    axes.set_xlabel(f"time of training {where}", color=MUTED)
    axes.set_ylabel("test accuracy (%)", color=MUTED)
    plain(axes)
    axes.legend(frameon=False, labelcolor=INK, loc="lower right")
    return save(figure, path)


def _series(axes: Any, name: str, points: Sequence[tuple[Any, Any]], color: str, joined: bool = True) -> None:
    seconds, accuracies = ([float(value) for value in column] for column in zip(*points, strict=True))
    axes.plot(seconds, [100 * value for value in accuracies], "o", color=color, markersize=7, label=name, zorder=3)
    best = [point for point, kept in zip(points, best_of_both(seconds, accuracies), strict=True) if kept]
    if joined:
        line = [(float(cost), 100 * float(accuracy)) for cost, accuracy in sorted(best)]
        axes.plot(*zip(*line, strict=True), color=color, linewidth=2, zorder=2)
