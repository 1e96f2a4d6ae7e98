"""Pictures of experiments side by side: differences with their intervals, and lines over a setting."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jax_cifar.telemetry.plots import INK, MUTED, SPLITS, label_ends, plain, save, typeset

COLORS = (SPLITS["train"][1], SPLITS["test"][1], SPLITS["validation"][1], "#7c3aed")


class Worth(NamedTuple):
    """A value and between what it lies, in points; `note` stands in its place where there is none."""

    name: str
    value: float | None
    low: float = 0.0
    high: float = 0.0
    note: str = ""


def draw_worth(worths: Sequence[Worth], title: str, detail: str, path: Path) -> Path:
    """Draw a dot with its interval for each name, from above in the order given; returns the path.

    Dots whose interval has zero in it are hollow.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.5 + 0.38 * len(worths)), layout="constrained")
    axes = _axes(figure, title, detail, "x")
    for place, one in enumerate(worths):
        if one.value is None:
            # Beside the line of no difference, in the coordinates of a value and a row.
            style = {"va": "center", "color": MUTED, "fontsize": 9, "textcoords": "offset points"}
            axes.annotate(typeset(one.note), (0, place), (6, 0), **style)
            continue
        filling = COLORS[0] if one.low > 0 or one.high < 0 else "white"
        axes.plot((one.low, one.high), (place, place), color=COLORS[0], linewidth=2, solid_capstyle="butt", zorder=2)
        axes.plot(one.value, place, "o", color=COLORS[0], markerfacecolor=filling, markersize=8, zorder=3)
    axes.axvline(0, color=MUTED, linewidth=1, zorder=1)
    axes.set_yticks(range(len(worths)), [typeset(one.name) for one in worths])
    axes.set_ylim(len(worths) - 0.4, -0.6)
    axes.tick_params(axis="y", colors=INK)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:+g}" if value else "0")
    axes.set_xlabel("points", color=MUTED)
    return save(figure, path)


def draw_lines(
    lines: Mapping[str, Sequence[tuple[float, Sequence[float]]]], setting: str, title: str, detail: str, path: Path
) -> Path:
    """Draw the accuracy of every run against a setting, and a line through the means for each name; returns the path.

    `lines` has, by name, the setting and the accuracies there, as shares of 1.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes, ends = _axes(figure, title, detail, "both"), []
    for (name, points), color in zip(lines.items(), COLORS * len(lines), strict=False):
        points = sorted(points)
        settings, means = [at for at, _ in points], [100 * float(np.mean(values)) for _, values in points]
        axes.plot(settings, means, "o-", color=color, linewidth=2, markersize=6, zorder=3)
        for at, values in points:
            axes.plot([at] * len(values), 100 * np.array(values), "o", color=color, markersize=4, alpha=0.35, zorder=2)
        ends.append((settings[-1], means[-1], typeset(name), color))
    axes.set_xticks(sorted({at for points in lines.values() for at, _ in points}))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(typeset(setting), color=MUTED)
    axes.set_ylabel("accuracy (%)", color=MUTED)
    label_ends(axes, ends)
    return save(figure, path)


def _axes(figure: Any, title: str, detail: str, lines: Literal["both", "x"]) -> Any:
    axes = figure.subplots()
    axes.set_title(typeset(title), loc="left", color=INK, fontsize=14, weight="bold", pad=24)
    # In points above the axes, however high they are.
    place = {"xycoords": "axes fraction", "textcoords": "offset points"}
    axes.annotate(typeset(detail), (0, 1), (0, 8), color=MUTED, fontsize=10.5, **place)
    plain(axes, lines)
    return axes
