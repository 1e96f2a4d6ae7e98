"""Trials in an Optuna store, shared by any number of processes: each is finished once, whoever is killed meanwhile.

Optuna proposes settings, prunes and keeps; what it leaves open is kept here in the trials' own notes. A trial has an
`index` in its sweep, from 0 on, and an `attempt` at it: where the process of a running trial is gone, the trial has
failed, and its setting is attempted again. The store numbers trials one after another, so of two that were begun for
the same attempt, by processes that did not see each other, the first is the trial and the other is void.
"""

import contextlib
import hashlib
import os
import platform
import re
import secrets
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from jax_cifar.errors import ConfigError
from jax_cifar.files import open_locked
from jax_cifar.lab.space import Axis, Setting

if TYPE_CHECKING:
    import optuna

Pruning = Literal["median", "halving", "none"]

# A process of another machine that has given no sign of life for so long is taken for dead; it gives one every minute.
SILENT_SECONDS, SIGN_SECONDS = 600, 60
WAIT_SECONDS = 0.5  # between two looks at what other processes are at
_HERE = f"{platform.node()}-{uuid.getnode():x}"


@dataclass(frozen=True)
class Claim:
    """A trial that this process is to train."""

    index: int
    setting: Setting
    trial: "optuna.Trial"


class Store:
    """An Optuna store, and who is at work on it; inside the `with` block this process is.

    Args:
        folder: of the sweep; processes of one machine take turns by a lock in it.
        url: of a database, or `journal:FILE`; default: sweep.db in the folder.
    """

    def __init__(self, folder: Path, url: str | None = None) -> None:
        self._folder, self._url = folder, url
        self._life = folder / f"process-{os.getpid()}-{secrets.token_hex(4)}.lock"

    def __enter__(self) -> Self:
        """Raises `ConfigError` where Optuna, a driver or the database is not there."""
        with contextlib.ExitStack() as stack:
            self._held, _ = open_locked(self._life)
            stack.callback(self._leave)
            with self.turn():
                self.storage, self._close = _open(self._url or self._folder / "sweep.db")
                stack.callback(self._close)
            self._ended, self._signing = threading.Event(), None
            stack.callback(self._stop_signing)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _stop_signing(self) -> None:
        self._ended.set()
        if self._signing is not None:  # it may hold a connection to the store, which closes next
            self._signing.join(WAIT_SECONDS)

    def _leave(self) -> None:
        self._life.unlink(missing_ok=True)
        os.close(self._held)

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Inside, no other process of this machine reads or writes the store by way of this folder."""
        descriptor, _ = open_locked(self._folder / "turn.lock", on_wait=lambda: None)
        try:
            yield
        finally:
            os.close(descriptor)

    def study(self, name: str, pruning: Pruning = "none") -> "optuna.Study":
        """The study of this name, made where there is none."""
        import optuna

        pruner = {
            "none": optuna.pruners.NopPruner,
            # In per cent of a run: none is judged in its first third, when a high rate still looks worse than it is.
            "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=33),
            "halving": lambda: optuna.pruners.SuccessiveHalvingPruner(min_resource=11, reduction_factor=3),
        }[pruning]()
        with self.turn():
            given = {"storage": self.storage, "pruner": pruner, "direction": "maximize"}
            return optuna.create_study(study_name=name, load_if_exists=True, **given)

    @property
    def worker(self) -> dict[str, str]:
        """This process, as it signs its trials."""
        return {"host": _HERE, "lock": str(self._life.absolute())}

    def is_alive(self, worker: Mapping[str, str], signs: Mapping[str, Any]) -> bool:
        """Whether the process that signed so is still at work, as far as can be told."""
        if worker == self.worker:
            return True
        if worker["host"] != _HERE:
            return time.time() - signs.get(worker["lock"], 0) < SILENT_SECONDS
        if not os.path.exists(worker["lock"]):
            return False
        try:
            descriptor, has_locks = open_locked(Path(worker["lock"]))
        except BlockingIOError:
            return True
        os.close(descriptor)
        if has_locks:
            Path(worker["lock"]).unlink(missing_ok=True)
        return not has_locks and time.time() - signs.get(worker["lock"], 0) < SILENT_SECONDS

    def give_signs(self, study: "optuna.Study") -> None:
        """Note in the study, now and every minute, that this process is alive: for those of other machines."""

        def sign() -> None:
            while True:
                with contextlib.suppress(Exception), self.turn():  # one that is missed is no reason to stop
                    study.set_user_attr(str(self._life.absolute()), time.time())
                if self._ended.wait(SIGN_SECONDS):
                    return

        self._signing = threading.Thread(target=sign, daemon=True)
        self._signing.start()


class Trials:
    """The trials of one study, with indices 0, 1, ...: as many as are asked for, each finished once.

    Args:
        store: where they are kept.
        name: of the study.
        axes: what varies.
        settings: of each index; default: as Optuna's TPE sampler proposes.
        seed: of the proposals.
        pruning: which rule says early that a trial is not worth going on with.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        axes: Sequence[Axis],
        settings: Sequence[Setting] | None = None,
        seed: int = 0,
        pruning: Pruning = "none",
    ) -> None:
        self._store, self._settings, self._seed = store, settings, seed
        self.study = store.study(name, pruning)
        self._distributions = {axis.field: _distribution(axis) for axis in axes}
        store.give_signs(self.study)

    def latest(self) -> dict[int, "optuna.trial.FrozenTrial"]:
        """The last attempt at every index; without what is void."""
        first: dict[tuple[int, int], Any] = {}
        for trial in self.study.get_trials(deepcopy=False):
            if "index" in trial.user_attrs:
                first.setdefault((trial.user_attrs["index"], trial.user_attrs["attempt"]), trial)
        return {index: first[index, attempt] for index, attempt in sorted(first)}

    def finished(self, total: int) -> dict[int, "optuna.trial.FrozenTrial"]:
        """Of the first so many indices, the trials that are trained to their end or given up."""
        return {
            index: trial
            for index, trial in self.latest().items()
            if index < total and trial.state.name in ("COMPLETE", "PRUNED")
        }

    def claim(self, total: int) -> Claim | None:
        """A trial of the first so many for this process, begun; None where all are finished or in living hands."""
        with self._store.turn():
            while True:
                trials = self.latest()
                signs = self.study.user_attrs
                for trial in trials.values():
                    if trial.state.name == "RUNNING" and not self._store.is_alive(trial.user_attrs["worker"], signs):
                        self._end(trial.number, "FAIL")
                trials = self.latest()
                due = (i for i in range(total) if i not in trials or trials[i].state.name in ("FAIL", "WAITING"))
                index = next(due, None)
                if index is None:
                    return None
                claimed = self._begin(index, trials.get(index), total)
                if claimed is not None:
                    return claimed

    def report(self, claim: Claim, percent: int, value: float) -> bool:
        """Note the accuracy after so many per cent of the training; whether the rest is not worth its time."""
        with self._store.turn():
            claim.trial.report(value, percent)
            return claim.trial.should_prune()

    def finish(self, claim: Claim, value: float | None, notes: Mapping[str, Any]) -> None:
        """End a trial with its value, or as pruned without one; nothing where others took this process for dead."""
        with self._store.turn():
            if self.study.get_trials(deepcopy=False)[claim.trial.number].state.is_finished():
                return
            for name, note in notes.items():
                claim.trial.set_user_attr(name, note)
            self._end(claim.trial.number, "PRUNED" if value is None else "COMPLETE", value)

    def _begin(self, index: int, last: "optuna.trial.FrozenTrial | None", total: int) -> Claim | None:
        """Begin a trial, of this index but for one that somebody left waiting; None if that one is void."""
        import optuna

        if last is None or last.state.name == "FAIL":
            attempt = 0 if last is None else last.user_attrs["attempt"] + 1
            whole = last is not None and last.params.keys() == self._distributions.keys()
            fixed = self._settings[index] if self._settings else last.params if last is not None and whole else {}
            notes = {"index": index, "attempt": attempt, "worker": self._store.worker}
            self.study.enqueue_trial(dict(fixed), user_attrs=notes)
        # A generator of its own for every trial: what is proposed depends on what is known, not on who has stopped.
        digest = hashlib.sha256(f"{self._seed} {index}".encode()).digest()
        self.study.sampler = optuna.samplers.TPESampler(seed=int.from_bytes(digest[:4], "big"))
        trial = self.study.ask(self._distributions)
        trial.set_user_attr("worker", self._store.worker)
        own = self.latest().get(trial.user_attrs.get("index", -1))
        if own is None or own.number != trial.number or trial.user_attrs["index"] >= total:
            self._end(trial.number, "FAIL")
            return None
        return Claim(trial.user_attrs["index"], dict(trial.params), trial)

    def _end(self, number: int, state: str, value: float | None = None) -> None:
        import optuna

        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):  # by a process of another machine
            self.study.tell(number, value, state=optuna.trial.TrialState[state], skip_if_finished=True)


