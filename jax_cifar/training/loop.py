"""Training: `train(config, workdir)` reads from top to bottom as what happens."""

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import jax

from jax_cifar.backend.compiler import compilation_cache
from jax_cifar.config import Config
from jax_cifar.config.files import check_recordable
from jax_cifar.data import Splits, divide_training, load_data
from jax_cifar.errors import CheckpointError, Diverged, Interrupted
from jax_cifar.evaluation.metrics import Report
from jax_cifar.files import write_json
from jax_cifar.models import parameter_table
from jax_cifar.models.network import compute_dtype
from jax_cifar.optim.rules import ema_warning, former_path
from jax_cifar.run.checkpoint import Checkpoints
from jax_cifar.run.clock import Clock
from jax_cifar.run.folder import CHECKPOINTS, choose_folder, make_folder
from jax_cifar.run.signals import StopRequest
from jax_cifar.telemetry import Console, RunLog, draw_confusion_matrix, draw_plots, write_environment
from jax_cifar.telemetry.facts import data_facts, machine_facts, network_facts
from jax_cifar.training.callbacks import Callbacks
from jax_cifar.training.records import Progress, epoch_record, eval_record, means, summary, train_record
from jax_cifar.training.replicas import one_run
from jax_cifar.training.session import Interval, Part, Session
from jax_cifar.training.start import starting_weights
from jax_cifar.training.state import TrainState


@dataclass(frozen=True)
class TrainResult:
    """What a finished run leaves: the state, the report on the test images, summary.json's contents and its folder."""

    state: TrainState
    report: Report
    summary: dict[str, Any]
    workdir: Path


def train(
    config: Config,
    workdir: str | Path | None = None,
    *,
    splits: Splits | None = None,
    init_from: str | Path | None = None,
    callbacks: Sequence[Any] = (),
    started: float | None = None,
) -> TrainResult:
    """Train as `config` says and write everything into `workdir`; a folder that holds checkpoints of it is resumed.

    Args:
      config: the experiment.
      workdir: the run folder; default: runs/<config name>/<time>.
      splits: images of one's own in place of those that `data` names; resuming asks for the same ones.
      init_from: folder of a run whose weights this one starts from; all but the head where the classes differ.
      callbacks: told of each log line, each epoch and the end (`jax_cifar.training.callbacks.Callback`).
      started: `time.time()` that `seconds.total` counts from; default: now.

    Raises:
      ConfigError, DataError, CheckpointError: what the user can put right.
      Diverged: the loss stopped being finite; the last good checkpoint is kept and named.
      Interrupted: SIGTERM or Ctrl-C came, and the state is saved.
    """
    clock = Clock(started)
    # JAX_DEBUG_NANS: what --debug-nans finds tells more.
    if jax.config.jax_debug_nans:  # pyright: ignore[reportAttributeAccessIssue]
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, debug_nans=True))
    check_recordable(config)
    folder = choose_folder(config, workdir)
    with contextlib.ExitStack() as stack:
        stack.enter_context(compilation_cache(config))
        stop = stack.enter_context(StopRequest())
        console = stack.enter_context(Console())
        console.facts(machine_facts(config))
        console.config(config)

        replicas = one_run(config)
        with clock("data"):
            given = splits is not None
            splits = load_data(config.data) if splits is None else divide_training(splits, config.data)
        console.facts(data_facts(splits))
        session = Session(config, splits, replicas, clock)
        start = starting_weights(init_from, session.network, config, console.line)
        state = session.start([config], start)
        # Only now: a run that cannot start leaves nothing behind.
        make_folder(folder, config, session.network.spec, data_name=None if given else splits.name)
        write_environment(folder)
        session.compile(state)
        announce_network(console, session, state)
        if warning := ema_warning(config.optim, session.plan.total_steps):
            console.warn(warning)

        keep, place = config.checkpoint.keep, folder / CHECKPOINTS
        checkpoints = stack.enter_context(Checkpoints(place, keep, console.warn, former_path))
        state, progress = resume(session, checkpoints, state, console)
        log = stack.enter_context(RunLog(folder, config.log.tensorboard, int(state.step) or None))
        told = Callbacks(callbacks, console.warn)
        trainer = Trainer(session, folder, checkpoints, console, log, stop, told, progress)
        state = trainer.fit(state)
        return trainer.finish(state)


def announce_network(console: Console, session: Session, state: TrainState) -> None:
    """Size of the network, dtype, and what compiling took."""
    rows = parameter_table(state.params)
    if session.config.log.parameter_table:
        console.parameter_table(rows)
    console.facts(network_facts(rows, compute_dtype(session.config.train.dtype), session.clock.seconds["compile"]))


def resume(
    session: Session, checkpoints: Checkpoints, state: TrainState, console: Console
) -> tuple[TrainState, Progress]:
    """The newest sound checkpoint, or the fresh state; raises `CheckpointError` where the images have changed."""
    fingerprint = session.splits.train.checksum
    restored = checkpoints.restore(state)
    if restored is None:
        return state, Progress(fingerprint)
    progress = Progress(**restored.extra)
    if progress.fingerprint != fingerprint:
        raise CheckpointError(
            f"{checkpoints.directory} was trained on other images (checksum {progress.fingerprint:08x},"
            f" now {fingerprint:08x}). Restore the data set, or choose another --workdir."
        )
    session.clock.add(progress.seconds)
    console.line(f"resuming at step {restored.step:,} of {session.plan.total_steps:,}")
    return restored.state, progress


