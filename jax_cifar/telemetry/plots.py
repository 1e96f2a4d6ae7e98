"""Pictures of a run: curves from `metrics.jsonl`, and the confusion matrix."""

import json
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from jax_cifar.errors import printable
from jax_cifar.files import atomic_write
from jax_cifar.telemetry.run_log import read_metrics

INK, MUTED, GRID = "#1f2430", "#6b7280", "#e5e7eb"
# Blue and orange stay apart for colour-blind readers and in grey.
SPLITS = {"train": ("train", "#2563a8"), "validation": ("validation", "#7a9a01"), "test": ("test", "#d9480f")}
DPI = 150
# Over this range a linear axis shows the first epochs and a flat line.
LOG_RANGE = 50.0
SMOOTH_FROM = 60
TOP_CONFUSIONS = 12
LABEL_GAP = 0.055
# Of letters that Matplotlib's own font lacks, on Linux, macOS and Windows; colour fonts cannot be drawn.
MORE_FONTS = (
    *("Noto Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans CJK KR", "Noto Sans JP", "Noto Sans SC"),
    *("Noto Sans Arabic", "Noto Sans Devanagari", "Noto Sans Thai", "WenQuanYi Zen Hei", "Droid Sans Fallback"),
    *("Hiragino Sans", "PingFang SC", "Apple SD Gothic Neo", "Arial Unicode MS"),
    *("Yu Gothic", "MS Gothic", "Microsoft YaHei", "Malgun Gothic", "Nirmala UI", "Leelawadee UI"),
)


def draw_plots(workdir: Path) -> list[Path]:
    """Draw `plots/{loss,accuracy,learning_rate}.png` from the run's `metrics.jsonl`.

    Returns the paths drawn; a picture without a single finite value is left out.
    """
    name, own_loss = _name_and_loss(workdir)
    return draw_curves(read_metrics(workdir), name, workdir / "plots", own_loss)


def draw_curves(
    records: Sequence[Mapping[str, Any]], name: str, folder: Path, own_loss: str | None = None
) -> list[Path]:
    """Draw `loss.png`, `accuracy.png` and `learning_rate.png` of a run from its log records, oldest first.

    `own_loss` is what it was trained with where that is not the cross-entropy, by which it is evaluated. Returns the
    paths drawn; a picture without a single finite value is left out.
    """
    drawn = []
    draw_loss = partial(_draw_loss, own=own_loss)
    for field, draw in (("loss", draw_loss), ("accuracy", _draw_accuracy), ("lr", _draw_learning_rate)):
        curves = {split: _curve(records, split, field) for split in SPLITS}
        curves = {split: curve for split, curve in curves.items() if np.isfinite(curve[1]).any()}
        if curves:
            stem = "learning_rate" if field == "lr" else field
            drawn.append(save(draw(name, curves), folder / f"{stem}.png"))
    return drawn


