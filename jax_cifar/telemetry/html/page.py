"""The whole file: one run from top to bottom, or several side by side with each of them folded below."""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from jax_cifar.telemetry.html import PALETTE
from jax_cifar.telemetry.html.charts import Form, Kind, line_chart, percent, style
from jax_cifar.telemetry.html.markup import Child, Markup, join, tag
from jax_cifar.telemetry.html.sections import address, data_table, duration, figures, run_sections, verdict
from jax_cifar.telemetry.html.shown import Shown

_FOLDER = Path(__file__).parent
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def report_page(runs: Sequence[Shown], groups: Sequence[str] = ()) -> str:
    """The page as text.

    Args:
        runs: at least one; of several the first letter of the alphabet stands for the first.
        groups: sentences on runs that are the same experiment.
    """
    if len(runs) == 1:
        run = runs[0]
        sections = run_sections(run)
        links = (tag("a", title, href=f"#{address(title)}") for title in sections)
        nav = tag("nav", links, aria_label="Parts of this page")
        return _document(run.name, _header(run), figures(run), nav, tag("main", sections.values()))
    letters = [_letter(i) for i in range(len(runs))]
    keys, names = _keys(runs, letters), list(dict.fromkeys(run.name for run in runs))
    title = f"{len(runs)} runs of {', '.join(names)}" if len(names) <= 3 else f"{len(runs)} runs"
    parts = [
        tag("header", tag("h1", title)),
        _section("Figures", _figures(runs, keys), (tag("p", group) for group in groups)),
        _section("Curves", _curves(runs, letters, keys)),
        _section("What differs between them", _differences(runs, letters)),
        _section("Each run", map(_folded, runs, keys)),
    ]
    return _document(title, parts[0], tag("main", parts[1:]))


def _letter(index: int) -> str:
    rounds, place = divmod(index, len(LETTERS))
    return LETTERS[place] + (str(rounds) if rounds else "")


def _header(run: Shown) -> Markup:
    return tag("header", tag("h1", run.name), verdict(run), _problem(run))


def _problem(run: Shown) -> Markup | None:
    return None if run.problem is None else tag("p", f"Mind that {run.problem}.", class_="fault")


def _section(title: str, *children: Child) -> Markup:
    return tag("section", tag("h2", title), children)


def _keys(runs: Sequence[Shown], letters: Sequence[str]) -> list[Markup]:
    """What each is called: a letter in its colour, and its name, or its folder's where another has the same name."""
    names = [run.name for run in runs]
    called = [Path(run.folder).name if names.count(run.name) > 1 else run.name for run in runs]
    pairs = enumerate(zip(letters, called, strict=True))
    return [tag("span", tag("span", letter, class_=f"letter {style(i)}"), " ", name) for i, (letter, name) in pairs]


def _figures(runs: Sequence[Shown], keys: Sequence[Markup]) -> Markup:
    """One row for each run; the best accuracy of them is marked."""
    accuracies = [run.figure("test_accuracy") for run in runs]
    best = max((value for value in accuracies if value is not None), default=None)
    rows = []
    for run, key, accuracy in zip(runs, keys, accuracies, strict=True):
        shown = _shown(accuracy, percent) if run.problem is None else "not finished"
        seconds = run.figure("seconds", "train")
        rows.append(
            [
                key,
                tag("strong", shown, " (best)") if accuracy is not None and accuracy == best else shown,
                _shown(run.figure("test_loss"), "{:.4f}".format),
                _shown(run.figure("train_accuracy"), percent),
                "-" if run.reliability is None else percent(run.reliability.error),
                _shown(run.figure("parameters"), "{:,.0f}".format),
                _shown(run.figure("epochs"), "{:g}".format),
                "-" if seconds is None else duration(seconds),
                run.fields.get("train.seed", "-"),
            ]
        )
    head = ["run", "test accuracy", "test loss", "train accuracy", "ECE", "parameters", "epochs", "training", "seed"]
    return data_table(head, rows, "Figures of the runs", "runs")


def _shown(value: float | None, form: Form) -> str:
    return "-" if value is None else form(value)


def _curves(runs: Sequence[Shown], letters: Sequence[str], keys: Sequence[Markup]) -> Markup:
    """The same chart of all runs, a colour and a letter each; what was measured only once is in the table."""
    charts: dict[str, tuple[str, str, Kind]] = {
        "Test accuracy": ("test", "accuracy", "share"),
        "Test loss": ("test", "loss", "wide"),
        "Validation accuracy": ("validation", "accuracy", "share"),
        "Validation loss": ("validation", "loss", "wide"),
        "Train accuracy": ("train", "accuracy", "share"),
        "Train loss": ("train", "loss", "wide"),
        "Learning rate": ("train", "lr", "plain"),
        "Gradient norm": ("train", "gradient_norm", "wide"),
    }
    drawn = []
    for title, (split, name, kind) in charts.items():
        noisy = None if name in ("accuracy", "loss") else False
        curves = [run.curve(split, name, i, letters[i], noisy) for i, run in enumerate(runs)]
        if any(len(curve.xs) > 1 for curve in curves):
            drawn.append(line_chart(title, curves, kind))
    legend = tag("ul", (tag("li", key) for key in keys), class_="legend")
    return tag("div", legend, tag("div", drawn, class_="charts"))


def _differences(runs: Sequence[Shown], letters: Sequence[str]) -> Markup:
    """The fields of the configurations that are not the same in all runs."""
    names = list(dict.fromkeys(name for run in runs for name in run.fields))
    values = {name: [run.fields.get(name, "-") for run in runs] for name in names}
    rows = [[name, *cells] for name, cells in values.items() if len(set(cells)) > 1]
    if not rows:
        return tag("p", "Nothing: their configurations are the same.", class_="note")
    return data_table(["field", *letters], rows, "Fields that differ")


def _folded(run: Shown, key: Markup) -> Markup:
    head = tag("summary", tag("h3", key))
    return tag("details", head, verdict(run), _problem(run), figures(run), run_sections(run, 4).values(), class_="run")


def _document(title: str, *body: Child) -> str:
    """A page with its style and script inside, and nothing else that could be loaded or run."""
    palette, style, script = (
        (_FOLDER / name).read_text(encoding="utf-8") for name in (PALETTE, "report.css", "report.js")
    )
    css = f"{palette}\n{style}"
    policy = (
        f"default-src 'none'; style-src '{_hash(css)}'; script-src '{_hash(script)}'; img-src data:;"
        " base-uri 'none'; form-action 'none'"
    )
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", title),
        tag("link", rel="icon", href="data:,"),
        tag("style", Markup(css)),
    ]
    footer = tag("footer", tag("p", "Made by scripts/report.py html of jax_cifar. This file needs no network."))
    page = tag("html", tag("head", head), tag("body", body, footer, tag("script", Markup(script))), lang="en")
    return f"<!doctype html>\n{join(page)}\n"


def _hash(text: str) -> str:
    """What the page's policy knows a style or script by."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
