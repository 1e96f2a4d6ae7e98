"""Curves and the reliability diagram as SVG: report.css has the colours, report.js reads values under the pointer."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jax_cifar.telemetry.html.markup import Markup, tag
from jax_cifar.telemetry.plots import LOG_RANGE, SMOOTH_FROM, apart, running_mean

STYLES = 8  # colours of report.css; after them they come again, dashed
WIDTH, HEIGHT = 400.0, 230.0
LEFT, TOP, BOTTOM = 46.0, 12.0, 36.0
MOST_POINTS = 300  # of a curve: more cannot be told apart

Form = Callable[[float], str]
Kind = Literal["share", "wide", "plain"]


def percent(value: float, digits: int = 2) -> str:
    """A share as `72.65 %`, which no line breaks."""
    return f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def figure_of(value: float) -> str:
    """A number in four digits."""
    return f"{value:.4g}"


def _general(value: float) -> str:
    return f"{value:g}"


def _round_percent(value: float) -> str:
    return percent(value, 0)


@dataclass(frozen=True)
class Curve:
    """A line of a chart; values that are not finite are gaps in it."""

    label: str  # at its end, and where values are read
    xs: Float[np.ndarray, " n"]
    ys: Float[np.ndarray, " n"]
    style: int  # which colour
    noisy: bool = False  # drawn as its running mean, before what it is the mean of


class Axis(NamedTuple):
    """Where values lie between two ends, of which the first is drawn at 0 and the second at 1."""

    low: float
    high: float
    log: bool
    ticks: tuple[float, ...]

    def place(self, values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Where values are, 0 to 1; of a logarithmic axis what is not above zero is at 0."""
        if self.log:
            values = np.log10(np.maximum(values, self.low))
            low, high = math.log10(self.low), math.log10(self.high)
        else:
            low, high = self.low, self.high
        return np.clip((values - low) / (high - low), 0, 1)


def linear_axis(low: float, high: float, most: int = 5) -> Axis:
    """An axis that holds both values, with at most `most` + 1 round ticks."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    size = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(factor * size for factor in (1, 2, 5, 10, 20) if (high - low) / (factor * size) <= most)
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first + 1
    return Axis(low, high, False, tuple(round((first + i) * step, 12) for i in range(count)))


def log_axis(low: float, high: float) -> Axis:
    """A logarithmic axis, with ticks at powers of ten, and between few of them at their doubles and fives."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = max(1, len(powers) // 5)
    factors = (1, 2, 5) if len(powers) <= 4 else (1,)
    ticks = (factor * 10.0**power for power in powers[::every] for factor in factors)
    return Axis(low, high, True, tuple(tick for tick in ticks if low * 0.999 <= tick <= high * 1.001))


def value_axis(curves: Sequence[Curve], kind: Kind) -> Axis:
    """The vertical axis: of shares about as far as they reach; else from zero, or logarithmic over a wide range."""
    values = np.concatenate([curve.ys[np.isfinite(curve.ys)] for curve in curves])
    low, high = float(values.min()), float(values.max())
    if kind == "share":
        return linear_axis(max(0.0, low - 0.04), min(1.0, high + 0.02))
    if kind == "wide" and low > 0 and high / low > LOG_RANGE:
        return log_axis(low, high)
    return linear_axis(min(0.0, low), high * 1.04)


def line_chart(title: str, curves: Sequence[Curve], kind: Kind = "wide") -> Markup | None:
    """A figure of curves over epochs, with their last values in its caption; None without a single finite value.

    Args:
        title: what is drawn.
        curves: in the order of the caption.
        kind: what values are: shares between 0 and 1; of a wide range, which may ask for a logarithmic axis; or plain.
    """
    curves = [curve for curve in curves if np.isfinite(curve.ys).any()]
    if not curves:
        return None
    right = 12.0 + 6.6 * max(len(curve.label) for curve in curves)
    across = linear_axis(0.0, max(float(curve.xs.max()) for curve in curves))
    up, form = value_axis(curves, kind), percent if kind == "share" else figure_of
    frame = Frame(across, up, right)
    drawn = [line for curve in curves for line in frame.curve(curve, form)]
    last = ", ".join(f"{curve.label}\N{NO-BREAK SPACE}{form(_last(curve))}" for curve in curves)
    image = tag(
        "svg",
        frame.grid(_round_percent if kind == "share" else _general),
        drawn,
        frame.names(curves),
        tag("g", class_="cursor"),
        viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}",
        class_="lines",
        role="img",
        tabindex=0,
        aria_label=f"{title} by epoch; last: {last}. With the arrow keys values are read.",
    )
    caption = tag("figcaption", tag("strong", title), " ", tag("output", f"last: {last}"))
    return tag("figure", caption, image, class_="chart")


def _last(curve: Curve) -> float:
    return float(curve.ys[np.isfinite(curve.ys)][-1])


