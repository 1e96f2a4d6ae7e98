"""The picture of a learning-rate range test."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from jax_cifar.telemetry.plots import INK, MUTED, SPLITS, plain, save


def draw_range_test(
    rates: Float[np.ndarray, " updates"],
    losses: Float[np.ndarray, "seeds updates"],
    smooth: Float[np.ndarray, " updates"],
    marks: dict[str, float],
    title: str,
    path: Path,
) -> Path:
    """Draw the loss against the rate, every run thin and their smoothed mean thick, with rates marked by name.

    The axis of the loss ends a little above where the mean begins: beyond, runs break. Returns the path.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.8), layout="constrained")
    axes: Any = figure.subplots()
    color = SPLITS["train"][1]
    axes.plot(rates, losses.T, color=color, alpha=0.3, linewidth=0.8)
    axes.plot(rates, smooth, color=color, linewidth=2.2)
    known = smooth[np.isfinite(smooth)]
    low, high = known.min(), max(known[0], known.min() * 1.05)
    room = 0.12 * (high - low)
    axes.set(xscale="log", xlim=(rates[0], rates[-1]), ylim=(low - room, high + 3 * room))
    axes.set_xlabel("learning rate", color=MUTED)
    axes.set_ylabel("training loss", color=MUTED)
    axes.set_title(title, loc="left", color=INK, fontsize=11)
    for number, (name, rate) in enumerate(sorted(marks.items(), key=lambda mark: mark[1])):
        axes.axvline(rate, color=INK if name == "suggested" else MUTED, linewidth=1, linestyle=(0, (4, 3)))
        place = {"xy": (rate, 1), "xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        style = {"color": INK, "fontsize": 9.5, "va": "top", "weight": "bold" if name == "suggested" else "normal"}
        axes.annotate(f"{name} {rate:.2g}", **place, xytext=(4, -4 - 13 * number), **style)
    plain(axes)
    return save(figure, path)
