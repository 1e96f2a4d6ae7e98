"""The whole file: one run from top to bottom, or several side by side with each of them folded below."""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from jax_cifar.telemetry.html.charts import line_chart, percent, style
from jax_cifar.telemetry.html.markup import Child, Markup, join, tag
from jax_cifar.telemetry.html.sections import data_table, duration, figures, run_sections, verdict
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
        return _document(run.name, _header(run), figures(run), run_sections(run))
    letters = [_letter(i) for i in range(len(runs))]
    names = list(dict.fromkeys(run.name for run in runs))
    title = f"{len(runs)} runs of {', '.join(names)}" if len(names) <= 3 else f"{len(runs)} runs"
    parts = [
        tag("header", tag("h1", title)),
        _section("Figures", _figures(runs, letters), (tag("p", group) for group in groups)),
        _section("Curves", _curves(runs, letters)),
        _section("What differs between them", _differences(runs, letters)),
        _section("Each run", map(_folded, runs, letters, range(len(runs)))),
    ]
    return _document(title, *parts)


def _letter(index: int) -> str:
    rounds, place = divmod(index, len(LETTERS))
    return LETTERS[place] + (str(rounds) if rounds else "")


def _header(run: Shown) -> Markup:
    return tag("header", tag("h1", run.name), verdict(run), _problem(run))


def _problem(run: Shown) -> Markup | None:
    return None if run.problem is None else tag("p", f"Mind that {run.problem}.", class_="fault")


def _section(title: str, *children: Child) -> Markup:
    return tag("section", tag("h2", title), children)


def _key(letter: str, index: int) -> Markup:
    """A run's letter in its colour."""
    return tag("span", letter, class_=f"letter {style(index)}")


def _figures(runs: Sequence[Shown], letters: Sequence[str]) -> Markup:
    """One row for each run; the best accuracy of them is marked."""
    accuracies = [run.figure("test_accuracy") for run in runs]
    best = max((value for value in accuracies if value is not None), default=None)
    rows = []
    for i, (run, letter) in enumerate(zip(runs, letters, strict=True)):
        accuracy = _shown(accuracies[i], "{:.2%}") if run.problem is None else f"- ({run.problem})"
        marked = tag("strong", accuracy, " best") if accuracies[i] == best is not None else accuracy
        seconds = run.figure("seconds", "train")
        rows.append(
            [
                [_key(letter, i), " ", run.name],
                marked,
                _shown(run.figure("test_loss"), "{:.4f}"),
                _shown(run.figure("train_accuracy"), "{:.2%}"),
                "-" if run.reliability is None else f"{run.reliability.error:.2%}",
                _shown(run.figure("parameters"), "{:,.0f}"),
                _shown(run.figure("epochs"), "{:g}"),
                "-" if seconds is None else duration(seconds),
                run.fields.get("train.seed", "-"),
                run.folder,
            ]
        )
    head = [
        "run",
        "test accuracy",
        "test loss",
        "train accuracy",
        "ECE",
        "parameters",
        "epochs",
        "training",
        "seed",
        "folder",
    ]
    return data_table(head, rows, "Figures of the runs")


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _curves(runs: Sequence[Shown], letters: Sequence[str]) -> Markup:
    """The same chart of all runs, a colour and a letter each."""
    charts = {
        "Test accuracy": ("test", "accuracy", True),
        "Test loss": ("test", "loss", False),
        "Validation accuracy": ("validation", "accuracy", True),
        "Train accuracy": ("train", "accuracy", True),
        "Train loss": ("train", "loss", False),
        "Learning rate": ("train", "lr", False),
        "Gradient norm": ("train", "gradient_norm", False),
    }
    drawn = []
    for title, (split, name, share) in charts.items():
        curves = [run.curve(split, name, i, letter) for i, (run, letter) in enumerate(zip(runs, letters, strict=True))]
        drawn.append(line_chart(title, curves, *([percent] if share else []), share=share))
    keys = (
        tag("li", _key(letter, i), " ", run.name) for i, (run, letter) in enumerate(zip(runs, letters, strict=True))
    )
    return tag("div", tag("ul", keys, class_="legend"), tag("div", drawn, class_="charts"))


def _differences(runs: Sequence[Shown], letters: Sequence[str]) -> Markup:
    """The fields of the configurations that are not the same in all runs."""
    names = list(dict.fromkeys(name for run in runs for name in run.fields))
    values = {name: [run.fields.get(name, "-") for run in runs] for name in names}
    rows = [[name, *cells] for name, cells in values.items() if len(set(cells)) > 1]
    if not rows:
        return tag("p", "Nothing: their configurations are the same.", class_="note")
    return data_table(["field", *letters], rows, "Fields that differ")


def _folded(run: Shown, letter: str, index: int) -> Markup:
    head = tag("summary", tag("h3", _key(letter, index), " ", run.name, tag("span", f" {run.folder}", class_="quiet")))
    return tag("details", head, verdict(run), _problem(run), figures(run), run_sections(run, 4), class_="run")


def _document(title: str, *body: Child) -> str:
    """A page with its style and script inside, and nothing else that could be loaded or run."""
    css, script = ((_FOLDER / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
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
