"""Many answers at once: runs that differ in seed, rate, momentum or decay, in one process, compiled once.

from jax_cifar import apply_overrides, load_config, train_many
config = load_config("configs/quickstart.py")
results = train_many([apply_overrides(config, ["--train.seed", str(seed)]) for seed in range(8)])

Every member of the lot is what `train` would have made of its configuration, with one evaluation at its end and no run
folder: no log, no checkpoints. What has not finished when the process is stopped is lost.
"""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool

from jax_cifar.backend.compiler import compilation_cache
from jax_cifar.backend.mesh import find_devices, replicated
from jax_cifar.config import Config
from jax_cifar.config.files import flat, to_dict
from jax_cifar.data import Splits, divide_whole, load_data
from jax_cifar.errors import ConfigError, check
from jax_cifar.evaluation.metrics import Report
from jax_cifar.models import parameter_table
from jax_cifar.optim.rules import constant_momentum
from jax_cifar.run.clock import Clock
from jax_cifar.training.programs import VARIED
from jax_cifar.training.replicas import How, make_replicas
from jax_cifar.training.session import Part, Session, plan_schedule
from jax_cifar.training.state import TrainState


@dataclass(frozen=True)
class ManyResult:
    """One finished member and what came of it. The figures of one that diverged are None."""

    config: Config
    state: TrainState = field(repr=False)  # the last, on the host
    report: Report | None  # on the test images
    test_accuracy: float | None
    test_loss: float | None  # mean cross-entropy in nats
    test_accuracy_tta: float | None  # None also without eval.tta
    validation_accuracy: float | None  # what to choose a setting by; None also without a validation part
    diverged_at: int | None  # the step by which loss or parameters had stopped being finite
    seconds: float  # of training, without compilation and evaluation; of a group trained in one call its share

    @property
    def setting(self) -> dict[str, float]:
        """What distinguishes it in its lot; for adam and adamw `momentum` is b1."""
        optim = self.config.optim
        numbers = {"lr": optim.lr, "momentum": constant_momentum(optim), "weight_decay": optim.weight_decay}
        return {"seed": self.config.train.seed, **numbers}

    def to_dict(self) -> dict[str, Any]:
        """Setting and figures as JSON values."""
        figures = ("test_accuracy", "test_loss", "test_accuracy_tta", "validation_accuracy", "diverged_at", "seconds")
        size = {
            "steps": int(self.state.step),
            "parameters": sum(count for *_, count in parameter_table(self.state.params)),
        }
        return self.setting | {name: getattr(self, name) for name in figures} | size


def train_many(
    configs: Sequence[Config],
    *,
    splits: Splits | None = None,
    how: How | Literal["auto"] = "auto",
    chunk: int | None = None,
    on_result: Callable[[ManyResult], object] | None = None,
    on_update: Callable[[float], object] | None = None,
) -> list[ManyResult]:
    """Train every configuration; the results in the order given.

    Ways: "sequential" trains one after another, each spread over the devices as by `train`: on the same device its
    results have the same bits. "vmap" trains a whole group in one call, equal up to the rounding of floats. "devices"
    trains one member per device at a time. "auto" is "devices" where there are several, else "sequential": on a CPU
    vmap turns a convolution with a kernel of every member's own into a grouped one, and training takes about twice as
    long (scripts/benchmark.py many). On a GPU neither has been measured.

    Args:
      configs: experiments that may differ in `VARIED` only. What they say on evaluating, saving and logging in between
        means nothing here.
      splits: images of one's own in place of those that `data` names.
      how: the way.
      chunk: members in one call of "vmap"; default all. Fewer need less memory.
      on_result: called with every result as soon as there is one.
      on_update: called now and then with how many members are trained, parts of them included.

    Raises:
      ConfigError, DataError: what the user can put right. A member that diverges is marked and stops no other.
    """
    configs = list(configs)
    check_lot(configs)
    config, count = configs[0], len(configs)
    how = choose_way(config, count) if how == "auto" else how
    check(chunk is None or (how == "vmap" and chunk >= 1), "chunk", chunk, "give at least 1, and only with vmap")
    results = []
    with compilation_cache(config):
        replicas = make_replicas(config, how, min(chunk or count, count))
        splits = load_data(config.data) if splits is None else divide_whole(splits, config.data)
        session = Session(config, splits, replicas, Clock())
        for one in configs:
            plan_schedule(one, session.plan)  # what a schedule refuses stops the lot before anything is trained
        for start in range(0, count, replicas.size):
            part = configs[start : start + replicas.size]
            tell = partial(_tell_share, on_update, start, len(part), session.plan.total_steps)
            for one, trained in zip(part, train_group(session, part, look=tell), strict=True):
                results.append(judge(session, one, trained))
                if on_result is not None:
                    on_result(results[-1])
    return results


def _tell_share(tell: Callable[[float], object] | None, before: int, group: int, total: int, step: int) -> None:
    if tell is not None:
        tell(before + group * step / total)


def choose_way(config: Config, count: int) -> How:
    """What "auto" stands for with so many members."""
    devices = config.distributed.devices or len(find_devices())
    return "devices" if min(devices, count) > 1 else "sequential"


