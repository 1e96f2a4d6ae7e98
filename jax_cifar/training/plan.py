"""When things happen: the steps at which a run logs, evaluates, saves and ends. Pure arithmetic on step numbers."""

import itertools
import math
from dataclasses import dataclass

from jax_cifar.config import Config
from jax_cifar.errors import ConfigError


@dataclass(frozen=True)
class Plan:
    """A step number counts completed updates. An interval of 0 means never but at the end."""

    total_steps: int
    steps_per_epoch: int
    log_every: int
    eval_every: int
    checkpoint_every: int
    steps_per_call: int | None  # None: as many as the trainer can afford
    phases: tuple[tuple[int | None, int], ...] = ()  # image side, and the step at which its part of the run ends

    def next_stop(self, step: int) -> int:
        """The next step after `step` at which anything but training happens."""
        begin = step // self.steps_per_epoch * self.steps_per_epoch
        log = begin + ((step - begin) // self.log_every + 1) * self.log_every
        ends = [end for _, end in self.phases if end > step]
        stops = [(step // every + 1) * every for every in (self.eval_every, self.checkpoint_every) if every]
        return min(log, begin + self.steps_per_epoch, self.total_steps, *ends, *stops)

    def side_at(self, step: int) -> int | None:
        """The side of the images that the update after `step` sees, in pixels; None: as the data set has them."""
        return next((side for side, end in self.phases if step < end), self.phases[-1][0] if self.phases else None)

    def next_call(self, step: int, affordable: int = 1) -> int:
        """Updates that the next compiled call makes; `affordable` counts where the plan sets no number itself."""
        return min(self.steps_per_call or affordable, self.next_stop(step) - step)

    def calls(self) -> set[tuple[int | None, int]]:
        """Every image side with every number of updates in a call, where the plan sets the number."""
        calls, step = set(), 0
        while step < self.total_steps:
            count = self.next_call(step)
            calls.add((self.side_at(step), count))
            step += count
        return calls

    def states_at_once(self, keep: int, best: bool) -> int:
        """How many states lie on the disk at the same time, of which `keep` stay; `best`: one more is kept apart."""
        saves = math.ceil(self.total_steps / self.checkpoint_every) if self.checkpoint_every else 1
        # The new one is whole before an old one goes.
        return min(saves, keep) + (2 if best else saves > keep)

    def is_log_due(self, step: int) -> bool:
        """Whether a log line is due: every `log_every` steps of an epoch, and at its end.

        Counted from the epoch's start, so that the calls of all epochs have the same few sizes to be compiled.
        """
        in_epoch = step % self.steps_per_epoch
        return in_epoch % self.log_every == 0 or step == self.total_steps

    def is_due(self, step: int, every: int) -> bool:
        """Whether something that happens every so many steps, and at the end, happens now."""
        return step == self.total_steps or bool(every and step % every == 0)


def make_plan(config: Config, images: int, backend: str) -> Plan:
    """The plan of a run over so many training images; raises `ConfigError` where they do not fill a batch."""
    batch_size = config.train.batch_size
    if batch_size > images:
        raise ConfigError(f"train.batch_size = {batch_size} is larger than the {images} training images.")
    steps_per_epoch = images // batch_size

    def steps(epochs: float) -> int:
        return max(1, round(epochs * steps_per_epoch)) if epochs else 0

    # On a CPU one program makes any number of updates, and a signal should not have to wait long for its answer.
    default = 1 if config.train.debug_nans else None if backend == "cpu" else config.log.every
    total_steps = config.train.steps or steps(config.train.epochs)
    shares = itertools.accumulate(share for _, share in config.train.resolutions)
    return Plan(
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
        log_every=config.log.every,
        eval_every=steps(config.eval.every),
        checkpoint_every=steps(config.checkpoint.every),
        steps_per_call=config.train.steps_per_call or default,
        phases=tuple(
            (side, round(share * total_steps))
            for (side, _), share in zip(config.train.resolutions, shares, strict=True)
        ),
    )
