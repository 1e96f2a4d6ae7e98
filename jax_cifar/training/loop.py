"""Training: `train(config, workdir)` reads from top to bottom as what happens."""

import contextlib
import dataclasses
import json
import os
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jax_cifar.backend.compiler import compilation_cache
from jax_cifar.backend.hosts import (
    connect,
    from_main,
    is_main,
    on_main,
    parting,
    require_same_everywhere,
    several,
    together,
)
from jax_cifar.backend.mesh import place as spread
from jax_cifar.backend.mesh import replicated
from jax_cifar.config import Config
from jax_cifar.config.files import check_recordable, differing_fields, flat, known_figure, to_dict, to_record
from jax_cifar.config.source import own_code
from jax_cifar.data import Splits, divide_whole, load_data
from jax_cifar.errors import CheckpointError, ConfigError
from jax_cifar.evaluation.metrics import Report
from jax_cifar.evaluation.predict import mirror_warning
from jax_cifar.files import read_record
from jax_cifar.models import dtype_warning, parameter_table
from jax_cifar.models.network import compute_dtype
from jax_cifar.optim.rules import ema_warning, former_path
from jax_cifar.run.arithmetic import arithmetic, require_same_numbers
from jax_cifar.run.checkpoint import Checkpoints
from jax_cifar.run.clock import Clock
from jax_cifar.run.folder import CHECKPOINTS, RunFolder, read_spec
from jax_cifar.run.reading import Restored, is_finished
from jax_cifar.telemetry import Console, RunLog
from jax_cifar.telemetry.facts import data_facts, machine_facts, network_facts
from jax_cifar.telemetry.run_log import METRICS_FILE
from jax_cifar.training.callbacks import Callbacks, check_callbacks
from jax_cifar.training.profile import PROFILE, check_profile, profile_step
from jax_cifar.training.records import Progress, judges, require_same_judges
from jax_cifar.training.replicas import one_run
from jax_cifar.training.session import Session
from jax_cifar.training.start import checksum, starting_weights
from jax_cifar.training.state import PyTree, TrainState
from jax_cifar.training.trainer import MATRIX, Trainer, TrainResult, draw


def train(
    config: Config,
    workdir: str | Path | None = None,
    *,
    splits: Splits | None = None,
    init_from: str | Path | Mapping[str, PyTree] | None = None,
    callbacks: Sequence[Any] = (),
    allow_different_numbers: bool = False,
    profile: int | None = None,
    started: float | None = None,
) -> TrainResult:
    """Train as `config` says and write everything into `workdir`; a folder that holds checkpoints of it is resumed.

    Args:
      config: the experiment.
      workdir: the run folder; default: runs/<config name>/<time>.
      splits: images of one's own in place of those that `data` names; resuming asks for the same ones.
      init_from: folder of a run whose weights this one starts from, all but the head where the classes differ; or
        these weights themselves, {"params": ..., "batch_stats": ...}.
      callbacks: told of each log line, each epoch and the end (`jax_cifar.training.callbacks.Callback`).
      allow_different_numbers: resume also where a setting of JAX, or code of one's own, differs that changes every
        number.
      profile: before training, trace so many updates into `profile/` and tell where the time of one goes; they are
        made of a copy of the state, so that the run itself is the same, bit for bit.
      started: `time.time()` that `seconds.total` counts from; default: now.

    Raises:
      ConfigError, DataError, CheckpointError: what the user can put right.
      Diverged: a loss stopped being finite; the last good checkpoint is kept and named.
      Interrupted: a signal came between the first update and the last, and the state is saved.
    """
    clock = Clock(started)
    connect(config.distributed)
    # JAX_DEBUG_NANS: what --debug-nans finds tells more.
    if jax.config.jax_debug_nans:  # pyright: ignore[reportAttributeAccessIssue]
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, debug_nans=True))
    check_recordable(config)
    check_profile(config, profile)
    check_callbacks(callbacks)
    with parting(), contextlib.ExitStack() as stack:
        if not is_main():  # what only one process of several does, the others do where it is lost
            workdir = f"{stack.enter_context(tempfile.TemporaryDirectory())}/run"
        console = stack.enter_context(Console(None if is_main() else stack.enter_context(open(os.devnull, "w"))))
        require_same_everywhere("configuration or code", config_checksum(config))
        place = together(lambda: stack.enter_context(RunFolder(config, workdir, console.warn)))
        if splits is None:
            together(lambda: require_no_given_images(place.path))
        stack.enter_context(compilation_cache(config))
        announce_experiment(console, config, own_images=splits is not None, fresh=init_from is None)
        replicas = one_run(config)
        with clock("data"):
            given = splits is not None
            splits = load_everywhere(config, splits)
        console.facts(data_facts(splits))
        session = together(lambda: Session(config, splits, replicas, clock))
        start = together(lambda: starting_weights(init_from, session.network, config, console.line))
        state = session.start([config], start)
        session.trace(state)
        together(lambda: is_main() and place.require(bytes_on_disk(session, state), session.plan.checkpoint_every))
        if on_main(lambda: not place.path.exists()):  # else it may be finished
            session.compile(state)
        # Only now: a run that cannot start leaves nothing behind.
        seen = session.network.spec, None if given else splits.name
        folder = together(lambda: place.make(*seen))
        keep = config.checkpoint.keep
        stack.enter_context(log_of_nothing_set_aside(folder))
        checkpoints = Checkpoints(folder / CHECKPOINTS, keep, console.warn, former_path, place.require_held)
        stack.enter_context(checkpoints)
        fresh = fresh_progress(session, start, init_from)
        state, progress = resume(session, checkpoints, state, fresh, console, allow_different_numbers)
        told = Callbacks(callbacks if is_main() else (), console.warn)
        if (finished := finished_result(session, folder, state, progress)) is not None:
            tell_finished(console, config, finished, profile)
            told.tell("on_end", finished)
            return finished
        together(lambda: place.keep_up(*seen))
        session.compile(state)
        announce_network(console, session, state)
        if profile is not None and int(state.step) < session.plan.total_steps:
            console.facts(profile_step(session, state, profile, folder / PROFILE).facts())

        told_by = {"say": console.line, "warn": console.warn}
        together(place.require_held)  # compiling may have taken minutes
        log = together(
            lambda: RunLog(folder, config.log.tensorboard, int(state.step) or None, progress.row_due, **told_by)
        )
        stack.enter_context(log)
        named = on_main(lambda: str(folder))
        trainer = Trainer(session, folder, named, place.require_held, checkpoints, console, log, told, progress)
        state = trainer.fit(state)
        return trainer.finish(state)


