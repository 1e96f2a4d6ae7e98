"""When things happen: the steps at which a run logs, evaluates, saves and ends. Pure arithmetic on step numbers."""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from jax_cifar.config import Config
from jax_cifar.errors import ConfigError, check

# A rate of every update is kept on the device and on the host: 0.3 GB for as many as this, which is CIFAR one image at
# a time for 200 epochs.
MOST_STEPS = 10_000_000


@dataclass(frozen=True)
class Plan:
    """A step number counts completed updates.

    An interval need not be whole: what happens every 10.5 steps does so at the nearest ones, 11, 21, 32, 42. One of 0
    means never but at the end.
    """

    total_steps: int
    steps_per_epoch: int
    log_every: int
    eval_every: float
    checkpoint_every: float
    steps_per_call: int | None  # None: as many as the trainer can afford
    phases: tuple[tuple[int | None, int], ...] = ()  # image side, and the step at which its part of the run ends

    def next_stop(self, step: int) -> int:
        """The next step after `step` at which anything but training happens."""
        begin = step // self.steps_per_epoch * self.steps_per_epoch
        log = begin + ((step - begin) // self.log_every + 1) * self.log_every
        ends = [end for _, end in self.phases if end > step]
        stops = [next_due(step, every) for every in (self.eval_every, self.checkpoint_every) if every]
        return min(log, begin + self.steps_per_epoch, self.total_steps, *ends, *stops)

    def side_at(self, step: int) -> int | None:
        """The side of the images that the update after `step` sees, in pixels; None: as the data set has them."""
        return next((side for side, end in self.phases if step < end), self.phases[-1][0] if self.phases else None)

    def next_call(self, step: int, affordable: int = 1) -> int:
        """Updates that the next compiled call makes; `affordable` counts where the plan sets no number itself."""
        return min(self.steps_per_call or affordable, self.next_stop(step) - step)

    def calls(self) -> set[tuple[int | None, int]]:
        """Every image side with every number of updates in a call; a call is of one where the plan sets no number."""
        steps = np.arange(self.total_steps + 1, dtype=np.int32)
        is_stop = steps % self.steps_per_epoch % self.log_every == 0
        for every in filter(None, (self.eval_every, self.checkpoint_every)):
            due = nearest(steps[: int(self.total_steps / every) + 2].astype(np.float64), every)
            is_stop[due[due <= self.total_steps].astype(np.int32)] = True
        is_stop[[0, *(end for _, end in self.phases), self.total_steps]] = True
        stops, whole = np.flatnonzero(is_stop), self.steps_per_call or 1
        phases = np.searchsorted([end for _, end in self.phases], stops[:-1], side="right")
        calls = set()
        for pair in np.unique(phases * (self.total_steps + 1) + np.diff(stops)).tolist():
            phase, gap = divmod(pair, self.total_steps + 1)
            side = self.phases[phase][0] if self.phases else None
            calls |= {(side, count) for count in (min(gap, whole), gap % whole) if count}
        return calls

    def states_at_once(self, keep: int, best: bool) -> int:
        """How many states lie on the disk at the same time, of which `keep` stay; `best`: one more is kept apart."""
        saves = math.ceil(self.total_steps / self.checkpoint_every) if self.checkpoint_every else 1
        # The new one is whole before an old one goes.
        return min(saves, keep) + (2 if best else saves > keep)

    def evaluations(self, step: int) -> int:
        """How many evaluations are done once the update `step` and what is due at it are."""
        if step == self.total_steps:
            return self.evaluations(step - 1) + 1
        return math.ceil((step + 0.5) / self.eval_every) - 1 if self.eval_every else 0

    def work(self, step: int) -> float:
        """Updates done by `step`, each by its pixels: those of images as large as the last ones count 1."""
        last = self.phases[-1][0] if self.phases else None
        begins = [0, *(end for _, end in self.phases)]
        small = sum(
            (min(step, end) - begin) * (1 - (side / last) ** 2)
            for (side, end), begin in zip(self.phases, begins, strict=False)
            if side and last and step > begin
        )
        return step - small

    def is_log_due(self, step: int) -> bool:
        """Whether a log line is due: every `log_every` steps of an epoch, and at its end.

        Counted from the epoch's start, so that the calls of all epochs have the same few sizes to be compiled.
        """
        in_epoch = step % self.steps_per_epoch
        return in_epoch % self.log_every == 0 or step == self.total_steps

    def is_due(self, step: int, every: float) -> bool:
        """Whether something that happens every so many steps, and at the end, happens now."""
        return step == self.total_steps or bool(every and step == next_due(step - 1, every))


def nearest(k: Any, every: float) -> Any:
    """The step at which what happens every so many steps does so for the k-th time: a float, or an array of them."""
    return np.floor(k * every + 0.5)


def next_due(step: int, every: float) -> int:
    """The next step after `step` at which what happens every so many steps, at least 1, does so."""
    dues = (int(nearest(k, every)) for k in itertools.count(int(step / every)))
    return next(due for due in dues if due > step)


def make_plan(config: Config, images: int, backend: str) -> Plan:
    """The plan of a run over so many training images; raises `ConfigError` where they do not fill a batch."""
    batch_size = config.train.batch_size
    if batch_size > images:
        raise ConfigError(
            f"train.batch_size = {batch_size} is larger than the {images} training images: --train.batch_size {images}"
            " is the largest."
        )
    steps_per_epoch = images // batch_size

    def interval(epochs: float) -> float:
        return max(1.0, epochs * steps_per_epoch) if epochs else 0.0

    # On a CPU one program makes any number of updates, and a signal should not have to wait long for its answer.
    default = 1 if config.train.debug_nans else None if backend == "cpu" else config.log.every
    total_steps = _total_steps(config, steps_per_epoch)
    sides, shares = zip(*config.train.resolutions, strict=True) if config.train.resolutions else ((), ())
    ends = [round(share * total_steps) for share in itertools.accumulate(shares)]
    return Plan(
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
        log_every=min(config.log.every, steps_per_epoch),  # a line is due at an epoch's end anyway
        eval_every=interval(config.eval.every),
        checkpoint_every=interval(config.checkpoint.every),
        steps_per_call=config.train.steps_per_call or default,
        phases=tuple(zip(sides, [*ends[:-1], total_steps], strict=False)),
    )


def _total_steps(config: Config, steps_per_epoch: int) -> int:
    """How many updates the run makes; raises `ConfigError` where it has no bounds."""
    field = "epochs" if config.train.steps is None else "steps"
    value = getattr(config.train, field)
    steps = value if field == "steps" else value * steps_per_epoch
    expected = f"a run has at most {MOST_STEPS:,} updates, here {MOST_STEPS / steps_per_epoch:,.6g} epochs"
    check(steps <= MOST_STEPS, f"train.{field}", value, expected)
    return max(1, round(steps))
