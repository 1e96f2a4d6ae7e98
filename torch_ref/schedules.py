"""The schedules of a configuration as PyTorch's own schedulers, to be stepped after every update."""

import math

import numpy as np
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from jax_cifar.config import ScheduleConfig
from jax_cifar.errors import check


def make_scheduler(
    config: ScheduleConfig, optimizer: Optimizer, total_steps: int, steps_per_epoch: float
) -> LRScheduler:
    """The scheduler of a run of `total_steps` updates; the optimizer's rates are the peaks.

    Lengths in epochs are rounded to whole steps. OneCycle moves the momentum too (b1 for Adam), where there is one.
    Raises `ConfigError` where a length does not fit the run.
    """
    _check(config, total_steps, steps_per_epoch)
    match config.name:
        case "constant" | "cosine" | "step":
            return _with_warmup(config, optimizer, total_steps, steps_per_epoch)
        case "warm_restarts":
            t_0 = _in_steps(config.t_0, config, total_steps, steps_per_epoch)
            return lr_scheduler.CosineAnnealingWarmRestarts(optimizer, t_0, config.t_mult, config.eta_min)
        case "triangular":
            top = int(config.pct_start * total_steps)
            corners = ([0, top, total_steps], [config.start_factor, 1.0, config.end_factor])
            if top == 0:
                corners = ([0, total_steps], [1.0, config.end_factor])
            return lr_scheduler.LambdaLR(optimizer, lambda step: float(np.interp(step, *corners)))
        case "onecycle":
            has_momentum = not optimizer.defaults.keys().isdisjoint(("momentum", "betas"))
            return lr_scheduler.OneCycleLR(
                optimizer,
                max_lr=[group["lr"] for group in optimizer.param_groups],
                total_steps=total_steps,
                pct_start=config.pct_start,
                anneal_strategy=config.anneal,
                cycle_momentum=config.cycle_momentum and has_momentum,
                base_momentum=config.base_momentum,
                max_momentum=config.max_momentum,
                div_factor=config.div_factor,
                final_div_factor=config.final_div_factor,
                three_phase=config.three_phase,
            )
        case own_share:
            # PyTorch asks for one rate more than there are updates.
            return lr_scheduler.LambdaLR(optimizer, lambda step: own_share(min(step, total_steps - 1), total_steps))


def _with_warmup(config: ScheduleConfig, optimizer: Optimizer, total: int, steps_per_epoch: float) -> LRScheduler:
    warmup = _warmup_steps(config, total, steps_per_epoch)
    # LinearLR refuses to start at 0; this is 0 to every digit.
    start = max(config.warmup_start, 1e-30)
    rise = lr_scheduler.LinearLR(optimizer, start, total_iters=warmup) if warmup else None
    if config.name == "constant":
        return rise or lr_scheduler.ConstantLR(optimizer, factor=1.0)
    if config.name == "cosine":
        fall = lr_scheduler.CosineAnnealingLR(optimizer, total - warmup, config.eta_min)
        return lr_scheduler.SequentialLR(optimizer, [rise, fall], [warmup]) if rise else fall
    milestones = [_in_steps(milestone, config, total, steps_per_epoch) for milestone in config.milestones]
    drops = lr_scheduler.MultiStepLR(optimizer, milestones, config.gamma)
    return lr_scheduler.ChainedScheduler([rise, drops]) if rise else drops


def _in_steps(length: float, config: ScheduleConfig, total: int, steps_per_epoch: float) -> int:
    unit = {"epochs": steps_per_epoch, "steps": 1, "run": total}[config.unit]
    return math.floor(min(length * unit, 2 * total) + 0.5)


def _warmup_steps(config: ScheduleConfig, total: int, steps_per_epoch: float) -> int:
    steps = _in_steps(config.warmup, config, total, steps_per_epoch)
    return min(steps, total - 1) if config.unit == "run" else steps


def _check(c: ScheduleConfig, total: int, steps_per_epoch: float) -> None:
    """What `jax_cifar.optim.schedules` refuses, and the one OneCycle at which PyTorch divides by zero."""
    fits = _warmup_steps(c, total, steps_per_epoch) < total
    check(fits, "schedule.warmup", c.warmup, f"it must be shorter than the run of {total} steps")
    if c.name == "step":
        inside = all(0 < _in_steps(milestone, c, total, steps_per_epoch) < total for milestone in c.milestones)
        check(inside, "schedule.milestones", c.milestones, f"each must lie inside the run of {total} steps")
    if c.name == "warm_restarts":
        has_step = _in_steps(c.t_0, c, total, steps_per_epoch) >= 1
        check(has_step, "schedule.t_0", c.t_0, f"the first cycle has no step ({steps_per_epoch:g} steps per epoch)")
    if c.name == "onecycle":
        fits = c.pct_start <= 0.5 or not c.three_phase
        check(fits, "schedule.pct_start", c.pct_start, "with three_phase it must be at most 0.5")
        check(c.pct_start * total != 1, "schedule.pct_start", c.pct_start, f"OneCycleLR fails on it in {total} steps")