def importance(study: "optuna.Study") -> dict[str, float]:
    """What share of the variance of the finished trials' accuracy each field explains, by fANOVA; sums to 1.

    Hutter et al. 2014, as Optuna has it. Empty where there is nothing to explain: fewer than two finished trials, or
    all of them equal.
    """
    import optuna

    done = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    if len(done) < 2 or len({trial.value for trial in done}) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(share) for name, share in shares.items()}


def _distribution(axis: Axis) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if axis.values:
        return CategoricalDistribution(axis.values)
    if axis.kind == "int":
        return IntDistribution(int(axis.low), int(axis.high))
    return FloatDistribution(axis.low, axis.high, log=axis.kind == "log")


def _database(url: str, options: Mapping[str, Any], tries: int = 5) -> Any:
    """Optuna's store in a database, its tables made where they are missing: two that make them at once can collide."""
    from optuna.storages import RDBStorage

    try:
        return RDBStorage(url, engine_kwargs=dict(options))
    except Exception as error:
        told = f"{error} {error.__cause__}".lower()
        if tries < 2 or not ("already exists" in told or "duplicate key" in told):
            raise
    time.sleep(WAIT_SECONDS)
    return _database(url, options, tries - 1)


def _open(place: str | Path) -> tuple[Any, Callable[[], object]]:
    """The store at a URL or in a file, and what closes it; raises `ConfigError` where it is not there."""
    try:
        import optuna
        import sqlalchemy  # Optuna brings it
    except ModuleNotFoundError:
        raise ConfigError("A sweep needs Optuna. Install it with: pip install -e '.[sweep]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # The name of a file may hold what means something else in a URL.
    url = str(sqlalchemy.URL.create("sqlite", database=str(place))) if isinstance(place, Path) else place
    kind, _, rest = url.partition(":")
    if kind == "journal":
        from optuna.storages.journal import JournalFileBackend

        return optuna.storages.JournalStorage(JournalFileBackend(rest)), lambda: None
    # The other processes of a sweep write too; none has the file for long.
    options = {"connect_args": {"timeout": 60}} if kind == "sqlite" else {"pool_pre_ping": True}
    try:
        database = _database(url, options)
        return optuna.storages.get_storage(database), lambda: (database.remove_session(), database.engine.dispose())
    except Exception as error:
        cause = error.__cause__ or error
        told, *_ = str(cause).strip().splitlines() or [type(cause).__name__]
        shown = re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", url)
        raise ConfigError(
            f"--storage {shown} cannot be opened: {told} It must be a database that is running, such as"
            " postgresql+psycopg://user@host/name with its driver installed, sqlite:///FILE or journal:FILE."
        ) from None
