"""Grids of small images as PNG files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jax_cifar.telemetry.plots import INK, MUTED, save

LABEL_WIDTH = 34  # characters of a row's label before it is wrapped


def draw_rows(rows: Sequence[tuple[str, np.ndarray, np.ndarray]], path: Path, title: str) -> Path:
    """Draw a labelled row for each (label, original [height, width, channel], results [n, height, width, channel]).

    Values lie between 0 and 1; one channel is grey. Returns the path.
    """
    import textwrap

    from matplotlib.figure import Figure

    columns = 1 + max(len(results) for _, _, results in rows)
    figure = Figure(figsize=(2.6 + 0.95 * columns, 0.6 + 0.98 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, (label, original, results) in zip(axes, rows, strict=True):
        for cell, image in zip(line, [original, *results], strict=False):
            cell.imshow(_rgb(np.clip(image, 0, 1)), interpolation="nearest")
        for cell in line:
            _bare(cell)
        text = "\n".join(textwrap.wrap(label, LABEL_WIDTH))
        line[0].set_ylabel(text, rotation=0, ha="right", va="center", color=INK, fontsize=9)
    axes[0][0].set_title("original", color=MUTED, fontsize=9)
    figure.suptitle(title, color=INK, fontsize=12, weight="bold")
    return save(figure, path)


def draw_sections(
    sections: Sequence[tuple[str, Sequence[tuple[str, np.ndarray]]]], path: Path, columns: int = 8
) -> Path:
    """Draw sections of titled pictures: images [height, width, 1 or 3] of values 0 to 1, or maps [height, width].

    A map is drawn in blue below zero and red above; the colours of a section's maps mean the same values. Returns the
    path.
    """
    from matplotlib.figure import Figure

    heights = [-(-len(panels) // columns) for _, panels in sections]
    figure = Figure(figsize=(1.5 * columns, 1.75 * sum(heights) + 0.5 * len(sections)), layout="constrained")
    parts = figure.subfigures(len(sections), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, rows, (title, panels) in zip(parts, heights, sections, strict=True):
        part.suptitle(title, color=INK, fontsize=12, weight="bold", x=0.01, ha="left")
        maps = [image for _, image in panels if image.ndim == 2]
        reach = max((float(np.abs(values).max()) for values in maps), default=1.0) or 1.0
        cells = part.subplots(rows, columns, squeeze=False).ravel()
        for cell in cells:
            _bare(cell)
        for cell, (name, image) in zip(cells, panels, strict=False):
            options: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -reach, "vmax": reach} if image.ndim == 2 else {}
            cell.imshow(_rgb(image), interpolation="nearest", **options)
            cell.set_title(name.replace(": ", "\n"), color=MUTED, fontsize=6.5)
    return save(figure, path)


def _rgb(image: np.ndarray) -> np.ndarray:
    """One channel as three; matplotlib would stretch it and show it in colours. A map stays as it is."""
    return np.repeat(image, 3, axis=2) if image.ndim == 3 and image.shape[2] == 1 else image


def _bare(axes: Any) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
