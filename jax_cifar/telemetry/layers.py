"""A picture of a network layer by layer: activations, what is dead in them, gradients and updates."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jax_cifar.telemetry.plots import GRID, INK, MUTED, SPLITS, save, typeset

BLUE, ORANGE = SPLITS["train"][1], SPLITS["test"][1]


class Bar(NamedTuple):
    """What is drawn of one layer; nan where it has none."""

    name: str
    mean: float  # of its outputs
    sd: float
    silent: float  # share of outputs that are not above zero
    dead: float  # share of channels that never are
    gradient: float  # mean size of an entry
    update: float  # norm, over that of the weights


def draw_layers(bars: Sequence[Bar], path: Path, title: str) -> Path:
    """Draw a row for each layer, the first on top; returns the path."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 1.6 + 0.24 * len(bars)), layout="constrained")
    figure.suptitle(typeset(title), x=0.01, ha="left", color=INK, fontsize=14)
    panels = figure.subplots(1, 4, sharey=True)
    places = np.arange(len(bars))
    columns = {name: np.array([getattr(bar, name) for bar in bars], float) for name in Bar._fields[1:]}
    outputs, shares, gradients, updates = panels
    outputs.errorbar(columns["mean"], places, xerr=columns["sd"], fmt="o", color=BLUE, markersize=4, linewidth=1.5)
    outputs.axvline(0, color=MUTED, linewidth=0.8)
    shares.barh(places, 100 * columns["silent"], 0.7, color=BLUE, alpha=0.35, label="values not above 0")
    shares.barh(places, 100 * columns["dead"], 0.35, color=ORANGE, label="channels never above 0")
    shares.set_xlim(0, 100)
    shares.legend(loc="upper left", bbox_to_anchor=(0, -0.02 - 1.2 / (2 + len(bars))), frameon=False, labelcolor=MUTED)
    _on_logarithms(gradients, columns["gradient"], places)
    _on_logarithms(updates, columns["update"], places)
    texts = ("outputs: mean and sd", "share (%)", "gradient: mean |entry|", "first update / weights, norms")
    for axes, text in zip(panels, texts, strict=True):
        axes.set_title(text, loc="left", color=INK, fontsize=10.5)
        axes.grid(color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[:].set_visible(False)
        axes.tick_params(which="both", colors=MUTED, length=0)
    names = [typeset(bar.name) for bar in bars]
    outputs.set_yticks(places, names, color=INK, fontsize=9)
    outputs.set_ylim(len(bars) - 0.4, -0.6)
    return save(figure, path)


def _on_logarithms(axes: Any, values: np.ndarray, places: np.ndarray) -> None:
    """Points on a logarithmic axis, with a line from one layer to the next that has a value; zeros are left out."""
    from matplotlib.ticker import LogLocator, NullLocator

    there = np.isfinite(values) & (values > 0)
    axes.plot(values[there], places[there], "-", color=GRID, linewidth=1.5)
    axes.plot(values[there], places[there], "o", color=BLUE, markersize=5)
    axes.set_xscale("log")
    if there.any():
        # Whole powers of ten, so that there are two of them to read by at least.
        low, high = np.log10(values[there].min()), np.log10(values[there].max())
        axes.set_xlim(10 ** (np.floor(low) - 0.1), 10 ** (np.ceil(high) + 0.1))
    axes.xaxis.set_major_locator(LogLocator(numticks=6))
    axes.xaxis.set_minor_locator(NullLocator())
