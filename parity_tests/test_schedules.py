"""Schedules against PyTorch's schedulers, as `torch_ref` builds them, at every step of a run."""

import dataclasses
from bisect import bisect_right
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tolerances import agree, assert_close

from jax_cifar.config import ScheduleConfig
from jax_cifar.errors import ConfigError
from jax_cifar.optim import schedules
from jax_cifar.optim.schedules import make_schedule
from torch_ref.schedules import make_scheduler

settings.register_profile("schedules", max_examples=30, derandomize=True, deadline=None)
FEW = settings.get_profile("schedules")
PER_EPOCH = 10
peaks = st.floats(1e-3, 10)
shares = st.just(0.0) | st.floats(1e-30, 1)
starts = st.just(0.0) | st.floats(0.01, 1)


def in_steps(name, **fields) -> ScheduleConfig:
    return ScheduleConfig(name=name, unit="steps", **fields)


def of_torch(config: ScheduleConfig, total: int, lr: float, adam: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Rate and momentum that each of `total` updates uses."""
    weights = [torch.zeros(1)]
    optimizer = torch.optim.Adam(weights, lr) if adam else torch.optim.SGD(weights, lr, momentum=0.9)
    scheduler = make_scheduler(config, optimizer, total, PER_EPOCH)
    rates, momenta = [], []
    for _ in range(total):
        group = optimizer.param_groups[0]
        rates.append(group["lr"])
        momenta.append(group["betas"][0] if adam else group["momentum"])
        optimizer.step()
        scheduler.step()
    return np.array(rates), np.array(momenta)


def tables(config: ScheduleConfig, total: int, peak: float) -> schedules.Tables:
    return make_schedule(config, peak, total, PER_EPOCH, momentum=0.9)


@FEW
@given(total=st.integers(1, 150), share=st.just(0.0) | st.floats(1e-30, 0.999), start=starts)
def test_a_warmup_that_is_a_share_of_the_run(total, share, start):
    config = ScheduleConfig(name="cosine", unit="run", warmup=share, warmup_start=start)
    assert_close(tables(config, total, 0.1).lr, of_torch(config, total, 0.1)[0], "schedule")


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
    shape = {"pct_start": pct, "div_factor": div, "final_div_factor": final, "anneal": anneal, "three_phase": three}
    config = in_steps("onecycle", **shape)
    ours, (rates, momenta) = tables(config, total, peak), of_torch(config, total, peak, adam)
    assert_close(ours.lr, rates, "exact")
    assert_close(ours.momentum, momenta, "exact")


def test_onecycle_where_torch_divides_by_zero():
    config = in_steps("onecycle", pct_start=0.5)
    assert np.isfinite(tables(config, 2, 1.0).lr).all()
    with pytest.raises(ConfigError, match=r"schedule\.pct_start = 0\.5 is not allowed: OneCycleLR fails"):
        of_torch(config, 2, 1.0)


@pytest.mark.parametrize("total", [37, 100, 1000])
def test_optax_onecycle_is_told_apart(total):
    rates, _ = of_torch(in_steps("onecycle"), total, 1.0)
    cosine = optax.cosine_onecycle_schedule(total, 1.0, 0.3, 25, 1e4)
    linear = optax.linear_onecycle_schedule(total, 1.0, 0.3, 0.85, 25, 1e4)
    for wrong in (cosine, linear):
        with jax.numpy_dtype_promotion("standard"):
            values = np.asarray(jax.jit(jax.vmap(wrong))(jnp.arange(total)))
        assert np.max(np.abs(values - rates)) > 1e-3


@FEW
@given(total=st.integers(2, 150), peak=peaks, data=st.data(), start=starts, lowest=shares)
def test_warmup_and_cosine(total, peak, data, start, lowest):
    warmup = data.draw(st.integers(1, total - 1))
    eta_min = lowest * peak
    config = in_steps("cosine", warmup=warmup, warmup_start=start, eta_min=eta_min)
    ours = tables(config, total, peak).lr
    # PyTorch's own recursion loses digits on the way down; its closed form is the last line's.
    assert_close(ours, of_torch(config, total, peak)[0], "schedule")
    later = np.arange(total - warmup)
    closed = eta_min + (peak - eta_min) * (1 + np.cos(np.pi * later / (total - warmup))) / 2
    assert_close(ours[warmup:] / peak, closed / peak, "float64 operation")


def test_cosine_over_one_step_more_or_less_is_told_apart():
    rates, _ = of_torch(in_steps("cosine"), 50, 1.0)
    for length in (49, 51):
        wrong = np.array([schedules.cosine(step, length, 1.0) for step in range(50)])
        assert np.max(np.abs(wrong - rates)) > 1e-2


@FEW
@given(total=st.integers(1, 300), peak=peaks, t_0=st.integers(1, 20), t_mult=st.integers(1, 4), lowest=shares)
def test_warm_restarts_are_torchs_to_the_last_bit(total, peak, t_0, t_mult, lowest):
    config = in_steps("warm_restarts", t_0=t_0, t_mult=t_mult, eta_min=lowest * peak)
    assert_close(tables(config, total, peak).lr, of_torch(config, total, peak)[0], "exact")


@pytest.mark.parametrize(("t_0", "boundary"), [(1, 121), (5, 605), (10, 1210)])
def test_a_restart_that_torchs_logarithm_misses(t_0, boundary):
    config = in_steps("warm_restarts", t_0=t_0, t_mult=3)
    assert schedules.warm_restarts(boundary, 1.0, t_0, 3) == 1.0
    assert of_torch(config, boundary + 1, 1.0)[0][-1] == 1.0
    optimizer = torch.optim.SGD([torch.zeros(1)], 1.0)
    scheduler = make_scheduler(config, optimizer, boundary + 1, PER_EPOCH)
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
    milestones = tuple(map(float, sorted(data.draw(st.sets(st.integers(1, total - 1), max_size=4)))))
    warmup = data.draw(st.integers(0, total - 1))
    config = in_steps("step", milestones=milestones, gamma=gamma, warmup=warmup, warmup_start=start)
    ours, (rates, _) = tables(config, total, peak).lr, of_torch(config, total, peak)
    # As a ratio, so that the low rates of the end count as much as the high ones.
    assert_close(ours / rates, np.ones(total), "float64 operation")
    late = [peak * gamma ** bisect_right(milestones, step - 1) for step in range(total)]
    if warmup == 0 and milestones and gamma < 0.9:
        assert not np.allclose(late, rates, rtol=1e-3, atol=0)


@FEW
@given(total=st.integers(2, 150), peak=peaks, data=st.data(), start=starts)
def test_constant_with_warmup(total, peak, data, start):
    config = in_steps("constant", warmup=data.draw(st.integers(0, total - 1)), warmup_start=start)
    assert_close(tables(config, total, peak).lr / peak, of_torch(config, total, peak)[0] / peak, "float64 operation")


@FEW
@given(total=st.integers(2, 150), peak=peaks, pct=shares, start=shares, end=shares)
def test_triangular_is_airbenchs_interpolation(total, peak, pct, start, end):
    config = in_steps("triangular", pct_start=pct, start_factor=start, end_factor=end)
    assert_close(tables(config, total, peak).lr / peak, of_torch(config, total, peak)[0] / peak, "float64 operation")


def test_a_schedule_of_ones_own_is_the_same_in_both():
    config = in_steps(lambda step, total_steps: (1 - step / total_steps) ** 2)
    assert_close(tables(config, 20, 0.3).lr, of_torch(config, 20, 0.3)[0], "float64 operation")
    other = in_steps(lambda step, total_steps: (1 - step / total_steps) ** 1.9)
    assert not agree(tables(other, 20, 0.3).lr, of_torch(config, 20, 0.3)[0], "float64 operation")


@pytest.mark.parametrize(
    "config",
    [
        ScheduleConfig(name="step", warmup=0.37, warmup_start=0.1, milestones=(1.14, 1.26, 2.15)),
        ScheduleConfig(name="cosine", warmup=0.75),
        ScheduleConfig(name="warm_restarts", t_0=0.66),
    ],
    ids=lambda config: config.name,
)
def test_lengths_in_epochs_are_rounded_alike(config):
    ours = tables(config, 30, 1.0).lr
    assert_close(ours, of_torch(config, 30, 1.0)[0], "schedule")
    lengths: dict[str, Any] = {"milestones": tuple(milestone * PER_EPOCH // 1 for milestone in config.milestones)}
    read = "t_0" if config.name == "warm_restarts" else "warmup"
    lengths[read] = getattr(config, read) * PER_EPOCH // 1
    down = dataclasses.replace(config, unit="steps", **lengths)
    assert not agree(of_torch(down, 30, 1.0)[0], ours, "schedule")


REFUSED = [
    {"name": "cosine", "warmup": 20},
    {"name": "step", "milestones": (5.0, 20.0)},
    {"name": "warm_restarts", "t_0": 0.4},
    {"name": "onecycle", "pct_start": 0.6, "three_phase": True},
]


@pytest.mark.parametrize("fields", REFUSED, ids=lambda fields: fields["name"])
def test_both_refuse_what_does_not_fit(fields):
    name = list(fields)[1]
    for make in (tables, of_torch):
        make(in_steps(fields["name"]), 20, 1.0)
        with pytest.raises(ConfigError, match=rf"schedule\.{name} = .* is not allowed"):
            make(in_steps(**fields), 20, 1.0)
