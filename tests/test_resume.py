"""A resumed run is the same bit for bit, whatever it trains with and wherever it stopped; see `resume_matrix`."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import pytest
from resume_matrix import CASES, EXTRAS, RULES, SCHEDULES, Case, run_matrix

from jax_cifar.run.checkpoint import Checkpoints

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_a_run_resumed_from_any_kind_of_moment_is_the_same_bit_for_bit(case):
    assert run_matrix([case]) == (4, 4, [])


def test_every_extra_meets_every_schedule_and_every_rule():
    for names, position in ((SCHEDULES, 0), (RULES, 1)):
        assert {(case[position], case.extra) for case in CASES} == {(one, two) for one in names for two in EXTRAS}


@pytest.mark.parametrize("forgotten", ["opt_state", "batch_stats", "ema", "step"])
def test_the_matrix_notices_a_resume_that_forgets_something(monkeypatch, forgotten):
    restore = Checkpoints.restore

    def forgetful(self, template, which: Literal["last", "best"] = "last"):
        restored = restore(self, template, which)
        if restored is None:
            return None
        wrong = getattr(restored.state, forgotten)
        wrong = wrong + 1 if forgotten == "step" else jax.tree.map(jnp.zeros_like, wrong)
        return restored._replace(state=dataclasses.replace(restored.state, **{forgotten: wrong}))

    monkeypatch.setattr(Checkpoints, "restore", forgetful)
    result = run_matrix([Case("cosine", "sgd", "ema")], ["mid-epoch"])
    assert (result.rounds, result.survived) == (1, 0) and result.lost == ["cosine/sgd/ema at mid-epoch"]
