"""An entry of the lab notebook: what was expected, what was changed, what came out, and what it means."""

import os
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jax_cifar.config import Config
from jax_cifar.config.files import load_config, split_variant, to_dict, to_record
from jax_cifar.config.source import unchanged_config_file
from jax_cifar.errors import ConfigError, check, printable
from jax_cifar.files import expand, open_locked, write_text
from jax_cifar.lab.curves import curves, evaluated_split
from jax_cifar.lab.runs import GIVEN_IMAGES, FinishedRun
from jax_cifar.lab.tables import markdown, shown_seeds, shown_value, spread
from jax_cifar.run.folder import read_json

HEAD = "# Experiments\n\nA lab notebook: one change at a time. Newest first.\n"
MOST_EPOCHS = 12  # in the row of accuracies


def find_parent(one: FinishedRun, parent: Path | None) -> tuple[FinishedRun, str]:
    """What a run is to be compared with, and how to call it in a sentence.

    That is the run `parent`; else the run whose weights it began with; else its config file as it is without a command
    line, which is run only where it is byte for byte what the run used; else the defaults of the library.

    Raises:
        CheckpointError: `parent` is no run.
    """
    if parent is not None:
        return _recorded(parent), f"`{_code(str(parent))}`"
    begun = one.init_from
    if begun is not None and (expand(begun) / "config.json").is_file():
        return _recorded(expand(begun)), f"`{_code(begun)}`, whose weights it began with,"
    file = None if one.folder is None else unchanged_config_file(one.folder)
    if file is not None:
        try:
            config = load_config(f"{file}{_variant(one)}")
            return FinishedRun(None, to_record(config), {}, {}), f"the defaults of `{_code(file.name)}{_variant(one)}`"
        except ConfigError:  # it describes something else than experiments, or several
            pass
    return FinishedRun(None, to_dict(Config(one.config["name"])), {}, {}), "the defaults of the library"


def changes(one: FinishedRun, parent: FinishedRun) -> dict[str, tuple[Any, Any]]:
    """The fields of which a run has other values than its parent: the parent's value and its own."""
    ours, theirs = one.fields, parent.fields
    if parent.folder is None:  # its code is that of the run, or none of the user's own
        ours = {name: value for name, value in ours.items() if name in theirs or not name.startswith("the code in ")}
    if not parent.summary:  # it is not finished, or none
        ours = {name: value for name, value in ours.items() if name != GIVEN_IMAGES}
    names = sorted(ours.keys() | theirs.keys())
    return {name: (theirs.get(name), ours.get(name)) for name in names if theirs.get(name) != ours.get(name)}


def entry(
    runs: Sequence[FinishedRun],
    parent: tuple[FinishedRun, str],
    hypothesis: str,
    conclusion: str,
    date: str,
) -> str:
    """A section of Markdown on the runs of one experiment, with a line break at its end.

    Args:
        runs: at least one, all of one experiment.
        parent: as `find_parent` gives it.
        hypothesis: of the user, as is `conclusion`: each becomes one paragraph.
        date: as the heading has it, `2026-11-26`.
    """
    changed = changes(runs[0], parent[0])
    what = [f"{name} {shown_value(new)}" for name, (_, new) in changed.items()]
    title = f", {'; '.join(what)}" if 0 < len(what) <= 2 and len("; ".join(what)) <= 80 else ""
    lines = [f"- `{_code(name)}`: {_quoted(old)} \u2192 {_quoted(new)}" for name, (old, new) in changed.items()]
    parts = [
        f"## {date}: {runs[0].config['name']}{paragraph(title)}",
        f"**Hypothesis.** {paragraph(hypothesis)}",
        f"Against {parent[1]} differ:\n\n" + "\n".join(lines) if lines else f"Nothing differs from {parent[1]}.",
        _figures(runs),
        *_epochs(runs),
        f"**Conclusion.** {paragraph(conclusion)}",
    ]
    return "\n\n".join(parts) + "\n"