def holds_state(folder: Path) -> bool:
    """Whether a run has a finished checkpoint."""
    return any(map(is_finished, (folder / CHECKPOINTS).glob("[0-9]*")))


def require_no_given_images(folder: Path) -> None:
    """Raise `ConfigError` for the folder of a run on images given in Python: it goes on with those alone."""
    with contextlib.suppress(CheckpointError):
        if holds_state(folder) and (seen := read_spec(folder)) is not None and seen[1] is None:
            raise ConfigError(f"{folder} was trained on images given in Python. Give them again, as splits.")


@contextlib.contextmanager
def log_of_nothing_set_aside(folder: Path) -> Iterator[None]:
    """Where no state could be saved at all, rename the log: the same command begins anew, and it would be refused."""
    try:
        yield
    except CheckpointError:
        log, place = folder / METRICS_FILE, folder / CHECKPOINTS
        is_away = place.is_symlink() and not place.exists()  # on a disk that will be back
        if not is_away and not holds_state(folder):
            with contextlib.suppress(OSError):
                log.rename(log.with_name(f"{log.name}.unsaved"))
        raise


def load_everywhere(config: Config, splits: Splits | None) -> Splits:
    """The images of a run, divided as it wants them: the same in every process, or `ConfigError` in all."""
    splits = together(lambda: load_data(config.data) if splits is None else divide_whole(splits, config.data))
    require_same_everywhere("training images", splits.train.checksum)
    return splits


def bytes_on_disk(session: Session, state: TrainState) -> int:
    """The most that the checkpoints of a run take at the same time."""
    states = session.plan.states_at_once(session.config.checkpoint.keep, session.splits.validation is not None)
    return states * sum(leaf.nbytes for leaf in jax.tree.leaves(state))


def announce_experiment(console: Console, config: Config, own_images: bool, fresh: bool) -> None:
    """Machine, configuration, and what it is known to reach where images and weights are those that it says."""
    console.facts(machine_facts(config))
    console.config(config, own_images)
    if fresh and not own_images and (figure := known_figure(config)):
        console.facts({"reaches": figure})
    if warning := mirror_warning(config.eval.tta, config.augment):
        console.warn(warning)


def announce_network(console: Console, session: Session, state: TrainState) -> None:
    """Size of the network, dtype, and what compiling took this time; and what of it is not as one may think."""
    config, rows = session.config, parameter_table(state.params)
    dtype = compute_dtype(config.train.dtype)
    if config.log.parameter_table:
        console.parameter_table(rows)
    console.facts(network_facts(rows, dtype, session.clock.here("compile")))
    for warning in (dtype_warning(config.model, dtype), ema_warning(config.optim, session.plan.total_steps)):
        if warning is not None:
            console.warn(warning)


def fresh_progress(
    session: Session, start: dict[str, PyTree] | None, init_from: str | Path | Mapping[str, PyTree] | None
) -> Progress:
    """What a run writes down of what it is: its images, arithmetic, configuration, and the weights `start`, if any."""
    dtype, devices = compute_dtype(session.config.train.dtype), session.replicas.mesh.size
    return Progress(
        session.splits.train.checksum,
        arithmetic(dtype, devices, own_code(session.config)),
        judged_by=judges(session.splits),
        start=None if start is None else checksum(start),
        init_from=str(init_from) if isinstance(init_from, str | Path) else None,
        config=to_record(session.config),
    )


