"""What the HTML page of runs shows, gathered from their folders: finished or not, with or without their data."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jax_cifar.config import Config
from jax_cifar.config.files import flat, from_dict
from jax_cifar.data import Dataset
from jax_cifar.errors import CheckpointError, ConfigError, UserError
from jax_cifar.evaluation.calibration import calibrate
from jax_cifar.evaluation.classify import softmax
from jax_cifar.evaluation.metrics import Report, report
from jax_cifar.files import read_record
from jax_cifar.lab.pictures import filter_tiles, first_kernel
from jax_cifar.lab.runs import FinishedRun, experiments, read_run
from jax_cifar.lab.tables import spread
from jax_cifar.progress import progress
from jax_cifar.run.load import Run, load_run
from jax_cifar.telemetry.describe import describe_fields
from jax_cifar.telemetry.html.classes import Judged
from jax_cifar.telemetry.html.page import report_page
from jax_cifar.telemetry.html.pictures import Mistake
from jax_cifar.telemetry.html.shown import Reliability, Shown
from jax_cifar.telemetry.run_log import read_metrics

MISTAKES, MISTAKES_OF_MANY = 24, 12


def html_report(folders: Sequence[Path], data_dir: str | None = None, trust_code: bool = False) -> str:
    """The page of these runs, as text.

    Args:
        folders: of one run or several, each shown once.
        data_dir: where their data set lies now.
        trust_code: networks that are code of the runs' own are run.

    Raises:
        CheckpointError: a folder holds no run.
    """
    folders = list(dict.fromkeys(folder.resolve() for folder in folders))
    found = [read_run(folder) for folder in folders]
    shown, most = [], MISTAKES if len(folders) == 1 else MISTAKES_OF_MANY
    with progress("report", total=len(folders)) as bar:
        for folder, one in zip(folders, found, strict=True):
            shown.append(_with_predictions(_shown(folder, one), folder, data_dir, trust_code, most))
            bar.advance(note=folder.name)
    finished = [one for one in found if isinstance(one, FinishedRun)]
    return report_page(shown, [_sentence(group) for group in experiments(finished) if len(group) > 1])


def _sentence(group: Sequence[FinishedRun]) -> str:
    accuracies = [one.summary["test_accuracy"] for one in group]
    name = group[0].summary["config_name"]
    return f"{len(group)} runs are the same experiment, {name}, but for their seeds: {spread(accuracies, '.2%')}."


def _shown(folder: Path, one: FinishedRun | str) -> Shown:
    """What a run's files record, as far as there are any."""
    values = {name: _record(folder / f"{name}.json") for name in ("config", "summary", "environment", "report")}
    records = read_metrics(folder)
    fields, defaults = {}, {}
    try:
        config = from_dict(values["config"])
        fields, defaults = describe_fields(config), describe_fields(Config(config.name))
    except (ConfigError, TypeError, KeyError, AttributeError, ValueError):
        fields = {name: json.dumps(value) for name, value in flat(values["config"]).items()}
    return Shown(
        name=str(values["config"].get("name") or folder.name),
        folder=str(folder),
        problem=None if isinstance(one, FinishedRun) else _problem(one, records),
        records=records,
        fields=fields,
        defaults=defaults,
        summary=values["summary"],
        environment=values["environment"],
        judged=_recorded_report(values["report"]),
    )


def _problem(reason: str, records: Sequence[dict[str, Any]]) -> str:
    losses = [record["loss"] for record in records if record.get("split") == "train" and "loss" in record]
    return "it diverged: its loss is not finite" if losses and losses[-1] is None else reason


def _record(path: Path) -> dict[str, Any]:
    """A JSON record; nothing where it is missing, damaged or no table."""
    try:
        values = read_record(path)
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _recorded_report(values: dict[str, Any]) -> Judged | None:
    try:
        found = Report.from_dict(values)
        shape, kind = found.confusion.shape, found.confusion.dtype.kind
        classes = len(found.label_names)
        columns = (found.precision, found.recall, found.f1)
        if shape != (classes, classes) or kind != "i" or any(column.dtype.kind not in "fi" for column in columns):
            return None
        return _judged(found)
    except (KeyError, TypeError, AttributeError, ValueError):
        return None


def _judged(found: Report) -> Judged:
    return Judged(found.label_names, found.precision, found.recall, found.f1, found.confusion)


def _with_predictions(shown: Shown, folder: Path, data_dir: str | None, trust_code: bool, most: int) -> Shown:
    """With what the network makes of the test images; where that cannot be had, with the reason."""
    try:
        run = load_run(folder, data_dir=data_dir, trust_code=trust_code)
    except UserError as error:
        return dataclasses.replace(shown, unseen=str(error), no_filters=str(error))
    try:
        _, kernel = first_kernel(run, run.image_shape[-1])
        shown = dataclasses.replace(shown, filters=filter_tiles(kernel))
    except CheckpointError as error:
        shown = dataclasses.replace(shown, no_filters=str(error))
    try:
        return _predicted(shown, run, run.part("test", data_dir), most)
    except UserError as error:
        return dataclasses.replace(shown, unseen=str(error))


def _predicted(shown: Shown, run: Run, test: Dataset, most: int) -> Shown:
    labels = test.labels if test.true_labels is None else test.true_labels
    logits, names = run.logits(test.images), run.label_names
    probabilities = softmax(logits)
    found = calibrate(probabilities, labels)
    bins = (found.edges, found.counts, found.confidence, found.accuracy)
    said, sure = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(said != labels)
    worst = wrong[np.argsort(-sure[wrong], kind="stable")][:most].tolist()
    mistakes = [Mistake(test.images[i], names[labels[i]], names[said[i]], float(sure[i]), i) for i in worst]
    judged = shown.judged or _judged(report(logits, labels, names))
    return dataclasses.replace(
        shown, judged=judged, reliability=Reliability(*bins, found.error, found.bias), mistakes=mistakes
    )
