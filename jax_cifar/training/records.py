"""What a run writes down of itself: lines of metrics.jsonl, the summary, and what a checkpoint keeps of both."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jax_cifar.data import Splits
from jax_cifar.errors import CheckpointError
from jax_cifar.evaluation.metrics import Report, mean_metrics
from jax_cifar.models import parameter_table
from jax_cifar.training.session import Interval, Session
from jax_cifar.training.state import TrainState

GIVEN_WEIGHTS = "the weights given"


@dataclass
class Progress:
    """What a checkpoint keeps beside the state, so that a resumed run also logs what an uninterrupted one logs."""

    fingerprint: int  # checksum of the training images and labels
    arithmetic: dict[str, Any] = field(default_factory=dict)  # what decides the bits of the numbers
    judged_by: dict[str, Any] | None = None  # `judges` of the data set; None: of a version that did not record them
    interval: dict[str, float] = field(default_factory=dict)  # sums since the last log line
    epoch: dict[str, float] = field(default_factory=dict)  # sums since the epoch began
    train_accuracy: float | None = None  # of the last epoch, as the network saw its images
    best_validation_accuracy: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    row_due: bool = False  # a signal stopped the evaluation after the last update: it is still to be made
    skipped: int = 0  # updates of the whole run that were not finite
    best_step: int | None = None  # of the best validation accuracy
    stopped_early: bool = False  # train.patience has ended the run
    start: str | None = None  # checksum of the weights that the run was begun from; None: its network's own start
    init_from: str | None = None  # the folder that they were in, as it was named; None where they were given
    config: dict[str, Any] | None = None  # as config.json has it; None in a checkpoint of an earlier version

    @property
    def origin(self) -> str | None:
        """Whose weights the run was begun from, in words; None: its network's own start."""
        return None if self.start is None else self.init_from or GIVEN_WEIGHTS

    def judge(self, step: int, accuracy: float, patience: float) -> bool:
        """Whether this validation accuracy is the best so far; none for `patience` steps stops the run, 0 never."""
        if self.best_validation_accuracy is None or accuracy > self.best_validation_accuracy:
            self.best_validation_accuracy, self.best_step = accuracy, step
            return True
        self.stopped_early = bool(patience) and self.best_step is not None and step - self.best_step >= patience
        return False

    def add(self, interval: Interval) -> None:
        """Count what happened up to a stop."""
        values = {name: float(sums[0]) for name, sums in interval.sums.items()}
        values |= {"steps": float(interval.end - interval.begin), "seconds": interval.seconds}
        for total in (self.interval, self.epoch):
            for name, value in values.items():
                total[name] = total.get(name, 0.0) + value
        self.skipped += int(values.get("skipped", 0))


def judges(splits: Splits) -> dict[str, Any]:
    """What a run is judged by: checksums of the validation and test part, and the classes' names."""
    validation = None if splits.validation is None else splits.validation.checksum
    return {"validation": validation, "test": splits.test.checksum, "label_names": list(splits.label_names)}


def require_same_judges(place: Path, before: dict[str, Any] | None, now: dict[str, Any]) -> str | None:
    """Raise `CheckpointError` where a run in `place` is gone on with by other validation images or classes.

    By the validation images its best state was chosen, and is compared with those to come. Nothing was chosen by the
    test images: of others the line that is returned warns.
    """
    if before is None:
        return None
    way_out = "Restore the data set, or choose another --workdir."
    pairs = itertools.zip_longest(before["label_names"], now["label_names"], fillvalue="none")
    for label, (old, new) in enumerate(pairs):
        if old != new:
            raise CheckpointError(f"{place}: class {label} was {old!r}, and is {new!r} now. {way_out}")
    for part in ("validation", "test"):
        if before[part] != now[part]:
            old, new = ("none" if one is None else f"{one:08x}" for one in (before[part], now[part]))
            message = f"{place} was judged by other {part} images or labels (checksum {old}, now {new})."
            if part == "validation":
                raise CheckpointError(f"{message} {way_out}")
            return f"{message} Its figures up to here are of those; evaluate.py judges it by these."
    return None