class Frame(NamedTuple):
    """The area that values are drawn in, `right` units from the edge of the picture."""

    across: Axis
    up: Axis
    right: float

    def xs(self, values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Horizontal places in the picture."""
        return LEFT + self.across.place(values) * (WIDTH - LEFT - self.right)

    def ys(self, values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Vertical places in the picture."""
        return HEIGHT - BOTTOM - self.up.place(values) * (HEIGHT - BOTTOM - TOP)

    def grid(self, form: Form, label: str = "epoch", across: Form = _general) -> Markup:
        """Lines and numbers of both axes: vertical numbers in this form, horizontal ones in that of `across`."""
        end, bottom = WIDTH - self.right, HEIGHT - BOTTOM
        parts = []
        for value, y in zip(self.up.ticks, self.ys(np.array(self.up.ticks)).tolist(), strict=True):
            parts += [
                tag("path", d=f"M{LEFT:g} {y:.1f}H{end:.1f}"),
                tag("text", form(value), x=LEFT - 7, y=y + 4, class_="end"),
            ]
        for value, x in zip(self.across.ticks, self.xs(np.array(self.across.ticks)).tolist(), strict=True):
            parts.append(tag("text", across(value), x=x, y=bottom + 16, class_="middle"))
        parts.append(tag("text", label, x=(LEFT + end) / 2, y=HEIGHT - 4, class_="middle"))
        parts.append(tag("path", d=f"M{LEFT:g} {bottom:g}H{end:.1f}", class_="base"))
        return tag("g", parts, class_="grid", aria_hidden="true")

    def curve(self, curve: Curve, form: Form) -> list[Markup]:
        """The path of a curve, and what it is the mean of before it."""
        xs, ys = curve.xs, curve.ys
        drawn = []
        if curve.noisy and len(ys) >= SMOOTH_FROM:
            drawn.append(tag("path", d=self._path(*_thinned(xs, ys)), class_=f"line {style(curve.style)} faint"))
            ys = running_mean(ys, len(ys) // 60)
        xs, ys = _thinned(xs, ys)
        finite = np.isfinite(ys)
        drawn.append(
            tag(
                "path",
                d=self._path(xs, ys),
                class_=f"line {style(curve.style)}",
                data_label=curve.label,
                data_x=" ".join(f"{x:.4g}" for x in xs[finite]),
                data_y="|".join(map(form, ys[finite].tolist())),
            )
        )
        if len(ys) <= 30:
            dots = zip(self.xs(xs[finite]).tolist(), self.ys(ys[finite]).tolist(), strict=True)
            drawn += [tag("circle", cx=x, cy=y, r=2.6, class_=f"dot {style(curve.style)}") for x, y in dots]
        return drawn

    def names(self, curves: Sequence[Curve]) -> Markup:
        """The name of every curve at its end."""
        ends = [(curve.xs[np.isfinite(curve.ys)][-1], _last(curve)) for curve in curves]
        heights = 1 - self.ys(np.array([y for _, y in ends])) / HEIGHT
        placed = HEIGHT * (1 - apart(heights))
        texts = (
            tag("text", curve.label, x=WIDTH - self.right + 7, y=float(y) + 4, class_=f"name {style(curve.style)}")
            for curve, y in zip(curves, placed, strict=True)
        )
        return tag("g", texts, aria_hidden="true")

    def _path(self, xs: np.ndarray, ys: np.ndarray) -> str:
        places = zip(self.xs(xs).tolist(), self.ys(ys).tolist(), np.isfinite(ys).tolist(), strict=True)
        path, pen = [], "M"
        for x, y, finite in places:
            if finite:
                path.append(f"{pen}{x:.1f} {y:.1f}")
            pen = "L" if finite else "M"
        return "".join(path)


def style(number: int) -> str:
    """The classes of a curve's colour."""
    return f"s{number % STYLES}" + (" dashed" if number // STYLES % 2 else "")


def _thinned(xs: np.ndarray, ys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `MOST_POINTS` of the points, the last among them."""
    chosen = np.unique(np.linspace(0, len(xs) - 1, min(len(xs), MOST_POINTS)).round().astype(int))
    return xs[chosen], ys[chosen]


def reliability_chart(
    edges: Float[np.ndarray, " edges"],
    counts: Int[np.ndarray, " bins"],
    confidence: Float[np.ndarray, " bins"],
    accuracy: Float[np.ndarray, " bins"],
) -> Markup:
    """How often the network is right, by how sure it is: a bar for each bin that has images, beside the diagonal."""
    frame = Frame(linear_axis(0, 1), linear_axis(0, 1), 12.0)
    left, right = frame.xs(edges[:-1]).tolist(), frame.xs(edges[1:]).tolist()
    tops, wanted = frame.ys(accuracy).tolist(), frame.ys(confidence).tolist()
    bottom, parts = HEIGHT - BOTTOM, []
    for i in np.flatnonzero(counts).tolist():
        x, width = left[i] + 1, right[i] - left[i] - 2
        told = f"{counts[i]:,} images, sure of {percent(confidence[i])} on average: {percent(accuracy[i])} right"
        gap = {"y": min(tops[i], wanted[i]), "height": abs(tops[i] - wanted[i])}
        parts.append(
            tag(
                "g",
                tag("title", told),
                tag("rect", x=x, y=tops[i], width=width, height=bottom - tops[i], class_="accuracy"),
                tag("rect", x=x, width=width, class_="over" if tops[i] > wanted[i] else "under", **gap),
            )
        )
    corner = f"M{LEFT:g} {bottom:g}L{WIDTH - 12:g} {TOP:g}"
    return tag(
        "svg",
        frame.grid(_round_percent, "how sure the network is", _round_percent),
        parts,
        tag("path", d=corner, class_="diagonal"),
        viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}",
        role="img",
        aria_label="Reliability diagram: share of images that are right, by how sure the network is of them.",
    )
