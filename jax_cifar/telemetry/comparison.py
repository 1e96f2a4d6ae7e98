"""A picture of two experiments: their curves, mean and spread over seeds, and the final figure of every run."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jax_cifar.telemetry.plots import INK, MUTED, SPLITS, plain, save, typeset

COLORS = (SPLITS["train"][1], SPLITS["test"][1])
LABELS = ("A", "B")
HINT = {"loc": "left", "color": MUTED, "fontsize": 9.5}


class Drawn(NamedTuple):
    """One experiment as it is drawn, all figures in the unit of the axis."""

    epochs: Float[np.ndarray, " epochs"]  # of the curves; may be none
    curves: Float[np.ndarray, "runs epochs"]
    values: Sequence[float]  # the final figure of every run
    low: float  # ends of the interval of their mean; NaN for one run
    high: float


def draw_comparison(sides: Sequence[Drawn], title: str, verdict: str, curve_label: str, label: str, path: Path) -> Path:
    """Draw the curves of two experiments over each other, and beside them every run's final figure; returns the path.

    A line is the mean over the seeds, the band around it one standard deviation either way. Of the final figures the
    bar is the interval of the mean. Without curves only these are drawn.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with_curves = any(len(side.epochs) > 1 for side in sides)
    width = 11 if with_curves else 7.5
    figure = Figure(figsize=(width, 5), layout="constrained")
    heading = "\n".join(textwrap.fill(line, int(11 * width)) for line in (title, verdict))
    figure.suptitle(typeset(heading, keep="\n"), x=0.01, ha="left", color=INK, fontsize=11)
    *left, finals = figure.subplots(1, 1 + with_curves, width_ratios=(2.2, 1)[-1 - with_curves :], squeeze=False)[0]
    for axes in left:
        _draw_curves(axes, sides)
        axes.set(xlabel="epoch", ylabel=curve_label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_title("mean over seeds, one standard deviation", **HINT)
    _draw_finals(finals, sides)
    finals.set_ylabel(label)
    finals.set_title("every run; mean, 95 % interval", **HINT)
    for axes in (*left, finals):
        axes.xaxis.label.set_color(MUTED)
        axes.yaxis.label.set_color(MUTED)
        plain(axes, lines="y")
    return save(figure, path)


def _draw_curves(axes: Any, sides: Sequence[Drawn]) -> None:
    for side, color, name in zip(sides, COLORS, LABELS, strict=True):
        if not len(side.epochs):
            continue
        mean = side.curves.mean(axis=0)
        axes.plot(side.epochs, mean, color=color, linewidth=2, marker="o" if len(mean) <= 30 else None, markersize=3.5)
        if len(side.curves) > 1:
            sd = side.curves.std(axis=0, ddof=1)
            axes.fill_between(side.epochs, mean - sd, mean + sd, color=color, alpha=0.18, linewidth=0)
        # The curves end close together: the names stand on different sides of them.
        above = mean[-1] >= max(other.curves.mean(axis=0)[-1] for other in sides if len(other.epochs))
        place = {"xytext": (6, 5 if above else -5), "textcoords": "offset points"}
        style = {"color": color, "weight": "bold", "va": "bottom" if above else "top", "annotation_clip": False}
        axes.annotate(name, (side.epochs[-1], mean[-1]), **place, **style)
    axes.set_xlim(left=0)


def _draw_finals(axes: Any, sides: Sequence[Drawn]) -> None:
    for place, (side, color) in enumerate(zip(sides, COLORS, strict=True)):
        # Side by side in the order of the seeds, so that none hides another.
        offsets = np.linspace(-0.22, 0.05, len(side.values)) if len(side.values) > 1 else np.zeros(1)
        axes.plot(place + offsets, side.values, "o", color=color, alpha=0.55, markersize=5, markeredgewidth=0)
        mean = float(np.mean(side.values))
        if np.isfinite(side.low):
            axes.plot([place + 0.22] * 2, [side.low, side.high], color=color, linewidth=2.5, solid_capstyle="butt")
            axes.plot(place + 0.22, mean, "o", color=color, markersize=7)
    axes.set_xticks(
        range(len(sides)), [f"{name}\nn = {len(side.values)}" for name, side in zip(LABELS, sides, strict=True)]
    )
    axes.set_xlim(-0.5, len(sides) - 0.5)
    axes.margins(y=0.12)
