"""Training: `train(config, workdir)` reads from top to bottom as what happens."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import jax

from jax_cifar.backend.compiler import compilation_cache
from jax_cifar.backend.mesh import make_mesh
from jax_cifar.config import Config
from jax_cifar.data import load_data
from jax_cifar.errors import CheckpointError, Diverged, Interrupted
from jax_cifar.evaluation.metrics import Report, mean_metrics
from jax_cifar.files import write_json
from jax_cifar.models import parameter_table
from jax_cifar.optim.rules import global_norm
from jax_cifar.run.checkpoint import Checkpoints
from jax_cifar.run.clock import Clock
from jax_cifar.run.folder import CHECKPOINTS, choose_folder, make_folder
from jax_cifar.run.signals import StopRequest
from jax_cifar.telemetry import Console, RunLog, draw_confusion_matrix, draw_plots, write_environment
from jax_cifar.training.announce import announce_data, announce_machine, announce_network
from jax_cifar.training.plan import make_plan
from jax_cifar.training.session import Session, build
from jax_cifar.training.state import TrainState

# About as long as one compiled call may take on a CPU: what a signal has to wait for.
CALL_SECONDS = 1.0


@dataclass(frozen=True)
class TrainResult:
    """What a finished run leaves: the state, the report on the test images, summary.json's contents and its folder."""

    state: TrainState
    report: Report
    summary: dict[str, Any]
    workdir: Path


@dataclass
class Progress:
    """What a checkpoint keeps beside the state, so that a resumed run also logs what an uninterrupted one logs."""

    fingerprint: int  # checksum of the training images and labels
    interval: dict[str, float] = field(default_factory=dict)  # sums since the last log line
    epoch: dict[str, float] = field(default_factory=dict)  # sums since the last row of the table
    train_accuracy: float | None = None  # of the last epoch, as the network saw its images
    best_validation_accuracy: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, sums: dict[str, float]) -> None:
        """Count what the device has summed up since the last stop."""
        for total in (self.interval, self.epoch):
            for name, value in sums.items():
                total[name] = total.get(name, 0.0) + value


def train(config: Config, workdir: str | Path | None = None, started: float | None = None) -> TrainResult:
    """Train as `config` says and write everything into `workdir`; a folder that holds checkpoints of it is resumed.

    Args:
      config: the experiment.
      workdir: the run folder; default: runs/<config name>/<time>.
      started: `time.time()` that `seconds.total` counts from; default: now.

    Raises:
      ConfigError, DataError, CheckpointError: what the user can put right.
      Diverged: the loss stopped being finite; the last good checkpoint is kept and named.
      Interrupted: SIGTERM or Ctrl-C came, and the state is saved.
    """
    clock = Clock(started)
    folder = choose_folder(config, workdir)
    with contextlib.ExitStack() as stack:
        stack.enter_context(compilation_cache(config))
        stop = stack.enter_context(StopRequest())
        console = stack.enter_context(Console())
        announce_machine(console, config)

        mesh = make_mesh(config)
        with clock("data"):
            splits = load_data(config.data)
        announce_data(console, splits)
        plan = make_plan(config, len(splits.train.labels), jax.default_backend())
        # Only now: a run that cannot start leaves nothing behind.
        make_folder(folder, config)
        write_environment(folder)
        session, state = build(config, plan, mesh, splits, clock)
        announce_network(console, session, state)

        checkpoints = stack.enter_context(Checkpoints(folder / CHECKPOINTS, config.checkpoint.keep, console.warn))
        state, progress = resume(session, checkpoints, state, console)
        log = stack.enter_context(RunLog(folder, config.log.tensorboard, int(state.step) or None))
        trainer = Trainer(session, folder, checkpoints, console, log, stop, progress)
        state = trainer.fit(state)
        return trainer.finish(state)