def resume(
    session: Session,
    checkpoints: Checkpoints,
    state: TrainState,
    fresh: Progress,
    console: Console,
    allow_different_numbers: bool,
) -> tuple[TrainState, Progress]:
    """The newest sound checkpoint and what it keeps, or the state and the progress of a run that is begun now.

    Raises `CheckpointError` where it is of another configuration, images or classes have changed (of test images it
    warns), weights to start from are given and it was begun from others, or what decides the numbers has changed unless
    that is allowed.
    """
    restored = restore(checkpoints, state, session)
    if restored is None:
        return state, fresh
    progress = Progress(**restored.extra)
    require_same_config(checkpoints.directory / str(restored.step), progress.config, fresh.config)
    require_same_numbers(progress.arithmetic, fresh.arithmetic, allow_different_numbers, console.line)
    progress.arithmetic, progress.config = fresh.arithmetic, fresh.config
    if progress.fingerprint != fresh.fingerprint:
        raise CheckpointError(
            f"{checkpoints.directory} was trained on other images (checksum {progress.fingerprint:08x},"
            f" now {fresh.fingerprint:08x}). Restore the data set, or choose another --workdir."
        )
    now = judges(session.splits)
    if warning := require_same_judges(checkpoints.directory, progress.judged_by, now):
        console.warn(warning)
    progress.judged_by = now
    if fresh.start not in (None, progress.start):
        begun = "its network's own weights" if progress.start is None else "other weights"
        raise CheckpointError(
            f"{checkpoints.directory} was begun from {begun}, not from those to start from now. Go on without"
            " --init-from, or choose another --workdir."
        )
    session.clock.add(progress.seconds)
    console.line(f"resuming at step {restored.step:,} of {session.plan.total_steps:,}")
    return restored.state, progress


def require_same_config(checkpoint: Path, there: dict[str, Any] | None, here: dict[str, Any] | None) -> None:
    """Raise `CheckpointError` for a checkpoint of another run: that of the folder, config.json says, is this one.

    Its arrays have the same shapes with another seed or rate. One of an earlier version does not know what it is of.
    """
    differing = [] if there is None or here is None else differing_fields(there, here)
    if differing:
        shown = "\n  ".join(differing[:8])
        raise CheckpointError(
            f"Checkpoint {checkpoint} is of another configuration than its folder:\n  {shown}\n"
            "It was put there from another run. Move it away, or choose another --workdir."
        )


def restore(checkpoints: Checkpoints, state: TrainState, session: Session) -> Restored | None:
    """The newest sound checkpoint; of several processes one reads it, and sends it to the others."""
    if not several():
        return checkpoints.restore(state)
    template: Any = jax.device_get(state)
    found: list[Restored] = []

    def read() -> list[Any] | None:
        found.extend(filter(None, [checkpoints.restore(template)]))
        return [found[0].step, found[0].extra] if found else None

    told = on_main(read)
    if told is None:
        return None
    arrays = from_main(found[0].state if found else template)
    return Restored(told[0], spread(arrays, replicated(session.replicas.mesh)), told[1])


def config_checksum(config: Config) -> int:
    """Of all that has to be the same in every process."""
    fields = {name: value for name, value in flat(to_dict(config)).items() if not name.startswith("distributed.")}
    return zlib.crc32(json.dumps([fields, own_code(config)], sort_keys=True).encode())


def finished_result(session: Session, folder: Path, state: TrainState, progress: Progress) -> TrainResult | None:
    """What the run left when it came to its end; None where it did not, or where a file of that is damaged."""
    step = int(state.step)
    if step < session.plan.total_steps and not progress.stopped_early:
        return None
    read = on_main(lambda: read_finished(session, folder, step))
    return None if read is None else TrainResult(state, Report.from_dict(read[1]), read[0], folder)


def tell_finished(console: Console, config: Config, finished: TrainResult, profile: int | None) -> None:
    """Say that nothing is left to do but to draw pictures, where they are asked for now and were not then."""
    if profile is not None:
        console.warn("--profile looks into the update that comes next, and none does: give another --workdir.")
    missing = config.log.plots and is_main() and not (finished.workdir / MATRIX).exists()
    drawn = "; plots/ is drawn from its records" if missing else ""
    console.line(f"the run is finished: nothing is trained, evaluated or logged anew{drawn}")
    if missing:
        draw(finished.workdir, config.name, finished.report, console.warn)
    console.summary(finished.summary, finished.workdir)


def read_finished(session: Session, folder: Path, step: int) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """`summary.json` and `report.json` of a finished run.

    None where one is missing, damaged or of another step, or where the run was judged by other views than are asked
    for now.
    """
    try:
        names = ("summary.json", "report.json", "config.json")
        figures, values, config = (read_record(folder / name) for name in names)
        Report.from_dict(values)
        # Of a run that was stopped while it was judged by others, the configuration is newer than the figures.
        tta, wanted = figures.get("tta", config["eval"]["tta"]), session.config.eval.tta
        judged = tta == wanted and (wanted != "none") == (figures["test_accuracy_tta"] is not None)
        return (figures, values) if judged and figures["steps"] == step else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
