"""The training loop of a run: `Trainer.fit` to the plan's end, `Trainer.finish` for what is left in its folder."""

import dataclasses
import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from jax_cifar.backend.hosts import greatest, is_main, several, together
from jax_cifar.errors import CheckpointError, ConfigError, Diverged, Interrupted
from jax_cifar.evaluation.metrics import Report
from jax_cifar.evaluation.predict import Logits, Unwanted
from jax_cifar.files import write_record
from jax_cifar.run.checkpoint import Checkpoints
from jax_cifar.run.folder import CHECKPOINTS
from jax_cifar.signals import STOPS, StopRequest, at_end_say
from jax_cifar.telemetry import Console, RunLog, draw_confusion_matrix, draw_plots, read_metrics
from jax_cifar.training.callbacks import Callbacks
from jax_cifar.training.records import Progress, epoch_record, eval_record, means, summary, train_record
from jax_cifar.training.session import Interval, Part, Session
from jax_cifar.training.state import TrainState

MATRIX = "plots/confusion_matrix.png"


@dataclass(frozen=True)
class TrainResult:
    """What a finished run leaves: the state, the report on the test images, summary.json's contents and its folder."""

    state: TrainState = field(repr=False)
    report: Report
    summary: dict[str, Any]
    workdir: Path


@dataclass
class Trainer:
    """The training loop and the places it reports to."""

    session: Session
    folder: Path  # of this process
    named: str  # the run folder, as it is told
    require_held: Callable[[], None]  # raises `ConfigError` where the folder is another one by now
    checkpoints: Checkpoints
    console: Console
    log: RunLog
    callbacks: Callbacks
    progress: Progress
    test_logits: Logits | None = None  # of the final weights, without test-time augmentation

    def fit(self, state: TrainState) -> TrainState:
        """Train until the plan's end, stopping where it says to log, evaluate and save."""
        plan, step = self.session.plan, int(state.step)
        split = "val" if self.part == "validation" else "test"
        self.console.start(plan.total_steps, plan.steps_per_epoch, step, split, self.session.work)
        with StopRequest() as self.stop:
            self.stop.kept = f"What was saved before is in {self.place}."
            if self.progress.row_due:
                self.end_of_epoch(state, step)
                self.end_if_asked(self.asked(), step)
            while step < plan.total_steps and not self.progress.stopped_early:
                state, interval = self.advance(state, step)
                step = interval.end
                self.require_finite(interval)
                self.progress.add(interval)
                self.tell_skipped(interval)
                row_is_due = plan.is_due(step, plan.eval_every) or plan.is_due(step, plan.steps_per_epoch)
                if plan.is_log_due(step):
                    self.log_interval(step, float(interval.parameter_norm[0]), row_is_due)
                if row_is_due:
                    self.end_of_epoch(state, step)
                signal = self.asked()  # read once: what comes after this line is answered at the next stop
                if self.progress.stopped_early and self.progress.interval:
                    self.log_interval(step, float(interval.parameter_norm[0]), True)
                if signal or self.progress.stopped_early or plan.is_due(step, plan.checkpoint_every):
                    self.save(state, step)
                self.end_if_asked(signal, step)
            self.wait_for_saves()
            self.end_if_asked(self.asked(), step)
            at_end_say(f"The state is saved, and the training done. {self.way_on}")
        self.console.close()
        return state

    def advance(self, state: TrainState, step: int) -> tuple[TrainState, Interval]:
        """Train to the next stop, or until a signal comes."""

        def look(done: int) -> str | None:
            self.console.show_alive(done)
            return self.asked()

        # The time left counts from here: a CPU may be at the first call for long before it is asked what is done.
        self.console.show_alive(step)
        try:
            return self.session.advance(state, step, look)
        except Diverged as error:
            raise Diverged(f"{error} {self.kept()}") from None

    def asked(self) -> str | None:
        """The signal that has come, to this process or to another of the run: all get the same answer."""
        names = [None, *(signal.name for signal in STOPS)]
        return names[greatest(names.index(self.stop.signal))]

    def end_if_asked(self, signal: str | None, step: int) -> None:
        """Raise `Interrupted` once the state is safe, if there was a signal."""
        if signal is not None:
            self.wait_for_saves()
            total = self.session.plan.total_steps
            raise Interrupted(f"Stopped by {signal} at step {step:,} of {total:,}; the state is saved. {self.way_on}")

    def wait_for_saves(self) -> None:
        """Return when every state handed over is on the disk."""
        self.stop.waits_for = "the state to be written"
        with self.session.clock("checkpoint"):
            together(self.checkpoints.wait)

    @property
    def way_on(self) -> str:
        """How to go on with this run."""
        return f"To go on, run the same command with --workdir {shlex.quote(self.named)}"

    @property
    def place(self) -> Path:
        """Where the checkpoints are, as it is told."""
        return Path(self.named, CHECKPOINTS)

    @property
    def part(self) -> Part:
        """The part that is looked at while training: validation images, else test images, never chosen by."""
        return "test" if self.session.splits.validation is None else "validation"

    def require_finite(self, interval: Interval) -> None:
        """Raise `Diverged` where training has broken down; what is broken is not saved."""
        broken = interval.broken()
        if broken is not None:
            self.raise_diverged(*broken, interval.begin, interval.end)

    def require_finite_loss(self, part: Part, report: Report, step: int) -> None:
        """Raise `Diverged` where an evaluation shows that training has broken down."""
        if not math.isfinite(report.loss):
            self.raise_diverged(f"{part} loss", report.loss, step, step)

    def raise_diverged(self, what: str, value: float, begin: int, end: int) -> NoReturn:
        """Stop the run and name what is kept of it."""
        when = f"between steps {begin:,} and {end:,}" if begin < end else f"at step {end:,}"
        raise Diverged(
            f"The {what} became {value} {when}. {self.kept()}"
            " Try a lower --optim.lr or --optim.clip_norm 1; --debug-nans finds operation and layer."
        )

    def kept(self) -> str:
        """The newest finished checkpoint, in words; a save that fails meanwhile is no other end."""
        try:
            good = self.checkpoints.latest_step()
        except CheckpointError as failure:
            return f"What was saved before is in {self.place}. {failure}"
        return "No checkpoint was saved before." if good is None else f"Step {good:,} is kept in {self.place}."

    def tell_skipped(self, interval: Interval) -> None:
        """Warn of the first updates that were skipped."""
        count = int(interval.sums["skipped"][0]) if "skipped" in interval.sums else 0
        if 0 < count == self.progress.skipped:
            self.console.warn(
                "Updates that are not finite are skipped, the first between steps"
                f" {interval.begin:,} and {interval.end:,}; metrics.jsonl and summary.json count them."
            )

    def write(self, record: dict[str, Any]) -> None:
        """One line of metrics.jsonl."""
        self.log.write(record)
        self.callbacks.tell("on_log", record)

    def log_interval(self, step: int, parameter_norm: float, row_follows: bool) -> None:
        """One line of training figures; what is shown of the epoch so far has the meaning of a row of the table."""
        self.write(train_record(self.session, step, self.progress.interval, parameter_norm))
        record = epoch_record(self.session, step, self.progress.epoch, self.part, None)
        shown = {name: record[name] for name in ("loss", "accuracy", "lr", "images_per_second")}
        self.console.update(step, **shown, row_follows=row_follows)
        self.progress.interval.clear()

    def end_of_epoch(self, state: TrainState, step: int) -> None:
        """Evaluate where it is due, keep the best by validation, and print a row of the table.

        Where a signal stops the evaluation the row stays due: the run that goes on begins with it.
        """
        plan, sums = self.session.plan, self.progress.epoch
        self.progress.row_due = False
        self.progress.train_accuracy = means(sums)["accuracy"]
        try:
            report = self.evaluate(state, step) if plan.is_due(step, plan.eval_every) else None
        except Unwanted:
            self.progress.row_due = True
            return
        record = epoch_record(self.session, step, sums, self.part, report)
        shown = ("loss", "accuracy", "eval_loss", "eval_accuracy", "lr", "images_per_second")
        self.console.row(step, **{name: record[name] for name in shown})
        self.callbacks.tell("on_epoch", record)
        if plan.is_due(step, plan.steps_per_epoch):
            self.progress.epoch.clear()

    def evaluate(self, state: TrainState, step: int) -> Report:
        """Figures of the validation images, else of the test images; raises `Unwanted` when a signal comes."""
        # Several processes would have to agree on the batch after which they stop.
        stop = None if several() else lambda: self.stop.signal
        logits = self.session.logits(state.eval_variables, self.part, stop=stop)
        report = self.session.report(self.part, logits)
        self.require_finite_loss(self.part, report, step)
        self.write(eval_record(self.session, step, self.part, report))
        plan = self.session.plan
        patience = self.session.config.train.patience * plan.steps_per_epoch if step < plan.total_steps else 0
        if self.part == "test":
            self.test_logits = logits
        elif self.progress.judge(step, report.accuracy, patience):
            self.save(state, step, best=True)
        return report

    def save(self, state: TrainState, step: int, best: bool = False) -> None:
        """Hand the state to the checkpoints; writing goes on in the background."""
        clock = self.session.clock
        with clock("checkpoint"):
            self.progress.seconds = clock.report()
            write = self.checkpoints.save_best if best else self.checkpoints.save
            together(lambda: write(step, state, dataclasses.asdict(self.progress)))

    def finish(self, state: TrainState) -> TrainResult:
        """The final weights on the test images, then summary, reports and pictures."""
        session, config, variables = self.session, self.session.config, state.eval_variables
        logits, end = self.test_logits, int(state.step)
        if logits is None:
            logits = session.logits(variables, "test")
        report, with_tta = session.report("test", logits), None
        if self.test_logits is None:
            self.require_finite_loss("test", report, end)
            if not any((line["step"], line.get("split")) == (end, "test") for line in read_metrics(self.folder)):
                self.write(eval_record(session, end, "test", report))
        if config.eval.tta != "none":
            with_tta = session.report("test", session.logits(variables, "test", config.eval.tta, plain=logits))
        together(self.require_held)
        if config.log.plots and is_main():
            draw(self.folder, config.name, report, self.console.warn)
        figures, unwritten = summary(session, self.progress, state, report, with_tta), None
        try:
            write_record(self.folder / "report.json", report.to_dict())
            write_record(self.folder / "summary.json", figures)
        except OSError as error:
            unwritten = error
        self.console.summary(figures, self.folder)
        result = TrainResult(state, report, figures, Path(self.named))
        self.callbacks.tell("on_end", result)
        if unwritten is not None:
            raise ConfigError(
                f"The run is finished and its state is saved, but {self.folder} cannot be written:"
                f" {unwritten.strerror}. See to that, then run the same command for report.json and summary.json."
            )
        return result


def draw(folder: Path, name: str, report: Report, warn: Callable[[str], None]) -> None:
    """The pictures of a run; one that fails is a warning, as none is worth a trained network."""
    matrix = folder / MATRIX
    try:
        draw_confusion_matrix(report.confusion, report.label_names, matrix, f"{name}, test")
        draw_plots(folder)
    except Exception as error:
        told = f"{type(error).__name__}: {error}".splitlines()[0]
        warn(f"{matrix.parent} could not be drawn: {told}. All else is there.")
