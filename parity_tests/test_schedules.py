"""Schedules against PyTorch's schedulers, at every step of a run."""

from bisect import bisect_right
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from jax_cifar import schedules
from jax_cifar.config import ScheduleConfig
from jax_cifar.schedules import make_schedule

settings.register_profile("schedules", max_examples=30, derandomize=True, deadline=None)
FEW = settings.get_profile("schedules")
peaks = st.floats(1e-3, 10)


def of_torch(build: Callable, total: int, lr: float, adam: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Rate and momentum that each of `total` updates uses."""
    weights = [torch.zeros(1)]
    optimizer = torch.optim.Adam(weights, lr) if adam else torch.optim.SGD(weights, lr, momentum=0.9)
    scheduler = build(optimizer)
    rates, momenta = [], []
    for _ in range(total):
        group = optimizer.param_groups[0]
        rates.append(group["lr"])
        momenta.append(group["betas"][0] if adam else group["momentum"])
        optimizer.step()
        scheduler.step()
    return np.array(rates), np.array(momenta)


def tables(total: int, peak: float, **fields) -> schedules.Tables:
    return make_schedule(ScheduleConfig(unit="steps", **fields), peak, total, steps_per_epoch=10.0, momentum=0.9)


@FEW
@given(
    total=st.integers(1, 150),
    peak=peaks,
    pct=st.floats(0.01, 0.99),
    div=st.floats(1, 100),
    final=st.floats(1, 1e5),
    anneal=st.sampled_from(["cos", "linear"]),
    three=st.booleans(),
    adam=st.booleans(),
)
def test_onecycle_and_its_momentum_are_torchs_to_the_last_bit(total, peak, pct, div, final, anneal, three, adam):
    pct = pct / 2 if three else pct
    assume(pct * total != 1)  # PyTorch divides by zero there
    shape = {"pct_start": pct, "div_factor": div, "final_div_factor": final, "three_phase": three}
    ours = tables(total, peak, name="onecycle", anneal=anneal, **shape)

    def build(optimizer):
        return lr_scheduler.OneCycleLR(optimizer, peak, total_steps=total, anneal_strategy=anneal, **shape)

    rates, momenta = of_torch(build, total, peak, adam)
    np.testing.assert_array_equal(ours.lr, rates)
    np.testing.assert_array_equal(ours.momentum, momenta)


@pytest.mark.parametrize("total", [37, 100, 1000])
def test_optax_onecycle_is_told_apart(total):
    rates, _ = of_torch(lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=total), total, 1.0)
    cosine = optax.cosine_onecycle_schedule(total, 1.0, 0.3, 25, 1e4)
    linear = optax.linear_onecycle_schedule(total, 1.0, 0.3, 0.85, 25, 1e4)
    for wrong in (cosine, linear):
        with jax.numpy_dtype_promotion("standard"):
            values = np.asarray(jax.vmap(wrong)(jnp.arange(total)))
        assert np.max(np.abs(values - rates)) > 1e-3


@FEW
@given(total=st.integers(2, 150), peak=peaks, data=st.data(), start=st.floats(0.01, 1), lowest=st.floats(0, 1))
def test_warmup_and_cosine(total, peak, data, start, lowest):
    warmup = data.draw(st.integers(1, total - 1))
    eta_min = lowest * peak
    ours = tables(total, peak, name="cosine", warmup=warmup, warmup_start=start, eta_min=eta_min).lr

    def build(optimizer):
        rise = lr_scheduler.LinearLR(optimizer, start, total_iters=warmup)
        fall = lr_scheduler.CosineAnnealingLR(optimizer, total - warmup, eta_min)
        return lr_scheduler.SequentialLR(optimizer, [rise, fall], [warmup])

    rates, _ = of_torch(build, total, peak)
    # PyTorch's own recursion loses digits on the way down; its closed form is the last line's.
    np.testing.assert_allclose(ours, rates, rtol=0, atol=1e-10 * peak)
    later = np.arange(total - warmup)
    closed = eta_min + (peak - eta_min) * (1 + np.cos(np.pi * later / (total - warmup))) / 2
    np.testing.assert_allclose(ours[warmup:], closed, rtol=0, atol=1e-15 * peak)


def test_cosine_over_one_step_more_or_less_is_told_apart():
    rates, _ = of_torch(lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 50), 50, 1.0)
    for length in (49, 51):
        wrong = np.array([schedules.cosine(step, length, 1.0) for step in range(50)])
        assert np.max(np.abs(wrong - rates)) > 1e-2


@FEW
@given(total=st.integers(1, 300), peak=peaks, t_0=st.integers(1, 20), t_mult=st.integers(1, 4), lowest=st.floats(0, 1))
def test_warm_restarts_are_torchs_to_the_last_bit(total, peak, t_0, t_mult, lowest):
    eta_min = lowest * peak
    ours = tables(total, peak, name="warm_restarts", t_0=t_0, t_mult=t_mult, eta_min=eta_min).lr

    def build(optimizer):
        return lr_scheduler.CosineAnnealingWarmRestarts(optimizer, t_0, t_mult, eta_min)

    np.testing.assert_array_equal(ours, of_torch(build, total, peak)[0])


@pytest.mark.parametrize(("t_0", "boundary"), [(1, 121), (5, 605), (10, 1210)])
def test_a_restart_that_torchs_logarithm_misses(t_0, boundary):
    def build(optimizer):
        return lr_scheduler.CosineAnnealingWarmRestarts(optimizer, t_0, 3)

    assert schedules.warm_restarts(boundary, 1.0, t_0, 3) == 1.0
    assert of_torch(build, boundary + 1, 1.0)[0][-1] == 1.0
    optimizer = torch.optim.SGD([torch.zeros(1)], 1.0)
    scheduler = build(optimizer)
    optimizer.step()
    scheduler.step(boundary)
    assert optimizer.param_groups[0]["lr"] != 1.0


@FEW
@given(
    total=st.integers(2, 150),
    peak=peaks,
    data=st.data(),
    gamma=st.floats(0.05, 1),
    start=st.floats(0.01, 1),
)
def test_step_decay_with_warmup(total, peak, data, gamma, start):
    milestones = tuple(sorted(data.draw(st.sets(st.integers(1, total - 1), max_size=4))))
    warmup = data.draw(st.integers(0, total - 1))
    fields = {"milestones": milestones, "gamma": gamma, "warmup": warmup, "warmup_start": start}
    ours = tables(total, peak, name="step", **fields).lr

    def build(optimizer):
        decay = lr_scheduler.MultiStepLR(optimizer, list(milestones), gamma)
        if warmup == 0:
            return decay
        return lr_scheduler.ChainedScheduler([lr_scheduler.LinearLR(optimizer, start, total_iters=warmup), decay])

    rates, _ = of_torch(build, total, peak)
    np.testing.assert_allclose(ours, rates, rtol=1e-12, atol=0)
    late = [peak * gamma ** bisect_right(milestones, step - 1) for step in range(total)]
    if warmup == 0 and milestones and gamma < 0.9:
        assert not np.allclose(late, rates, rtol=1e-3, atol=0)


@FEW
@given(total=st.integers(2, 150), peak=peaks, data=st.data(), start=st.floats(0.01, 1))
def test_constant_with_warmup(total, peak, data, start):
    warmup = data.draw(st.integers(1, total - 1))
    ours = tables(total, peak, name="constant", warmup=warmup, warmup_start=start).lr
    rates, _ = of_torch(lambda opt: lr_scheduler.LinearLR(opt, start, total_iters=warmup), total, peak)
    np.testing.assert_allclose(ours, rates, rtol=1e-12, atol=0)


@FEW
@given(total=st.integers(2, 150), peak=peaks, pct=st.floats(0, 1), start=st.floats(0, 1), end=st.floats(0, 1))
def test_triangular_is_airbenchs_interpolation(total, peak, pct, start, end):
    ours = tables(total, peak, name="triangular", pct_start=pct, start_factor=start, end_factor=end).lr
    top = int(pct * total)
    corners = ([top, total], [1, end]) if top == 0 else ([0, top, total], [start, 1, end])

    def build(optimizer):
        return lr_scheduler.LambdaLR(optimizer, lambda step: float(np.interp(step, *corners)))

    np.testing.assert_allclose(ours, of_torch(build, total, peak)[0], rtol=0, atol=1e-14 * peak)