def draw_confusion_matrix(
    matrix: Int[np.ndarray, "classes classes"], label_names: Sequence[str], path: Path, title: str = "Confusion matrix"
) -> Path:
    """Draw counts by true class (row) and predicted class (column), coloured by their share of the row.

    Beside it stand the pairs that are confused most often. With many classes the cells carry no figures.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    classes = len(label_names)
    few = classes <= 20
    # Between two dollar signs Matplotlib sets formulas, and fails where there is none.
    label_names = list(map(typeset, label_names))
    support = matrix.sum(axis=1, keepdims=True)
    shares = matrix / np.maximum(support, 1)
    figure = Figure(figsize=(11, 7.4) if few else (17, 12.8), layout="constrained")
    grid, side = figure.subplots(1, 2, width_ratios=(3.2, 1) if few else (4.2, 1))
    grid.set_anchor("NW")
    # Square root: a confusion of 4 % is visible beside a diagonal of 90 %.
    image = grid.imshow(100 * shares, cmap="Blues", norm=PowerNorm(0.5, 0, 100))
    _label_classes(grid, label_names, size=11 if few else 7.5)
    if few:
        _write_counts(grid, matrix, shares, size=10 if classes <= 10 else 7)
    bar = figure.colorbar(image, ax=grid, shrink=0.6, aspect=30, pad=0.02)
    bar.set_label("share of the true class (%)", color=MUTED)
    bar.set_ticks([0, 1, 5, 10, 25, 50, 100])
    bar.ax.tick_params(length=0, colors=INK)
    bar.outline.set_visible(False)
    accuracy = np.trace(matrix) / max(matrix.sum(), 1)
    heading = f"{title}: {accuracy:.2%} of {matrix.sum():,} images right"
    grid.set_title(heading, loc="left", color=INK, fontsize=15, weight="bold", pad=14)
    _list_confusions(side, shares, label_names)
    return save(figure, path)


def _name_and_loss(workdir: Path) -> tuple[str, str | None]:
    path = workdir / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    loss = config.get("train", {}).get("loss")
    own = loss and next(iter(loss.values()))  # behind its kind, which comes first, stands its name
    return config.get("name") or workdir.resolve().name, own


def _curve(records: Sequence[Mapping[str, Any]], split: str, field: str) -> tuple[np.ndarray, np.ndarray]:
    rows = [record for record in records if record.get("split") == split and field in record]
    epochs = [record.get("epoch", record["step"]) for record in rows]
    values = [np.nan if record[field] is None else record[field] for record in rows]
    return np.array(epochs, dtype=float), np.array(values, dtype=float)


def _axes(title: str, detail: str, ylabel: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", color=INK, fontsize=14, weight="bold", pad=24)
    axes.text(0, 1.03, detail, transform=axes.transAxes, color=MUTED, fontsize=10.5)
    axes.set_xlabel("epoch", color=MUTED)
    axes.set_ylabel(ylabel, color=MUTED)
    axes.margins(x=0)
    plain(axes)
    return figure, axes


def _draw_loss(name: str, curves: dict[str, tuple[np.ndarray, np.ndarray]], own: str | None) -> Any:
    label = "cross-entropy (nats)" if own is None else f"train: {own}; else cross-entropy (nats)"
    figure, axes = _axes(f"{name}: loss", _final(curves, "{:.4f}"), label)
    values = np.concatenate([curve[1] for curve in curves.values()])
    values = values[np.isfinite(values)]
    if values.min() > 0 and values.max() / values.min() > LOG_RANGE:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    else:
        axes.set_ylim(1.05 * min(0, values.min()), 1.05 * max(0, values.max()) or 1)  # one's own may be negative
    _draw_curves(axes, curves)
    return figure


def _draw_accuracy(name: str, curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> Any:
    percent = {split: (epochs, 100 * values) for split, (epochs, values) in curves.items()}
    figure, axes = _axes(f"{name}: accuracy", _final(percent, "{:.2f} %"), "accuracy (%)")
    lowest = min(np.nanmin(values) for _, values in percent.values())
    axes.set_ylim(max(0, lowest - 5), 101)
    _draw_curves(axes, percent)
    return figure


def _draw_learning_rate(name: str, curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> Any:
    epochs, values = next(iter(curves.values()))
    detail = f"largest logged {np.nanmax(values):.4g}, last {values[-1]:.3g}"
    figure, axes = _axes(f"{name}: learning rate", detail, "learning rate")
    axes.plot(epochs, values, color=SPLITS["train"][1], linewidth=2)
    axes.set_ylim(0, 1.05 * np.nanmax(values) or 1)
    axes.set_xlim(left=0)
    return figure


def _final(curves: dict[str, tuple[np.ndarray, np.ndarray]], form: str) -> str:
    last = {split: values[np.isfinite(values)][-1] for split, (_, values) in curves.items()}
    return "last: " + ", ".join(f"{SPLITS[split][0]} {form.format(value)}" for split, value in last.items())


def _draw_curves(axes: Any, curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    ends = []
    for split, (epochs, values) in curves.items():
        label, color = SPLITS[split]
        shown = values
        if split == "train" and len(values) >= SMOOTH_FROM:
            axes.plot(epochs, values, color=color, linewidth=0.8, alpha=0.25)
            shown = running_mean(values, len(values) // 60)
        marker = "o" if len(values) <= 30 else None
        axes.plot(epochs, shown, color=color, linewidth=2, marker=marker, markersize=3.5, clip_on=False)
        last = np.flatnonzero(np.isfinite(shown))[-1]
        ends.append((epochs[last], shown[last], label, color))
    axes.set_xlim(left=0)
    label_ends(axes, ends)


def plain(axes: Any, lines: Literal["both", "x", "y"] = "both") -> None:
    """Thin lines for a frame and, from the marks of one or both axes, behind what is drawn; grey texts."""
    axes.grid(color=GRID, linewidth=0.8, axis=lines)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    axes.tick_params(which="both", colors=MUTED, length=0)


def typeset(text: str, keep: str = "") -> str:
    """A text of the user's as Matplotlib can set it: between two dollar signs it sees formulas, and fails at others."""
    return printable(text, keep).replace("$", r"\$")