@dataclass
class Trainer:
    """The training loop and the places it reports to."""

    session: Session
    folder: Path
    checkpoints: Checkpoints
    console: Console
    log: RunLog
    stop: StopRequest
    callbacks: Callbacks
    progress: Progress
    test_report: Report | None = None  # of the final weights

    def fit(self, state: TrainState) -> TrainState:
        """Train until the plan's end, stopping where it says to log, evaluate and save."""
        session, plan, step = self.session, self.session.plan, int(state.step)
        self.console.start(plan.total_steps, plan.steps_per_epoch, step, "val" if self.part == "validation" else "test")
        while step < plan.total_steps:
            try:
                state, interval = session.advance(state, step, lambda: self.stop.signal)
            except Diverged as error:
                raise Diverged(f"{error} {self.kept()}") from None
            step = interval.end
            self.require_finite(interval)
            self.progress.add(interval)
            self.tell_skipped(interval)
            row_is_due = plan.is_due(step, plan.eval_every) or plan.is_due(step, plan.steps_per_epoch)
            if plan.is_log_due(step):
                self.log_interval(step, float(interval.parameter_norm[0]), row_is_due)
            if row_is_due:
                self.end_of_epoch(state, step)
            signal = self.stop.signal  # read once: what comes after this line is answered at the next stop
            if signal or plan.is_due(step, plan.checkpoint_every):
                self.save(state, step)
            if signal:
                self.checkpoints.wait()
                raise Interrupted(
                    f"Stopped by {signal} at step {step:,} of {plan.total_steps:,}; the state is saved."
                    f" To go on, run the same command with --workdir {self.folder}"
                )
        self.console.close()
        return state

    @property
    def part(self) -> Part:
        """The part that is looked at while training: validation images, else test images, never chosen by."""
        return "test" if self.session.splits.validation is None else "validation"

    def require_finite(self, interval: Interval) -> None:
        """Raise `Diverged` where training has broken down; what is broken is not saved."""
        broken = interval.broken()
        if broken is not None:
            self.raise_diverged(*broken, interval.begin, interval.end)

    def kept(self) -> str:
        """The last good checkpoint, in a sentence."""
        good = self.checkpoints.latest_step()
        return (
            "No checkpoint was saved before."
            if good is None
            else f"Step {good:,} is kept in {self.folder / CHECKPOINTS}."
        )

    def raise_diverged(self, what: str, value: float, begin: int, end: int) -> NoReturn:
        """Stop the run and name what is kept of it."""
        raise Diverged(
            f"The {what} became {value} between steps {begin:,} and {end:,}. {self.kept()}"
            " Try a lower --optim.lr or --optim.clip_norm 1; --debug-nans finds operation and layer."
        )

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
        """One line of training figures, and the progress shown."""
        record = train_record(self.session, step, self.progress.interval, parameter_norm)
        self.write(record)
        shown = {name: record[name] for name in ("loss", "accuracy", "lr", "images_per_second")}
        self.console.update(step, **shown, row_follows=row_follows)
        self.progress.interval.clear()

    def end_of_epoch(self, state: TrainState, step: int) -> None:
        """Evaluate where it is due, keep the best by validation, and print a row of the table."""
        plan, sums = self.session.plan, self.progress.epoch
        self.progress.train_accuracy = means(sums)["accuracy"]
        report = self.evaluate(state, step) if plan.is_due(step, plan.eval_every) else None
        record = epoch_record(self.session, step, sums, self.part, report)
        shown = ("loss", "accuracy", "eval_loss", "eval_accuracy", "lr", "images_per_second")
        self.console.row(step, **{name: record[name] for name in shown})
        self.callbacks.tell("on_epoch", record)
        if plan.is_due(step, plan.steps_per_epoch):
            self.progress.epoch.clear()

    def evaluate(self, state: TrainState, step: int) -> Report:
        """Figures of the validation images, else of the test images."""
        report = self.session.evaluate(state.eval_variables, self.part)
        self.write(eval_record(self.session, step, self.part, report))
        best = self.progress.best_validation_accuracy
        if self.part == "test":
            self.test_report = report
        elif best is None or report.accuracy > best:
            self.progress.best_validation_accuracy = report.accuracy
            self.save(state, step, best=True)
        return report

    def save(self, state: TrainState, step: int, best: bool = False) -> None:
        """Hand the state to the checkpoints; writing goes on in the background."""
        clock = self.session.clock
        with clock("checkpoint"):
            self.progress.seconds = clock.report()
            write = self.checkpoints.save_best if best else self.checkpoints.save
            write(step, state, dataclasses.asdict(self.progress))

    def finish(self, state: TrainState) -> TrainResult:
        """The final weights on the test images, then summary, reports and pictures."""
        session, config, variables = self.session, self.session.config, state.eval_variables
        if self.test_report is None:
            self.test_report = session.evaluate(variables, "test")
            self.write(eval_record(session, session.plan.total_steps, "test", self.test_report))
        report, with_tta = self.test_report, None
        if config.eval.tta != "none":
            with_tta = session.evaluate(variables, "test", config.eval.tta)
        with session.clock("checkpoint"):
            self.checkpoints.wait()
        write_json(self.folder / "report.json", report.to_dict())
        if config.log.plots:
            matrix, title = self.folder / "plots" / "confusion_matrix.png", f"{config.name}, test"
            draw_confusion_matrix(report.confusion, report.label_names, matrix, title)
            draw_plots(self.folder)
        figures = summary(session, self.progress, state, report, with_tta)
        write_json(self.folder / "summary.json", figures)
        self.console.summary(figures, self.folder)
        result = TrainResult(state, report, figures, self.folder)
        self.callbacks.tell("on_end", result)
        return result
