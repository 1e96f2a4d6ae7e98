"""Trials trained in lots: what shares a compiled program is trained by the one that is there."""

import itertools
from collections.abc import Sequence
from typing import Literal, get_args

import jax
import numpy as np
from jaxtyping import Bool

from jax_cifar.backend.mesh import find_devices, replicated
from jax_cifar.config import Config
from jax_cifar.data import Splits, divide_whole, load_data
from jax_cifar.errors import ConfigError, check
from jax_cifar.lab.space import with_setting
from jax_cifar.lab.trials import Claim, Trials
from jax_cifar.run.clock import Clock
from jax_cifar.training.many import choose_way, judge, train_group
from jax_cifar.training.programs import program_of
from jax_cifar.training.replicas import How, make_replicas
from jax_cifar.training.session import Part, Session
from jax_cifar.training.state import TrainState

# Programs kept between trials, each with its images on the device; a search comes back to those of late.
KEPT = 4
CHUNK = 8  # trials of "vmap" in one call, which are proposed before any of them is trained


class Lots:
    """How trials are trained: so many in one call, by programs that are kept between them.

    Args:
        config: the experiment that varies.
        how: as in `train_many`.
        chunk: trials in one call of "vmap"; default: 8.
        splits: images of one's own in place of those that `config.data` names.
    """

    def __init__(
        self, config: Config, how: How | Literal["auto"], chunk: int | None, splits: Splits | None = None
    ) -> None:
        check(how in ("auto", *get_args(How)), "how", how, "it must be auto, sequential, vmap or devices")
        devices = config.distributed.devices or len(find_devices())
        self.how: How = choose_way(config, devices) if how == "auto" else how
        good = chunk is None or (self.how == "vmap" and chunk >= 1)
        check(good, "chunk", chunk, "give at least 1, and only with vmap")
        self.size = {"sequential": 1, "devices": devices, "vmap": chunk or CHUNK}[self.how]
        self._given, self._splits = splits, {}
        self._sessions: dict[str, Session] = {}

    def session(self, config: Config) -> Session:
        """The session whose programs train `config`; raises `ConfigError` where it cannot be trained."""
        program = program_of(config)
        session = self._sessions.pop(program, None)
        if session is None:
            while len(self._sessions) >= KEPT:
                del self._sessions[next(iter(self._sessions))]
            session = Session(config, self.load(config), make_replicas(config, self.how, self.size), Clock())
        self._sessions[program] = session
        return session

    def load(self, config: Config) -> Splits:
        """The images of a configuration, divided as it says; raises `ConfigError` or `DataError` as `load_data`."""
        data = repr(config.data)
        if data not in self._splits:
            given = self._given
            loaded = load_data(config.data) if given is None else divide_whole(given, config.data)
            self._splits = {data: loaded}  # of the last only: they are large
        return self._splits[data]

    def train(self, trials: Trials, claims: Sequence[Claim], config: Config, part: Part, prune: bool = False) -> None:
        """Train the claimed settings of `config` and finish their trials with the accuracy of `part`.

        Nothing else is evaluated; to judge early, validation images. A setting that cannot be trained is noted as
        refused, one that diverges as diverged; both are worth 0.
        """
        lots: dict[str, list[tuple[Claim, Config]]] = {}
        for claim in claims:
            try:
                own = with_setting(config, claim.setting)
                lots.setdefault(program_of(own), []).append((claim, own))
            except ConfigError as error:
                trials.finish(claim, 0.0, {"outcome": "refused", "reason": str(error)})
        for lot in lots.values():
            for start in range(0, len(lot), self.size):
                members = lot[start : start + self.size]
                try:
                    self._train_lot(trials, members, part, prune)
                except Exception as error:
                    if not (isinstance(error, ConfigError | MemoryError) or "RESOURCE_EXHAUSTED" in str(error)):
                        raise
                    reason, *_ = str(error).splitlines() or [type(error).__name__]
                    for claim, _ in members:
                        trials.finish(claim, 0.0, {"outcome": "refused", "reason": reason})

    def _train_lot(self, trials: Trials, members: Sequence[tuple[Claim, Config]], part: Part, prune: bool) -> None:
        claims, configs = zip(*members, strict=True)
        session = self.session(configs[0])
        early = Early(session, trials, claims)
        trained = train_group(session, configs, early if prune else None)
        for claim, config, own, pruned in zip(claims, configs, trained, early.pruned, strict=False):
            result = judge(session, config, own, () if pruned else (part,))
            outcome = "diverged" if own.diverged_at is not None else "pruned" if pruned else "finished"
            value = {"diverged": 0.0, "pruned": None, "finished": getattr(result, f"{part}_accuracy")}[outcome]
            notes = {"outcome": outcome, "seconds": result.seconds, "images": len(session.part(part).labels)}
            if part == "test":
                notes |= {"test_loss": result.test_loss, "test_accuracy_tta": result.test_accuracy_tta}
            trials.finish(claim, value, notes)


class Early:
    """Asked at every stop which trials of a lot are given up: those that the store's rule says are not worth it."""

    def __init__(self, session: Session, trials: Trials, claims: Sequence[Claim]) -> None:
        self._session, self._trials, self._claims = session, trials, claims
        self.pruned = np.zeros(len(claims), bool)
        self._percent = 0

    def __call__(self, state: TrainState, step: int) -> Bool[np.ndarray, " trials"]:
        """Where an evaluation is due, at most at every per cent of the run, judge by validation images."""
        session, plan = self._session, self._session.plan
        percent = 100 * step // plan.total_steps
        if plan.is_due(step, plan.eval_every) and percent > self._percent:
            self._percent = percent
            states = itertools.islice(session.replicas.unstack(state.eval_variables), len(self._claims))
            for i, variables in enumerate(states):
                if not self.pruned[i]:
                    there = jax.device_put(variables, replicated(session.replicas.mesh))
                    accuracy = session.evaluate(there, "validation").accuracy
                    self.pruned[i] = self._trials.report(self._claims[i], percent, accuracy)
        return self.pruned