def append(path: Path, text: str) -> None:
    """Put an entry before the others of a notebook, newest first; the notebook is made where there is none.

    All that is there is kept, byte for byte, and of two that write at the same time none is lost.

    Raises:
        ConfigError: the file is no text.
        OSError: it cannot be written.
    """
    path = path.resolve()
    descriptor, _ = open_locked(path, on_wait=lambda: None)
    try:
        try:
            lines = (path.read_bytes().decode() or HEAD).splitlines(keepends=True)
        except UnicodeDecodeError:
            raise ConfigError(
                f"{path} is no UTF-8 text, so that nothing can be added to it. Name another --out."
            ) from None
        place = _first_entry(lines)
        before, after = "".join(lines[:place]), "".join(lines[place:])
        write_text(path, before.rstrip("\n") + "\n\n" + text + ("\n" + after if after else ""))
    finally:
        os.close(descriptor)


def paragraph(text: str) -> str:
    """A user's text as one paragraph that begins nothing else in Markdown: on one line, without tags.

    Line breaks become spaces: at the start of a line many a character would begin a list, a heading or a table.
    """
    return re.sub(r"<(?=[a-zA-Z/!?])", "&lt;", printable(" ".join(text.split()), keep=""))


def require_text(name: str, text: str) -> str:
    """The text; raises `ConfigError` where it says nothing."""
    check(bool(text.strip()), name, text, "say it in a sentence or two")
    return text


def _recorded(folder: Path) -> FinishedRun:
    """A run that need not be finished: of a parent only what it is matters."""
    summary = read_json(folder / "summary.json") if (folder / "summary.json").exists() else {}
    return FinishedRun(folder, read_json(folder / "config.json"), summary, read_json(folder / "environment.json"))


def _variant(one: FinishedRun) -> str:
    """`:72` where the command named the config file so."""
    _, variant = split_variant(one.typed("--config") or "")
    return f":{variant}" if variant else ""


def _figures(runs: Sequence[FinishedRun]) -> str:
    """One row for all seeds, and what they ran on."""

    def seconds(name: str) -> str:
        known = [value for one in runs if (value := one.summary["seconds"].get(name)) is not None]
        return f"{statistics.median(known):.3g} s" if known else "-"

    def share(name: str) -> str:
        return spread((one.summary.get(name) for one in runs), ".2%")

    columns = {
        "seeds": shown_seeds([one.seed for one in runs]),
        "epochs": f"{runs[0].summary['epochs']:g}",
        "test accuracy": share("test_accuracy"),
        "test accuracy, TTA": share("test_accuracy_tta"),
        "test loss": spread((one.summary["test_loss"] for one in runs), ".4f"),
        "train accuracy": share("train_accuracy"),
        **{
            head: seconds(name) for head, name in (("training", "train"), ("compiling", "compile"), ("in all", "total"))
        },
    }
    columns = {head: cell for head, cell in columns.items() if cell != "-"}
    surroundings = [f"{one.device}, jax {one.environment['versions']['jax']}, commit {one.commit}" for one in runs]
    return f"{markdown(list(columns), [list(columns.values())])}\n\n{'; '.join(dict.fromkeys(surroundings))}."


def _epochs(runs: Sequence[FinishedRun]) -> list[str]:
    """Accuracy after some of the epochs, the first and the last among them; nothing where there are no curves."""
    split = evaluated_split(runs)
    epochs, accuracies = curves(runs, split, "accuracy")
    if len(epochs) < 2:
        return []
    chosen = np.unique(np.linspace(0, len(epochs) - 1, min(MOST_EPOCHS, len(epochs))).round().astype(int))
    means = accuracies.mean(axis=0)
    head = ["epoch", *(f"{epochs[i]:g}" for i in chosen)]
    return [markdown(head, [[f"{split} accuracy (%)", *(f"{100 * means[i]:.1f}" for i in chosen)]])]


def _first_entry(lines: Sequence[str]) -> int:
    """The number of the first line that is a heading of an entry; else that behind the last."""
    fenced = False
    for i, line in enumerate(lines):
        if line.startswith(("```", "~~~")):
            fenced = not fenced
        if line.startswith("## ") and not fenced:
            return i
    return len(lines)


def _quoted(value: Any) -> str:
    shown = shown_value(value)
    return f"`{_code(shown)}`" if shown else "(empty)"


def _code(text: str) -> str:
    """What may stand between two backticks."""
    return printable(" ".join(text.split()), keep="").replace("`", "'")