def label_ends(axes: Any, ends: list[tuple[float, float, str, str]]) -> None:
    """Write every curve's name at its end."""
    points = axes.transAxes.inverted().transform(axes.transData.transform([end[:2] for end in ends]))
    for (_, _, text, color), height in zip(ends, apart(points[:, 1]), strict=True):
        axes.text(1.015, height, text, transform=axes.transAxes, color=color, weight="bold", va="center", fontsize=10.5)


def apart(heights: np.ndarray) -> np.ndarray:
    """Heights between 0 and 1, in the same order, moved until a line of text fits between any two."""
    order = np.argsort(heights, kind="stable")
    places = np.arange(len(heights)) * LABEL_GAP
    # Up from the lowest where names would overlap, then down again where they would leave the picture.
    risen = np.maximum.accumulate(heights[order] - places) + places
    settled = np.minimum(risen, 1 - places[::-1])
    moved = np.empty_like(heights)
    moved[order] = settled
    return moved


def running_mean(values: np.ndarray, half: int) -> np.ndarray:
    """Mean of the finite values within `half` places; NaN stays NaN."""
    windows = [values[max(0, index - half) : index + half + 1] for index in range(len(values))]
    return np.array([np.nan if np.isnan(value) else np.nanmean(w) for value, w in zip(values, windows, strict=True)])


def _label_classes(axes: Any, label_names: Sequence[str], size: float) -> None:
    ticks, few = np.arange(len(label_names)), len(label_names) <= 20
    axes.set_yticks(ticks, label_names, fontsize=size)
    if few and max(map(len, label_names)) <= 3:
        axes.set_xticks(ticks, label_names, fontsize=size)
    elif few:
        axes.set_xticks(ticks, label_names, fontsize=size, rotation=45, ha="right", rotation_mode="anchor")
    else:
        axes.set_xticks(ticks, label_names, fontsize=size, rotation=90)
    axes.set_xlabel("predicted class", color=MUTED, fontsize=12)
    axes.set_ylabel("true class", color=MUTED, fontsize=12)
    axes.set_xticks(ticks[:-1] + 0.5, minor=True)
    axes.set_yticks(ticks[:-1] + 0.5, minor=True)
    axes.grid(which="minor", color="white" if few else GRID, linewidth=1.5 if few else 0.3)
    axes.tick_params(which="both", length=0, colors=INK)
    axes.spines[:].set_visible(False)


def _write_counts(axes: Any, matrix: np.ndarray, shares: np.ndarray, size: float) -> None:
    for (row, column), count in np.ndenumerate(matrix):
        if count:
            color = "white" if shares[row, column] > 0.3 else INK
            axes.text(column, row, f"{count:,}", ha="center", va="center", color=color, fontsize=size)


def _list_confusions(axes: Any, shares: np.ndarray, label_names: Sequence[str]) -> None:
    arrow = "\N{RIGHTWARDS ARROW}"
    wrong = shares * (1 - np.eye(len(shares)))
    order = np.argsort(-wrong, axis=None, kind="stable")[:TOP_CONFUSIONS]
    pairs = [np.unravel_index(index, wrong.shape) for index in order if wrong.flat[index]]
    axes.axis("off")

    def write(line: float, text: str, right: bool = False, **style: Any) -> None:
        place = {"xy": (right, 1), "xytext": (0, -18 * line), "textcoords": "offset points"}
        style = {"color": INK, "fontsize": 10.5, **style}
        axes.annotate(text, **place, xycoords="axes fraction", ha="right" if right else "left", va="top", **style)

    write(0, "Most confused", weight="bold", fontsize=12)
    write(1.2, f"true {arrow} predicted", color=MUTED)
    for line, (row, column) in enumerate(pairs, start=3):
        write(line, f"{label_names[row]} {arrow} {label_names[column]}")
        write(line, f"{shares[row, column]:.1%}", right=True)


def save(figure: Any, path: Path) -> Path:
    """Write a figure as PNG in one piece, and make its folder; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _let_names_be_written(figure)
    with atomic_write(path) as file, warnings.catch_warnings():
        # A name in letters that no font here has is drawn as boxes; it is in the tables as it is.
        warnings.filterwarnings("ignore", r"(?s)Glyph .* missing from|Matplotlib currently does not support")
        figure.savefig(file, format="png", dpi=DPI, facecolor="white", bbox_inches="tight", pad_inches=0.15)
    return path


def _let_names_be_written(figure: Any) -> None:
    """Give texts beyond ASCII the fonts of this machine to fall back on, after the one that they are written in."""
    from matplotlib.font_manager import fontManager
    from matplotlib.text import Text

    there = set(fontManager.get_font_names())
    more = [name for name in MORE_FONTS if name in there]
    for text in figure.findobj(Text):
        if more and not text.get_text().isascii():
            text.set_fontfamily([*text.get_fontfamily(), *more])
