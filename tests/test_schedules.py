"""Schedules: units and guards; parity_tests/test_schedules.py judges the curves by PyTorch's."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_cifar.config import ScheduleConfig
from jax_cifar.errors import ConfigError
from jax_cifar.optim import schedules
from jax_cifar.optim.schedules import make_schedule

NAMES = ("constant", "cosine", "onecycle", "warm_restarts", "step", "triangular")


def tables(total: int = 100, steps_per_epoch: float = 10.0, peak: float = 0.5, **fields) -> schedules.Tables:
    return make_schedule(ScheduleConfig(**fields), peak, total, steps_per_epoch, momentum=0.9)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(name=st.sampled_from(NAMES), total=st.integers(1, 120), peak=st.floats(1e-4, 10))
def test_every_table_has_one_positive_rate_per_step_up_to_the_peak(name, total, peak):
    lr, momentum = tables(total, peak=peak, name=name)
    assert lr.shape == momentum.shape == (total,)
    assert lr.dtype == momentum.dtype == np.float64
    assert np.all((lr >= 0) & (lr <= peak * (1 + 1e-15)))
    assert np.all((momentum >= 0.85) & (momentum <= 0.95))
    assert lr.max() > 0 or name == "triangular"


def test_momentum_moves_only_in_a_onecycle_that_cycles_it():
    for name in NAMES:
        momentum = tables(name=name).momentum
        assert (np.ptp(momentum) > 0) == (name == "onecycle")
    fixed = tables(name="onecycle", cycle_momentum=False).momentum
    np.testing.assert_array_equal(fixed, np.full(100, 0.9))
    cycled = tables(name="onecycle", base_momentum=0.7, max_momentum=0.8).momentum
    assert (cycled[0], cycled[29], cycled[-1]) == (0.8, 0.7, 0.8)


def test_onecycle_whose_first_phase_has_no_length_starts_at_the_peak():
    assert schedules.onecycle(0, 4, 1.0, pct_start=0.25) == 1.0
    assert schedules.onecycle(3, 4, 1.0, pct_start=0.25) == 1 / 25 / 1e4


@pytest.mark.parametrize(
    ("name", "field", "in_epochs", "in_steps"),
    [
        ("cosine", "warmup", 2.04, 20.0),
        ("warm_restarts", "t_0", 1.96, 20.0),
        ("step", "milestones", (3.0, 5.06), (30.0, 51.0)),
    ],
)
def test_epochs_become_whole_steps(name, field, in_epochs, in_steps):
    ours = tables(name=name, **{field: in_epochs}).lr
    np.testing.assert_array_equal(ours, tables(name=name, unit="steps", **{field: in_steps}).lr)
    assert not np.array_equal(ours, tables(name=name, unit="steps", **{field: in_epochs}).lr)


@pytest.mark.parametrize(
    ("name", "field", "shares", "in_steps"),
    [
        ("cosine", "warmup", 1 / 3, 33.0),
        ("warm_restarts", "t_0", 0.496, 50.0),
        ("step", "milestones", (0.3, 0.6), (30.0, 60.0)),
    ],
)
def test_shares_of_the_run_become_whole_steps(name, field, shares, in_steps):
    ours = tables(name=name, unit="run", **{field: shares}).lr
    np.testing.assert_array_equal(ours, tables(name=name, unit="steps", **{field: in_steps}).lr)


@pytest.mark.parametrize("total", [1, 2, 3, 20])
@pytest.mark.parametrize("share", [0.0, 1 / 15, 0.5, 0.999])
def test_a_warmup_that_is_a_share_fits_every_run(total, share):
    lr = tables(total=total, name="cosine", unit="run", warmup=share, warmup_start=0.5).lr
    assert lr.shape == (total,) and lr[-1] <= lr.max() == (0.5 if lr.argmax() < total - 1 or share < 0.5 else lr[-1])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"name": "cosine", "warmup": 10.0},
            ["= 10.0", "100 steps, 10 an epoch", "--schedule.unit run"],
        ),
        ({"name": "cosine", "warmup": 1e38}, ["schedule.warmup = 1e+38", "100 steps"]),
        ({"name": "cosine", "unit": "run", "warmup": 2.0}, ["schedule.warmup = 2.0", "--schedule.unit epochs"]),
        (
            {"name": "step", "unit": "run", "milestones": (0.5, 1.0)},
            ["= (0.5, 1.0)", "share of the run"],
        ),
        ({"name": "warm_restarts", "unit": "run"}, ["schedule.t_0 = 10.0", "share of the run"]),
        ({"name": "onecycle", "warmup": 1.0}, ["schedule.warmup = 1.0", "schedule.name = onecycle"]),
        ({"name": "warm_restarts", "t_0": 0.04}, ["schedule.t_0 = 0.04", "10 steps per epoch"]),
        ({"name": "step", "milestones": (5.0, 10.0)}, ["schedule.milestones = (5.0, 10.0)", "[50, 100]", "100 steps"]),
        ({"name": "step", "milestones": (0.01,)}, ["schedule.milestones = (0.01,)", "[0]"]),
        ({"name": "cosine", "eta_min": 0.6}, ["schedule.eta_min = 0.6", "optim.lr = 0.5"]),
        ({"name": "warm_restarts", "eta_min": 0.6}, ["schedule.eta_min = 0.6", "optim.lr = 0.5"]),
        ({"name": "onecycle", "three_phase": True, "pct_start": 0.6}, ["schedule.pct_start = 0.6", "at most 0.5"]),
    ],
)
def test_what_does_not_fit_the_run_is_refused_with_its_value(fields, words):
    with pytest.raises(ConfigError) as caught:
        tables(**fields)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_schedule_of_ones_own_is_a_share_of_the_peak():
    def sawtooth(step, total_steps):
        return np.float32(step % 4 / 4) if step < total_steps - 1 else 0

    lr, momentum = tables(total=8, name=sawtooth)
    np.testing.assert_array_equal(lr, [0, 0.125, 0.25, 0.375, 0, 0.125, 0.25, 0])
    np.testing.assert_array_equal(momentum, np.full(8, 0.9))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([1.0, -0.1, 1.0], "gave -0.1 at step 1 of 3"),
        ([1.0, 1.0, np.nan], "gave nan at step 2 of 3"),
        ([np.inf, 1.0, 1.0], "gave inf at step 0 of 3"),
        ([1.0, None, 1.0], "failed at step 1: TypeError"),
        ([1.0], "failed at step 1: IndexError"),
    ],
)
def test_a_schedule_of_ones_own_that_gives_no_share_is_refused_with_its_step(values, words):
    def mine(step, total_steps):
        return values[step]

    with pytest.raises(ConfigError, match=rf"^schedule\.name = mine {words}.*\(step, total_steps\)"):
        tables(total=3, name=mine)


def test_a_run_without_updates_is_refused():
    with pytest.raises(ConfigError, match="total_steps = 0"):
        tables(total=0)


def test_schedules_need_no_jax():
    code = "import sys, jax_cifar.optim.schedules; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
