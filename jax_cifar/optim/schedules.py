"""Learning-rate and momentum schedules, in float64 on the host.

A schedule is a pure function of `step`, the number of completed updates: its value is the one that the next update
uses, and what a PyTorch scheduler holds after `step` calls of `.step()`. `make_schedule` tabulates one for a whole run.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from jax_cifar.config import ScheduleConfig
from jax_cifar.config.modules import in_one_line
from jax_cifar.errors import ConfigError, check

Anneal = Literal["cos", "linear"]


class Tables(NamedTuple):
    """What every update of a run uses: float64 [total_steps], entry i for the update after i completed ones."""

    lr: np.ndarray
    momentum: np.ndarray


def constant(step: int, peak_lr: float, warmup_steps: int = 0, warmup_start: float = 0.0) -> float:
    """Linear from warmup_start * peak_lr to peak_lr in `warmup_steps` steps, then constant: PyTorch's `LinearLR`."""
    if step >= warmup_steps:
        return peak_lr
    return peak_lr * (warmup_start + (1 - warmup_start) * step / warmup_steps)


def cosine(
    step: int,
    total_steps: int,
    peak_lr: float,
    eta_min: float = 0.0,
    warmup_steps: int = 0,
    warmup_start: float = 0.0,
) -> float:
    """Linear warm-up, then half a cosine to `eta_min`, which step `total_steps` would be the first to use.

    PyTorch's `SequentialLR([LinearLR, CosineAnnealingLR], [warmup_steps])` in closed form (its own recursion drifts).
    """
    if step < warmup_steps:
        return constant(step, peak_lr, warmup_steps, warmup_start)
    fraction = (step - warmup_steps) / (total_steps - warmup_steps)
    return eta_min + (peak_lr - eta_min) * (1 + math.cos(math.pi * fraction)) / 2


def warm_restarts(step: int, peak_lr: float, t_0: int, t_mult: int = 1, eta_min: float = 0.0) -> float:
    """Cosine from `peak_lr` towards `eta_min` in cycles of t_0, t_0 * t_mult, t_0 * t_mult**2, ... steps (SGDR, 2017).

    PyTorch's `CosineAnnealingWarmRestarts`. The cycle is found in integers: a logarithm, as in PyTorch's `step(epoch)`,
    can land on the wrong side of a restart (T_0 = 1, T_mult = 3, epoch 121 gives a rate of 0 there).
    """
    length = t_0
    if t_mult == 1:
        step %= t_0
    while step >= length:
        step -= length
        length *= t_mult
    return eta_min + (peak_lr - eta_min) * (1 + math.cos(math.pi * step / length)) / 2


def step_decay(
    step: int,
    peak_lr: float,
    milestones: Sequence[int],
    gamma: float = 0.1,
    warmup_steps: int = 0,
    warmup_start: float = 0.0,
) -> float:
    """Linear warm-up, and times `gamma` at every milestone; both counted from the start of the run.

    PyTorch's `ChainedScheduler([LinearLR, MultiStepLR])` (its `SequentialLR` would count milestones from the warm-up's
    end).
    """
    return constant(step, peak_lr, warmup_steps, warmup_start) * gamma ** bisect_right(milestones, step)


def triangular(
    step: int,
    total_steps: int,
    peak_lr: float,
    pct_start: float = 0.3,
    start_factor: float = 0.0,
    end_factor: float = 0.0,
) -> float:
    """Straight lines start_factor -> 1 -> end_factor, times `peak_lr`; the peak is at int(pct_start * total_steps).

    The schedule of airbench94. `end_factor` belongs to step `total_steps`, one after the last update; with `pct_start`
    = 0 it is a linear decay from the peak.
    """
    peak_step = int(pct_start * total_steps)
    if step < peak_step:
        return peak_lr * (start_factor + (1 - start_factor) * step / peak_step)
    return peak_lr * (1 + (end_factor - 1) * (step - peak_step) / max(total_steps - peak_step, 1))


def onecycle(
    step: int,
    total_steps: int,
    max_lr: float,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    anneal: Anneal = "cos",
    three_phase: bool = False,
) -> float:
    """Rate of PyTorch's `OneCycleLR`: max_lr / div_factor -> max_lr -> max_lr / div_factor / final_div_factor.

    The last update uses exactly the final rate. The peak lies at the possibly fractional step pct_start * total_steps
    - 1, so that no update need use `max_lr` itself.
    """
    first = max_lr / div_factor
    return _one_cycle(step, total_steps, (first, max_lr, first / final_div_factor), pct_start, anneal, three_phase)


def onecycle_momentum(
    step: int,
    total_steps: int,
    base_momentum: float = 0.85,
    max_momentum: float = 0.95,
    pct_start: float = 0.3,
    anneal: Anneal = "cos",
    three_phase: bool = False,
) -> float:
    """Momentum (b1 for Adam) of PyTorch's `OneCycleLR`: max_momentum at both ends, base_momentum at the peak rate."""
    values = (max_momentum, base_momentum, max_momentum)
    return _one_cycle(step, total_steps, values, pct_start, anneal, three_phase)


def _one_cycle(
    step: int,
    total_steps: int,
    values: tuple[float, float, float],
    pct_start: float,
    anneal: Anneal,
    three_phase: bool,
) -> float:
    first, peak, last = values
    rise = pct_start * total_steps - 1
    if three_phase:
        phases = [(rise, first, peak), (2 * pct_start * total_steps - 2, peak, first), (total_steps - 1, first, last)]
    else:
        phases = [(rise, first, peak), (total_steps - 1, peak, last)]
    begin = 0.0
    for end, before, after in phases[:-1]:
        # A phase of no length (pct_start * total_steps = 1), at which PyTorch divides by zero, is left out.
        if begin < end and step <= end:
            return _interpolate(before, after, (step - begin) / (end - begin), anneal)
        begin = end
    end, before, after = phases[-1]
    return _interpolate(before, after, (step - begin) / (end - begin), anneal)


