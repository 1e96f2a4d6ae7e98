"""A picture of what accuracy costs: of several versions of one network, against latency and against size."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jax_cifar.telemetry.plots import INK, MUTED, SPLITS, plain, save, typeset


class Point(NamedTuple):
    """One version of the network."""

    name: str
    accuracy: float
    milliseconds: float  # of a call
    kilobytes: float | None  # None: it has no file of its own


def draw_trade_off(points: Sequence[Point], title: str, batch: int, path: Path) -> Path:
    """Draw accuracy against the latency of a call of `batch` images and against size; returns the path.

    What no other version beats in both is drawn full, the others hollow.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    figure.suptitle(typeset(title), x=0.01, ha="left", color=INK, fontsize=14)
    by_time, by_size = figure.subplots(1, 2, sharey=True)
    by_time.set_ylabel("test accuracy (%)", color=MUTED)
    _scatter(by_time, [(p.name, p.milliseconds, p.accuracy) for p in points])
    by_time.set_xlabel(f"milliseconds of {batch} image{'s' * (batch > 1)}, median", color=MUTED)
    _scatter(by_size, [(p.name, p.kilobytes, p.accuracy) for p in points if p.kilobytes is not None])
    by_size.set_xlabel("kilobytes on disk", color=MUTED)
    figure.text(0.99, 0.965, "full: no other is as good in both", ha="right", va="center", color=MUTED, fontsize=10)
    return save(figure, path)


def best_of_both(costs: Sequence[float], accuracies: Sequence[float]) -> list[bool]:
    """Of each version, whether no other is as good in both and better in one."""
    pairs = list(zip(costs, accuracies, strict=True))
    return [
        not any(c <= cost and a >= accuracy and (c, a) != (cost, accuracy) for c, a in pairs)
        for cost, accuracy in pairs
    ]


def _scatter(axes: Any, points: Sequence[tuple[str, float, float]]) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    names, costs, accuracies = (list(column) for column in zip(*points, strict=True))
    color = SPLITS["train"][1]
    for cost, accuracy, best in zip(costs, accuracies, best_of_both(costs, accuracies), strict=True):
        filling = color if best else "white"
        axes.plot(cost, 100 * accuracy, "o", color=color, markerfacecolor=filling, markersize=7, zorder=3)
    axes.set_xscale("log")
    axes.margins(0.08, 0.12)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")
    plain(axes)
    _name(axes, names, [(cost, 100 * accuracy) for cost, accuracy in zip(costs, accuracies, strict=True)])


def _name(axes: Any, names: Sequence[str], places: Sequence[tuple[float, float]]) -> None:
    """Write the names in a column beside the picture, in the order of their heights, with a line to each point."""
    points = axes.transAxes.inverted().transform(axes.transData.transform(places))
    heights = np.linspace(0.98, 0.02, max(len(names), 2))
    order = sorted(range(len(names)), key=lambda i: (-points[i][1], -points[i][0]))
    for height, i in zip(heights, order, strict=False):
        style = {"color": INK, "fontsize": 9, "va": "center", "textcoords": "axes fraction"}
        line = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.5, "alpha": 0.6, "relpos": (0, 0.5)}
        axes.annotate(names[i], places[i], (1.03, height), arrowprops=line, annotation_clip=False, **style)
