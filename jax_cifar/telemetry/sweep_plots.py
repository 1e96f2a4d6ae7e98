"""Pictures of a sweep: what each field is worth, accuracy against each, and all of them side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jax_cifar.telemetry.plots import INK, MUTED, SPLITS, plain, save, typeset

BLUE, ORANGE = SPLITS["train"][1], SPLITS["test"][1]
SHOWN_TICKS = 8  # of a list of values; of a longer one some are left out


class Field(NamedTuple):
    """A field that varied."""

    name: str
    values: tuple[str, ...]  # what it could be, as typed; empty for a range
    log: bool  # a range that is evenly spread by its logarithm

    def places(self, settings: Sequence[Any]) -> Float[np.ndarray, " trials"]:
        """Where values lie on an axis: numbers of a range, else the position in the list."""
        return np.array([self.values.index(value) if self.values else float(value) for value in settings], float)


class Tried(NamedTuple):
    """A trial: its value of every field, and its validation accuracy in per cent; NaN where it has none."""

    setting: Mapping[str, Any]
    accuracy: float


def draw_sweep(
    title: str, fields: Sequence[Field], tried: Sequence[Tried], importance: Mapping[str, float], folder: Path
) -> list[Path]:
    """Draw `slices.png`, `parallel.png` and, where there is any, `importance.png`; returns the paths drawn.

    Args:
      title: of the sweep.
      fields: what varied.
      tried: the trials; at least one has an accuracy.
      importance: by field, the share of the variance of accuracy that it explains.
      folder: made where it is missing.
    """
    done = [one for one in tried if np.isfinite(one.accuracy)]
    drawn = [
        save(_slices(title, fields, done), folder / "slices.png"),
        save(_parallel(title, fields, done), folder / "parallel.png"),
    ]
    if importance:
        drawn.append(save(_importance(title, importance), folder / "importance.png"))
    return drawn


def _figure(title: str, width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(typeset(title), x=0.01, ha="left", color=INK, fontsize=14)
    return figure


def _slices(title: str, fields: Sequence[Field], tried: Sequence[Tried]) -> Any:
    """Accuracy against every field in turn."""
    columns = min(len(fields), 3)
    rows = -(-len(fields) // columns)
    figure = _figure(f"{title}: every trial, the best in orange", max(4.2 * columns, 6), 3.8 * rows)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    accuracies = np.array([one.accuracy for one in tried])
    best = int(accuracies.argmax())
    for field, axes in zip(fields, panels.flat, strict=False):
        places = field.places([one.setting[field.name] for one in tried])
        axes.plot(places, accuracies, "o", color=BLUE, alpha=0.7, markersize=6, markeredgewidth=0)
        axes.plot(places[best], accuracies[best], "o", color=ORANGE, markersize=9, zorder=3)
        _scale(axes, field)
        axes.set_xlabel(field.name, color=MUTED)
        plain(axes)
    for axes in panels[:, 0]:
        axes.set_ylabel("validation accuracy (%)", color=MUTED)
    for axes in panels.flat[len(fields) :]:
        axes.set_visible(False)
    return figure


def _scale(axes: Any, field: Field) -> None:
    if field.values:
        shown = range(0, len(field.values), -(-len(field.values) // SHOWN_TICKS))
        axes.set_xticks(list(shown), [typeset(field.values[i]) for i in shown])
        axes.set_xlim(-0.5, len(field.values) - 0.5)
    elif field.log:
        from matplotlib.ticker import LogLocator, NullLocator

        axes.set_xscale("log")
        low, high = axes.get_xlim()
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 300 else (1,)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter("{x:g}")


def _importance(title: str, importance: Mapping[str, float]) -> Any:
    """A bar for every field, the most important on top."""
    names = sorted(importance, key=lambda name: importance[name])
    shares = [100 * importance[name] for name in names]
    figure = _figure(f"{title}: what decides the accuracy", 7.5, 1.3 + 0.45 * len(names))
    axes = figure.subplots()
    axes.barh(names, shares, color=BLUE, height=0.6)
    for height, share in enumerate(shares):
        axes.text(share + 1, height, f"{share:.0f} %", va="center", color=INK)
    axes.set_xlim(0, max(shares) * 1.15 + 2)
    axes.set_xlabel("share of the variance over the space (%), by fANOVA", color=MUTED)
    plain(axes)
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.tick_params(axis="y", colors=INK)
    axes.spines[["bottom"]].set_visible(False)
    return figure


def _parallel(title: str, fields: Sequence[Field], tried: Sequence[Tried]) -> Any:
    """A line for every trial through its value of each field to its accuracy; the darker the better."""
    from matplotlib import colormaps

    figure = _figure(f"{title}: the darker the better, the best in orange", max(2.4 * len(fields) + 2.4, 7), 4.6)
    axes = figure.subplots()
    accuracies = np.array([one.accuracy for one in tried])
    order = np.argsort(accuracies, kind="stable")
    columns = [field.places([one.setting[field.name] for one in tried]) for field in fields]
    heights = np.array([*(_heights(c, f) for c, f in zip(columns, fields, strict=True)), _between(accuracies)])
    # A rank, not the accuracy: one that failed would leave all others the same colour.
    for rank, i in enumerate(order, 1):
        best = rank == len(order)
        color = ORANGE if best else colormaps["Blues"](0.15 + 0.8 * rank / len(order))
        axes.plot(heights[:, i], color=color, linewidth=2.6 if best else 1.3, zorder=2 + rank)
    for place, (field, column) in enumerate(zip(fields, columns, strict=True)):
        _upright(axes, place, field.name, _ticks(field, column))
    _upright(
        axes, len(fields), "validation accuracy", [(0, f"{accuracies.min():.1f} %"), (1, f"{accuracies.max():.1f} %")]
    )
    axes.set_xlim(-0.3, len(fields) + 0.35)
    axes.set_ylim(-0.1, 1.08)
    axes.axis("off")
    return figure


def _heights(column: Float[np.ndarray, " trials"], field: Field) -> Float[np.ndarray, " trials"]:
    if field.values:
        return column / max(len(field.values) - 1, 1)
    return _between(np.log(column) if field.log else column)


def _between(values: Float[np.ndarray, " trials"]) -> Float[np.ndarray, " trials"]:
    """From 0 for the least to 1 for the most; one half where all are the same."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.full(len(values), 0.5)


def _ticks(field: Field, column: Float[np.ndarray, " trials"]) -> list[tuple[float, str]]:
    if field.values:
        last = max(len(field.values) - 1, 1)
        shown = range(0, len(field.values), -(-len(field.values) // SHOWN_TICKS))
        return [(i / last, field.values[i]) for i in shown]
    return [(0, f"{column.min():.3g}"), (1, f"{column.max():.3g}")]


def _upright(axes: Any, place: int, name: str, ticks: Sequence[tuple[float, str]]) -> None:
    axes.plot([place, place], [0, 1], color=MUTED, linewidth=1, zorder=1000)
    axes.text(place, 1.06, name, ha="center", va="bottom", color=INK, fontsize=10.5, weight="bold")
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
    for height, text in ticks:
        shown = typeset(text)
        axes.text(place + 0.03, height, shown, va="center", color=INK, fontsize=9, zorder=1001, bbox=box)