def resume(
    session: Session, checkpoints: Checkpoints, state: TrainState, console: Console
) -> tuple[TrainState, Progress]:
    """The newest sound checkpoint, or the fresh state; raises `CheckpointError` where the images have changed."""
    restored = checkpoints.restore(state)
    if restored is None:
        return state, Progress(session.fingerprint)
    progress = Progress(**restored.extra)
    if progress.fingerprint != session.fingerprint:
        raise CheckpointError(
            f"{checkpoints.directory} was trained on other images (checksum {progress.fingerprint:08x},"
            f" now {session.fingerprint:08x}). Restore the data set, or choose another --workdir."
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
    progress: Progress
    affordable: int = 1  # updates that took about `CALL_SECONDS` of late
    parameter_norm: float = math.nan  # at the last stop
    test_report: Report | None = None  # of the final weights

    def fit(self, state: TrainState) -> TrainState:
        """Train until the plan's end, stopping where it says to log, evaluate and save."""
        plan, step = self.session.plan, int(state.step)
        split = "test" if self.session.splits.validation is None else "val"
        self.console.start(plan.total_steps, plan.steps_per_epoch, step, split)
        while step < plan.total_steps:
            state, step = self.advance(state, step)
            row_is_due = plan.is_due(step, plan.eval_every) or plan.is_due(step, plan.steps_per_epoch)
            if plan.is_log_due(step):
                self.log_interval(step, row_is_due)
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

    def advance(self, state: TrainState, step: int) -> tuple[TrainState, int]:
        """Train to the plan's next stop, or until a signal, and count what happened. Raises `Diverged`."""
        session, begin, end = self.session, step, self.session.plan.next_stop(step)
        started = time.perf_counter()
        with session.clock("train"), finding_nans(session.config.train.debug_nans, begin):
            order, sums = session.order(step // session.plan.steps_per_epoch), session.zero_sums
            while True:
                count = session.plan.next_call(step, self.affordable)
                state, new_sums = session.advance(state, sums, order, count, session.plan.side_at(step))
                # At most one call runs ahead of the host, so that a signal is answered within a step or two.
                jax.block_until_ready(sums)
                sums, step = new_sums, step + count
                if step >= end or self.stop.signal:
                    break
            values = {name: float(value) for name, value in jax.device_get(sums).items()}
            self.parameter_norm = float(param_norm(state.params))
        values |= {"steps": float(step - begin), "seconds": time.perf_counter() - started}
        self.affordable = max(1, int(CALL_SECONDS * values["steps"] / values["seconds"]))
        for what, value in (("training loss", values["loss"]), ("norm of the parameters", self.parameter_norm)):
            if not math.isfinite(value):
                self.raise_diverged(what, value, begin, step)
        self.progress.add(values)
        return state, step

    def raise_diverged(self, what: str, value: float, begin: int, end: int) -> NoReturn:
        """Stop the run without saving what is broken."""
        good = self.checkpoints.latest_step()
        kept = (
            "No checkpoint was saved before."
            if good is None
            else f"Step {good:,} is kept in {self.folder / CHECKPOINTS}."
        )
        raise Diverged(
            f"The {what} became {value} between steps {begin:,} and {end:,}. {kept}"
            " Try a lower --optim.lr or --optim.clip_norm 1; --debug-nans finds the operation."
        )

    def log_interval(self, step: int, row_follows: bool) -> None:
        """One line of training figures, and the progress shown."""
        session, sums = self.session, self.progress.interval
        means = mean_metrics(sums)
        rate = sums["count"] / sums["seconds"]
        lr = float(session.schedule.lr[step - 1])
        self.log.write(
            {
                "step": step,
                "epoch": step / session.plan.steps_per_epoch,
                "split": "train",
                **means,
                "lr": lr,
                "momentum": float(session.schedule.momentum[step - 1]),
                "gradient_norm": sums["grad_norm"] / sums["steps"],
                "parameter_norm": self.parameter_norm,
                "images_per_second": rate,
                "seconds": session.clock.seconds["train"],
            }
        )
        self.console.update(step, **means, lr=lr, images_per_second=rate, row_follows=row_follows)
        self.progress.interval.clear()

    def end_of_epoch(self, state: TrainState, step: int) -> None:
        """Evaluate where it is due, keep the best by validation, and print a row of the table."""
        session, plan, sums = self.session, self.session.plan, self.progress.epoch
        means = mean_metrics(sums)
        self.progress.train_accuracy = means["accuracy"]
        report = self.evaluate(state, step) if plan.is_due(step, plan.eval_every) else None
        self.console.row(
            step,
            **means,
            eval_loss=report and report.loss,
            eval_accuracy=report and report.accuracy,
            lr=float(session.schedule.lr[step - 1]),
            images_per_second=sums["count"] / sums["seconds"],
        )
        if plan.is_due(step, plan.steps_per_epoch):
            self.progress.epoch.clear()

    def evaluate(self, state: TrainState, step: int) -> Report:
        """Figures of the validation images, else of the test images, which are looked at and never chosen by."""
        splits = self.session.splits
        split = "test" if splits.validation is None else "validation"
        report = self.session.evaluate(state, splits.validation or splits.test)
        self.log_report(report, split, step)
        best = self.progress.best_validation_accuracy
        if split == "test":
            self.test_report = report
        elif best is None or report.accuracy > best:
            self.progress.best_validation_accuracy = report.accuracy
            self.save(state, step, best=True)
        return report

    def log_report(self, report: Report, split: str, step: int) -> None:
        """One line of evaluation figures."""
        self.log.write(
            {
                "step": step,
                "epoch": step / self.session.plan.steps_per_epoch,
                "split": split,
                "loss": report.loss,
                "accuracy": report.accuracy,
                "top5": report.top5,
                "macro_f1": report.macro["f1"],
                "seconds": self.session.clock.seconds["train"],
            }
        )

    def save(self, state: TrainState, step: int, best: bool = False) -> None:
        """Hand the state to the checkpoints; writing goes on in the background."""
        clock = self.session.clock
        with clock("checkpoint"):
            self.progress.seconds = clock.report()
            write = self.checkpoints.save_best if best else self.checkpoints.save
            write(step, state, dataclasses.asdict(self.progress))

    def finish(self, state: TrainState) -> TrainResult:
        """The final weights on the test images, then summary, reports and pictures."""
        session, config = self.session, self.session.config
        test, step = session.splits.test, session.plan.total_steps
        if self.test_report is None:
            self.test_report = session.evaluate(state, test)
            self.log_report(self.test_report, "test", step)
        report, with_tta = self.test_report, None
        if config.eval.tta != "none":
            with_tta = session.evaluate(state, test, config.eval.tta)
        with session.clock("checkpoint"):
            self.checkpoints.wait()
        write_json(self.folder / "report.json", report.to_dict())
        plots = self.folder / "plots"
        draw_confusion_matrix(
            report.confusion, report.label_names, plots / "confusion_matrix.png", f"{config.name}, test"
        )
        if config.log.plots:
            draw_plots(self.folder)
        summary = self.summary(state, report, with_tta)
        write_json(self.folder / "summary.json", summary)
        self.console.summary(summary, self.folder)
        return TrainResult(state, report, summary, self.folder)

    def summary(self, state: TrainState, report: Report, with_tta: Report | None) -> dict[str, Any]:
        """The figures of the whole run, as summary.json has them."""
        session, config, plan = self.session, self.session.config, self.session.plan
        seconds = session.clock.report()
        images = plan.total_steps * config.train.batch_size
        return {
            "config_name": config.name,
            "dataset": session.splits.name,
            "seed": config.train.seed,
            "epochs": plan.total_steps / plan.steps_per_epoch,
            "steps": plan.total_steps,
            "parameters": sum(count for *_, count in parameter_table(state.params)),
            "train_accuracy": self.progress.train_accuracy,
            "best_validation_accuracy": self.progress.best_validation_accuracy,
            "test_accuracy": report.accuracy,
            "test_loss": report.loss if math.isfinite(report.loss) else None,
            "test_top5": report.top5,
            "test_accuracy_tta": with_tta and with_tta.accuracy,
            "images_per_second": images / seconds["train"],
            "seconds": seconds,
        }


@contextlib.contextmanager
def finding_nans(wanted: bool, step: int) -> Iterator[None]:
    """With --debug-nans JAX raises at the operation; turn that into a stop of the run that names it."""
    try:
        # As a context: the global setting is forgotten once any code inside JAX has used the context form.
        with jax.debug_nans(True) if wanted else contextlib.nullcontext():
            yield
    except FloatingPointError as error:
        raise Diverged(f"A NaN appeared after step {step:,}: {error}") from error


param_norm = jax.jit(global_norm)
