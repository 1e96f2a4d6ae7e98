"""What a network makes of each class: the confusion matrix as a heat map, pairs that it confuses, a row per class."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from jaxtyping import Bool, Float, Int

from jax_cifar.telemetry.html.charts import percent
from jax_cifar.telemetry.html.markup import Markup, tag

FEW = 20  # classes whose counts are written into the cells
SHADES = 12
TOP_PAIRS = 12
ROWS = 15  # of classes shown without being asked for, where there are many

Matrix = Int[np.ndarray, "classes classes"]


@dataclass(frozen=True)
class Judged:
    """How the images of every class were classified. Shares lie between 0 and 1."""

    label_names: tuple[str, ...]
    precision: Float[np.ndarray, " classes"]
    recall: Float[np.ndarray, " classes"]
    f1: Float[np.ndarray, " classes"]
    confusion: Matrix  # rows true, columns predicted

    @property
    def is_seen(self) -> Bool[np.ndarray, " classes"]:
        """As `evaluation.metrics.Report` has it."""
        return self.confusion.sum(axis=0) + self.confusion.sum(axis=1) > 0


def heat_map(confusion: Matrix, label_names: Sequence[str]) -> Markup:
    """A cell for every true (row) and predicted class (column), shaded by its share of the row.

    What is right and what is confused have a colour each, which is full for the largest share: a confusion of 4 % is
    seen beside a diagonal of 90 %.
    """
    few = len(label_names) <= FEW
    cell, size = (34, 12.0) if few else (9, 7.5)
    names = [_short(name) for name in label_names]
    space = 10 + 0.58 * size * max(map(len, names))
    top = 6 + (0.75 if few else 1) * space
    side = cell * len(label_names)
    width = space + side + (0.3 * space if few else 2)
    image = tag(
        "svg",
        tag("rect", x=space, y=top, width=side, height=side, class_="empty"),
        _shades(confusion, cell, space, top),
        _counts(confusion, cell, space, top) if few else None,
        _names(names, cell, size, space, top, -45 if few else -90),
        tag("rect", class_="cursor", width=cell, height=cell, visibility="hidden"),
        viewBox=f"0 0 {width:.0f} {top + side + 2:.0f}",
        class_="matrix " + ("few" if few else "many"),
        role="img",
        tabindex=0,
        aria_label="Confusion matrix: true classes in rows, predicted ones in columns. With the arrow keys cells are"
        " read; the pairs confused most often are listed below.",
        data_names=json.dumps(list(label_names)),
        data_counts=json.dumps([[*map(int, at), int(confusion[tuple(at)])] for at in np.argwhere(confusion)]),
        data_place=json.dumps([space, top, cell]),
    )
    caption = tag(
        "figcaption", tag("strong", "Confusion matrix"), " ", tag("output", "rows are true, columns predicted")
    )
    box = tag("div", image, class_="scroll", tabindex=0, role="region", aria_label="Confusion matrix")
    return tag("figure", caption, box, class_="chart")


def _short(name: str, most: int = 18) -> str:
    return name if len(name) <= most else name[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _shares(confusion: Matrix) -> Float[np.ndarray, "classes classes"]:
    return confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)


def _shades(confusion: Matrix, cell: int, left: float, top: float) -> list[Markup]:
    """All cells of one shade as one path: a hundred classes have ten thousand cells."""
    shares, right = _shares(confusion), np.eye(len(confusion), dtype=bool)
    largest = np.where(right, shares[right].max(), shares[~right].max(initial=0))
    shades = np.ceil(shares / np.maximum(largest, 1e-9) * SHADES).astype(int)
    places = [(int(shades[i, j]), i != j, i, j) for i, j in np.argwhere(confusion).tolist()]
    gap = 1 if cell > 20 else 0
    paths = []
    for (shade, wrong), cells in groupby(sorted(places), key=lambda place: place[:2]):
        corners = (f"M{left + j * cell + gap:g} {top + i * cell + gap:g}" for *_, i, j in cells)
        side = cell - 2 * gap
        d = "".join(f"{corner}h{side}v{side}h-{side}z" for corner in corners)
        paths.append(tag("path", d=d, class_="wrong" if wrong else "right", fill_opacity=0.04 + 0.96 * shade / SHADES))
    return paths


def _counts(confusion: Matrix, cell: int, left: float, top: float) -> Markup:
    texts = (
        tag("text", f"{confusion[i, j]}", x=left + (j + 0.5) * cell, y=top + (i + 0.5) * cell + 4, class_="middle")
        for i, j in np.argwhere(confusion).tolist()
    )
    return tag("g", texts, class_="counts", aria_hidden="true")


def _names(names: Sequence[str], cell: int, size: float, left: float, top: float, turn: int) -> Markup:
    drop = size / 3
    rows = (
        tag("text", name, x=left - 5, y=top + (i + 0.5) * cell + drop, class_="end") for i, name in enumerate(names)
    )
    places = [(left + (j + 0.5) * cell + (drop if turn == -90 else 0), top - 5) for j in range(len(names))]
    columns = (
        tag("text", name, x=x, y=y, transform=f"rotate({turn} {x:.1f} {y:.1f})")
        for name, (x, y) in zip(names, places, strict=True)
    )
    return tag("g", rows, columns, font_size=size, aria_hidden="true")


def confused_pairs(confusion: Matrix, label_names: Sequence[str]) -> Markup | None:
    """The pairs of true and predicted class that are confused most often; None where nothing is."""
    shares = _shares(confusion) * (1 - np.eye(len(confusion)))
    order = np.argsort(-shares, axis=None, kind="stable")[:TOP_PAIRS].tolist()
    pairs = [divmod(index, len(confusion)) for index in order if shares.flat[index]]
    items = (
        tag(
            "li",
            tag("span", label_names[i], tag("span", " taken for ", class_="quiet"), label_names[j]),
            tag("span", percent(float(shares[i, j]), 1), class_="number"),
        )
        for i, j in pairs
    )
    return (
        tag("div", tag("p", "Confused most often", class_="head"), tag("ol", items, class_="pairs")) if pairs else None
    )


def class_table(judged: Judged) -> Markup:
    """Precision, recall and F1 of every class, the worst first; of many classes the others are folded away.

    A class without images that was never predicted is no bad one, and comes last.
    """
    order = np.lexsort((judged.f1, ~judged.is_seen)).tolist()
    many = len(order) > FEW
    shown, folded = (order[:ROWS], order[ROWS:]) if many else (order, [])
    head = f"The {ROWS} worst classes" if many else "Classes, the worst first"
    rest = (
        tag("details", tag("summary", f"The other {len(folded)} classes"), _table(judged, folded)) if folded else None
    )
    return tag("div", tag("p", head, class_="head"), _table(judged, shown), rest)


def _table(judged: Judged, order: Sequence[int]) -> Markup:
    names = ("precision", "recall", "F1")
    columns = (judged.precision, judged.recall, judged.f1)
    heads = [tag("th", tag("i", class_=f"key b{i}"), name, scope="col") for i, name in enumerate(names)]
    head = tag("tr", tag("th", "class", scope="col"), tag("td"), heads, tag("th", "images", scope="col"))
    rows = (
        tag(
            "tr",
            tag("th", judged.label_names[at], scope="row"),
            tag("td", _bars([float(column[at]) for column in columns]), class_="bars"),
            [
                tag("td", percent(float(column[at]), 1) if judged.is_seen[at] else "-", class_="number")
                for column in columns
            ],
            tag("td", f"{judged.confusion[at].sum():,}", class_="number"),
        )
        for at in order
    )
    table = tag("table", tag("thead", head), tag("tbody", rows), class_="classes")
    return tag("div", table, class_="scroll", tabindex=0, role="region", aria_label="Figures of the classes")


def _bars(shares: Sequence[float]) -> Markup:
    bars = (tag("rect", y=i * 6, width=100 * share, height=5, class_=f"b{i}") for i, share in enumerate(shares))
    return tag("svg", bars, viewBox="0 0 100 17", preserveAspectRatio="none", aria_hidden="true")