def check_lot(configs: Sequence[Config]) -> None:
    """Raise `ConfigError` unless the configurations can share a compiled program and no two are the same."""
    check(len(configs) > 0, "configs", list(configs), "give at least one")
    fields = [flat(to_dict(config)) for config in configs]
    places: dict[str, int] = {}
    for i, (config, own) in enumerate(zip(configs, fields, strict=True)):
        for name in fields[0].keys() | own.keys():
            if own.get(name) != fields[0].get(name) and name not in VARIED:
                raise ConfigError(
                    f"{name} differs within the lot: {fields[0].get(name)!r} and {own.get(name)!r} need a program"
                    f" each. Only these may differ: {', '.join(VARIED)}. Make a lot of its own for each value."
                )
        check_varied(configs[0], config)
        first = places.setdefault(repr(sorted((name, str(own.get(name))) for name in VARIED)), i)
        if first != i:
            raise ConfigError(f"Numbers {first} and {i} of the lot are the same: give each another seed or setting.")
    check_for_lots(configs[0])


def check_for_lots(config: Config) -> None:
    """Raise `ConfigError` for what only a run of its own can do."""
    coordinator, patience = config.distributed.coordinator, config.train.patience
    check(coordinator is None, "distributed.coordinator", coordinator, "several processes train one run; use `train`")
    expected = "the runs of a lot end together: 0 here; `train` stops early"
    check(patience == 0, "train.patience", patience, expected)
    check(not config.train.debug_nans, "train.debug_nans", True, "a NaN stops no lot of runs; use `train`")


def check_varied(base: Config, config: Config) -> None:
    """Raise `ConfigError` for a number that differs but is no data for the compiled program of this rule."""
    optim = config.optim
    if optim.lr != base.optim.lr and optim.name == "muon":
        # The rate of all but the kernels is compiled in as a multiple of Muon's own.
        raise ConfigError(
            f"optim.lr = {optim.lr} cannot differ from {base.optim.lr} within a lot with muon, whose optim.aux_lr would"
            " be scaled with it: make a lot of its own for each rate."
        )
    check_momentum(base, config)


def check_momentum(base: Config, config: Config) -> None:
    """Raise `ConfigError` for a momentum that differs where the schedule sets it anyway."""
    momentum, schedule = constant_momentum(config.optim), config.schedule
    if momentum != constant_momentum(base.optim):
        cycled = schedule.name == "onecycle" and schedule.cycle_momentum
        check(not cycled, "optim.momentum", momentum, "the schedule sets it; see schedule.cycle_momentum")


class Trained(NamedTuple):
    """A member after its last update."""

    state: TrainState  # on the host
    diverged_at: int | None
    seconds: float


def train_group(
    session: Session,
    configs: Sequence[Config],
    give_up: Callable[[TrainState, int], Bool[np.ndarray, " runs"]] | None = None,
    look: Callable[[int], None] = lambda step: None,
) -> Iterator[Trained]:
    """Train as many runs as the session has replicas to the plan's end.

    `give_up(state, step)` is asked at every stop before it which runs are not worth going on with; `look(step)` is
    called about once a second.
    """
    count, step = len(configs), 0
    state = session.start(configs)
    session.compile(state)
    diverged, given_up, seconds = np.zeros(count, int), np.zeros(count, bool), 0.0
    while step < session.plan.total_steps and not (given_up | (diverged > 0)).all():
        state, interval = session.advance(state, step, look)
        step, seconds = interval.end, seconds + interval.seconds
        look(step)
        broken = np.array([interval.broken(i) is not None for i in range(count)])
        diverged[(diverged == 0) & broken] = step
        if give_up is not None and step < session.plan.total_steps:
            given_up |= give_up(state, step)
    for own, at in zip(session.replicas.unstack(state), diverged, strict=False):
        yield Trained(own, int(at) or None, seconds / count)


def judge(
    session: Session, config: Config, trained: Trained, parts: Collection[Part] = ("test", "validation")
) -> ManyResult:
    """The final weights on every image of these parts; figures of a part that is not named or not there are None."""
    names = ("report", "test_accuracy", "test_loss", "test_accuracy_tta", "validation_accuracy")
    figures: dict[str, Any] = dict.fromkeys(names)
    if trained.diverged_at is None:
        variables = jax.device_put(trained.state.eval_variables, replicated(session.replicas.mesh))
        if "test" in parts:
            plain = session.logits(variables, "test")
            report = session.report("test", plain)
            loss = report.loss if math.isfinite(report.loss) else None
            figures |= {"report": report, "test_accuracy": report.accuracy, "test_loss": loss}
            if config.eval.tta != "none":
                by_views = session.logits(variables, "test", config.eval.tta, plain=plain)
                figures["test_accuracy_tta"] = session.report("test", by_views).accuracy
        if "validation" in parts and session.splits.validation is not None:
            figures["validation_accuracy"] = session.evaluate(variables, "validation").accuracy
    return ManyResult(config, **trained._asdict(), **figures)