def _interpolate(before: float, after: float, fraction: float, anneal: Anneal) -> float:
    if anneal == "cos":
        return after + (before - after) / 2.0 * (math.cos(math.pi * fraction) + 1)
    return (after - before) * fraction + before


def make_schedule(
    config: ScheduleConfig, peak_lr: float, total_steps: int, steps_per_epoch: float, momentum: float
) -> Tables:
    """Tabulate the learning rate and the momentum of a run of `total_steps` updates.

    Lengths are rounded to whole steps, so a cycle or a milestone always starts with an update. `momentum` is used
    throughout, except by OneCycle with `cycle_momentum`. Raises `ConfigError` where a length does not fit the run, or a
    schedule of one's own gives no finite share of at least 0.
    """
    check(total_steps >= 1, "total_steps", total_steps, "a run has at least one update")
    check(peak_lr > 0, "optim.lr", peak_lr, "it must be greater than 0")
    rate = _rate(config, peak_lr, total_steps, steps_per_epoch)
    lr = _tabulate(rate, total_steps)
    if config.name == "onecycle" and config.cycle_momentum:
        shape = (config.base_momentum, config.max_momentum, config.pct_start, config.anneal, config.three_phase)
        return Tables(lr, _tabulate(lambda step: onecycle_momentum(step, total_steps, *shape), total_steps))
    return Tables(lr, np.full(total_steps, momentum, dtype=np.float64))


def _tabulate(function: Callable[[int], float], total_steps: int) -> np.ndarray:
    # Value by value into the array: a list of as many Python numbers takes five times its memory.
    return np.fromiter(map(function, range(total_steps)), np.float64, total_steps)


def _rate(config: ScheduleConfig, peak: float, total: int, steps_per_epoch: float) -> Callable[[int], float]:
    c = config
    warmup = (_warmup_steps(c, total, steps_per_epoch), c.warmup_start)
    match c.name:
        case "constant":
            return lambda step: constant(step, peak, *warmup)
        case "cosine":
            _check_eta_min(c, peak)
            return lambda step: cosine(step, total, peak, c.eta_min, *warmup)
        case "step":
            milestones = _milestones(c, total, steps_per_epoch)
            return lambda step: step_decay(step, peak, milestones, c.gamma, *warmup)
        case "warm_restarts":
            _check_eta_min(c, peak)
            t_0 = _in_steps(c.t_0, c, total, steps_per_epoch)
            check(t_0 >= 1, "schedule.t_0", c.t_0, f"the first cycle has no step ({steps_per_epoch:g} steps per epoch)")
            return lambda step: warm_restarts(step, peak, t_0, c.t_mult, c.eta_min)
        case "triangular":
            return lambda step: triangular(step, total, peak, c.pct_start, c.start_factor, c.end_factor)
        case "onecycle":
            fits = not c.three_phase or c.pct_start <= 0.5
            check(fits, "schedule.pct_start", c.pct_start, "with three_phase it must be at most 0.5")
            shape = (c.pct_start, c.div_factor, c.final_div_factor, c.anneal, c.three_phase)
            return lambda step: onecycle(step, total, peak, *shape)
        case function:
            return lambda step: peak * _own_share(function, step, total)


def _own_share(function: Callable[[int, int], float], step: int, total: int) -> float:
    name = getattr(function, "__name__", type(function).__name__)
    expected = "it is called as (step, total_steps) and must return a share of optim.lr, a finite number of at least 0"
    try:
        share = float(function(step, total))
    except Exception as error:
        raise ConfigError(f"schedule.name = {name} failed at step {step}: {in_one_line(error)}; {expected}.") from error
    if not (math.isfinite(share) and share >= 0):
        raise ConfigError(f"schedule.name = {name} gave {share} at step {step} of {total}: {expected}.")
    return share


def _in_steps(length: float, config: ScheduleConfig, total: int, steps_per_epoch: float) -> int:
    # Beyond the run it makes no difference how long it is, but to the message that shows it.
    unit = {"epochs": steps_per_epoch, "steps": 1, "run": total}[config.unit]
    return math.floor(min(length * unit, 2.0 * total) + 0.5)


def _warmup_steps(config: ScheduleConfig, total: int, steps_per_epoch: float) -> int:
    steps = _in_steps(config.warmup, config, total, steps_per_epoch)
    if config.unit == "run":
        return min(steps, total - 1)
    per_epoch = f", {steps_per_epoch:g} an epoch" if config.unit == "epochs" else ""
    expected = f"it must be shorter than the run of {total:,} steps{per_epoch}; as a share of it: --schedule.unit run"
    check(steps < total, "schedule.warmup", config.warmup, expected)
    return steps


def _milestones(config: ScheduleConfig, total: int, steps_per_epoch: float) -> list[int]:
    steps = [_in_steps(milestone, config, total, steps_per_epoch) for milestone in config.milestones]
    expected = f"in steps they are {steps}, and each must lie inside the run of {total} steps"
    check(all(0 < step < total for step in steps), "schedule.milestones", config.milestones, expected)
    return steps


def _check_eta_min(config: ScheduleConfig, peak: float) -> None:
    check(config.eta_min <= peak, "schedule.eta_min", config.eta_min, f"it must be at most optim.lr = {peak}")