def train_record(session: Session, step: int, sums: Mapping[str, float], parameter_norm: float) -> dict[str, Any]:
    """One line of training figures: means over the interval, the gradient's and the updates' over those not skipped.

    `update_ratio` is the mean norm of an update over the norm of the parameters, `nonfinite_share` the share of the
    gradients' entries that are not finite.
    """
    made = sums["steps"] - sums.get("skipped", 0.0)
    return {
        "step": step,
        "epoch": step / session.plan.steps_per_epoch,
        "split": "train",
        **means(sums),
        "lr": float(session.schedule.lr[step - 1]),
        "momentum": float(session.schedule.momentum[step - 1]),
        "gradient_norm": sums["grad_norm"] / made if made else None,
        "parameter_norm": parameter_norm,
        "update_ratio": sums["update_norm"] / made / parameter_norm if made and parameter_norm else None,
        "nonfinite_share": sums["nonfinite"] / sums["steps"],
        **({"skipped": int(sums["skipped"])} if "skipped" in sums else {}),
        "images_per_second": sums["steps"] * session.config.train.batch_size / sums["seconds"],
        "seconds": session.clock.seconds["train"],
    }


def means(sums: Mapping[str, float]) -> dict[str, float | None]:
    """Mean loss and accuracy; None where every update was skipped."""
    return {**mean_metrics(sums)} if sums["count"] else {"loss": None, "accuracy": None}


def epoch_record(
    session: Session, step: int, sums: Mapping[str, float], split: str, report: Report | None
) -> dict[str, Any]:
    """One row of the table: training since the epoch began, and the evaluation where there was one."""
    return {
        "step": step,
        "epoch": step / session.plan.steps_per_epoch,
        **means(sums),
        "split": split,
        "eval_loss": report and report.loss,
        "eval_accuracy": report and report.accuracy,
        "lr": float(session.schedule.lr[step - 1]),
        "images_per_second": sums["steps"] * session.config.train.batch_size / sums["seconds"],
    }


def eval_record(session: Session, step: int, split: str, report: Report) -> dict[str, Any]:
    """One line of evaluation figures."""
    return {
        "step": step,
        "epoch": step / session.plan.steps_per_epoch,
        "split": split,
        "loss": report.loss,
        "accuracy": report.accuracy,
        "top5": report.top5,
        "macro_f1": report.macro["f1"],
        "seconds": session.clock.seconds["train"],
    }


def summary(
    session: Session, progress: Progress, state: TrainState, report: Report, with_tta: Report | None
) -> dict[str, Any]:
    """The figures of the whole run, as summary.json has them."""
    config, plan, seconds, steps = session.config, session.plan, session.clock.report(), int(state.step)
    best = None if progress.best_step is None else progress.best_step / plan.steps_per_epoch
    return {
        "config_name": config.name,
        "dataset": session.splits.name,
        "init_from": progress.origin,
        "training_images": f"{progress.fingerprint:08x}",
        "seed": config.train.seed,
        "epochs": steps / plan.steps_per_epoch,
        "steps": steps,
        "stopped_early": progress.stopped_early,
        "parameters": sum(count for *_, count in parameter_table(state.params)),
        "train_accuracy": progress.train_accuracy,
        "best_validation_accuracy": progress.best_validation_accuracy,
        "best_epoch": best,
        "test_accuracy": report.accuracy,
        "test_loss": report.loss if math.isfinite(report.loss) else None,
        "test_top5": report.top5,
        "test_accuracy_tta": with_tta and with_tta.accuracy,
        "tta": config.eval.tta,
        "skipped_updates": progress.skipped,
        "images_per_second": steps * config.train.batch_size / seconds["train"],
        "seconds": seconds,
    }
