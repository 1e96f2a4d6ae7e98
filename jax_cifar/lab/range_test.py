"""The learning-rate range test: the rate grows with every update; the loss tells where it learns, and where it breaks.

Smith, Cyclical learning rates for training neural networks, WACV 2017, section 3.3; with a rate that grows
exponentially, as it is mostly done since.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float

from jax_cifar.backend.compiler import compilation_cache
from jax_cifar.config import Config, ScheduleConfig
from jax_cifar.data import Splits, divide_whole, load_data
from jax_cifar.errors import ConfigError, check
from jax_cifar.run.clock import Clock
from jax_cifar.training.replicas import one_run
from jax_cifar.training.session import Session

BROKEN = 1.5  # times the loss at the start, in the mean of the last updates: there a run is given up
LAST = 5  # of those
WINDOW = 20  # a mean is taken over about the 20th part of the updates, as batches differ


@dataclass(frozen=True)
class RangeTest:
    """What came of it."""

    rates: Float[np.ndarray, " updates"]  # of the update i, ascending
    losses: Float[np.ndarray, "seeds updates"]  # before it; NaN from where a run broke on
    smooth: Float[np.ndarray, " updates"]  # mean over seeds and neighbours; NaN from where the first run broke on
    steepest: float  # the rate at which the loss falls fastest
    lowest: float  # the rate at which it is smallest
    broke: float | None  # the rate at which the first run broke; None where none did

    @property
    def suggestion(self) -> float:
        """A peak rate to begin with: the geometric mean of the steepest and of the lowest.

        At the first the network learns fastest, at the second the rate is about to be too large.
        """
        return math.sqrt(self.steepest * self.lowest)


def range_test(
    config: Config,
    low: float,
    high: float,
    updates: int,
    seeds: int,
    splits: Splits | None = None,
    tell: Callable[[int], object] = lambda done: None,
) -> RangeTest:
    """Train for so many updates with a rate that grows from `low` to `high`, for every seed anew.

    Everything else is as `config` has it, but for the schedule, averaged weights, and images that grow: they stay as
    small as they are at first. Rates that are a multiple of `optim.lr` move with it: `optim.lr_multipliers`, and
    Muon's `optim.aux_lr`, which `rates_at` gives for the rate that was found.

    Args:
        config: the experiment; its seed is the first.
        low, high: rates, of `optim.lr`.
        updates: of each run.
        seeds: how many runs.
        splits: images of one's own in place of those that `config.data` names.
        tell: is told how many updates are done, of `seeds * updates`.

    Raises:
        ConfigError: a bad argument, or a loss that falls nowhere.
        DataError: the data set.
    """
    check(0 < low < high, "--low", low, f"it must be greater than 0 and less than --high {high:g}")
    check(updates >= 10, "--updates", updates, "a curve needs at least 10")
    check(seeds >= 1, "--seeds", seeds, "it must be at least 1")
    probe = growing(config, low, high, updates)
    rates = low * (high / low) ** (np.arange(updates) / (updates - 1))
    losses = np.full((seeds, updates), np.nan)
    with compilation_cache(config):
        splits = load_data(config.data) if splits is None else divide_whole(splits, config.data)
        session = Session(probe, splits, one_run(probe), Clock())
        for number, row in enumerate(losses):
            seed = (config.train.seed + number) % 2**32
            own = dataclasses.replace(probe, train=dataclasses.replace(probe.train, seed=seed))
            _train(session, own, row, lambda step, before=number * updates: tell(before + step))
    return judge(rates, losses)


def growing(config: Config, low: float, high: float, updates: int) -> Config:
    """`config` with a rate that grows exponentially, and nothing that happens between updates."""
    sides = tuple((side, 1.0) for side, _ in config.train.resolutions[:1])
    return dataclasses.replace(
        config,
        optim=dataclasses.replace(config.optim, ema_decay=0.0, **rates_at(config, high)),
        schedule=ScheduleConfig(name=partial(share, low=low, high=high)),
        train=dataclasses.replace(config.train, steps=updates, resolutions=sides, skip_nonfinite=0, patience=0),
        eval=dataclasses.replace(config.eval, every=0.0),
        checkpoint=dataclasses.replace(config.checkpoint, every=0.0),
        log=dataclasses.replace(config.log, every=1),
    )


def rates_at(config: Config, lr: float) -> dict[str, float]:
    """`optim.lr` with this value, and what moves with it, by their names in `optim`."""
    optim = config.optim
    return {"lr": lr} | ({"aux_lr": optim.aux_lr * lr / optim.lr} if optim.name == "muon" else {})


def share(step: int, total_steps: int, low: float, high: float) -> float:
    """Of the highest rate, that of the update after `step` others: `low` at first, `high` at last."""
    return (low / high) ** (1 - step / max(total_steps - 1, 1))


def _train(
    session: Session, config: Config, losses: Float[np.ndarray, " updates"], tell: Callable[[int], object]
) -> None:
    """Write the loss of every update down, until the run breaks."""
    state, step = session.start([config]), 0
    session.compile(state)
    while step < len(losses):
        state, interval = session.advance(state, step)
        step = interval.end
        losses[step - 1] = interval.sums["loss"][0] / interval.sums["count"][0]
        if interval.broken() is not None or losses[max(step - LAST, 0) : step].mean() > BROKEN * losses[:LAST].mean():
            losses[step - 1] = np.nan
            break
        tell(step)
    tell(len(losses))


def judge(rates: Float[np.ndarray, " updates"], losses: Float[np.ndarray, "seeds updates"]) -> RangeTest:
    """Read the curve of losses; raises `ConfigError` where it falls nowhere."""
    means = losses.mean(axis=0)  # NaN where one run is
    whole = int(np.isfinite(means).sum())
    smooth = np.full(len(rates), np.nan)
    if whole:
        smooth[:whole] = _smoothed(means[:whole], max(1, len(rates) // (2 * WINDOW)))
    lowest = int(np.nanargmin(smooth)) if whole else 0
    if lowest < 2 or not smooth[lowest] < smooth[0]:
        raise ConfigError(
            f"The loss falls nowhere between the rates {rates[0]:.3g} and {rates[max(whole - 1, 0)]:.3g}: lower --low,"
            " or take more --updates."
        )
    slopes = np.gradient(smooth[: lowest + 1], np.log(rates[: lowest + 1]))
    broke = float(rates[whole]) if whole < len(rates) else None
    return RangeTest(rates, losses, smooth, float(rates[slopes.argmin()]), float(rates[lowest]), broke)


def _smoothed(values: Sequence[float] | np.ndarray, reach: int) -> Float[np.ndarray, " n"]:
    """The mean over each value and up to `reach` neighbours on either side."""
    window = np.ones(2 * min(reach, (len(values) - 1) // 2) + 1)  # a longer one would give more means than values
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")
