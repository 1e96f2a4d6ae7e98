"""A picture of what accuracy costs: of several versions of one network, against latency and against size."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jax_cifar.errors import printable
from jax_cifar.telemetry.plots import GRID, INK, MUTED, SPLITS, save


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
    figure.suptitle(printable(title, keep="").replace("$", r"\$"), x=0.01, ha="left", color=INK, fontsize=14)
    by_time, by_size = figure.subplots(1, 2, sharey=True)
    by_time.set_ylabel("test accuracy (%)", color=MUTED)
    _scatter(by_time, [(p.name, p.milliseconds, p.accuracy) for p in points])
    by_time.set_xlabel(f"milliseconds of {batch} image{'s' * (batch > 1)}, median", color=MUTED)
    _scatter(by_size, [(p.name, p.kilobytes, p.accuracy) for p in points if p.kilobytes is not None])
    by_size.set_xlabel("kilobytes on disk", color=MUTED)
    return save(figure, path)


def best_of_both(costs: Sequence[float], accuracies: Sequence[float]) -> list[bool]:
    """Of each version, whether no other is as good in both and better in one."""
    pairs = list(zip(costs, accuracies, strict=True))
    return [
        not any(c <= cost and a >= accuracy and (c, a) != (cost, accuracy) for c, a in pairs)
        for cost, accuracy in pairs
    ]


def _scatter(axes: Any, points: Sequence[tuple[str, float, float]]) -> None:
    names, costs, accuracies = (list(column) for column in zip(*points, strict=True))
    color = SPLITS["train"][1]
    for name, cost, accuracy, best in zip(names, costs, accuracies, best_of_both(costs, accuracies), strict=True):
        axes.plot(cost, 100 * accuracy, "o", color=color, fillstyle="full" if best else "none", markersize=8)
        # To the left of what lies on the right, so that no name leaves the picture.
        right = cost > (min(costs) * max(costs)) ** 0.5
        offset, side = ((-8, 0), "right") if right else ((8, 0), "left")
        axes.annotate(
            name,
            (cost, 100 * accuracy),
            offset,
            textcoords="offset points",
            ha=side,
            va="center",
            color=INK,
            fontsize=9,
        )
    axes.set_xscale("log")
    axes.margins(0.08, 0.12)
    axes.grid(color=GRID, linewidth=0.8, which="both")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    axes.tick_params(which="both", colors=MUTED, length=0)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
