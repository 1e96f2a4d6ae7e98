"""A resumed run is the same bit for bit, whatever it trains with and wherever it stopped; see `resume_matrix`."""

import pytest
from resume_matrix import CASES, EXTRAS, FORGETTABLE, RULES, SCHEDULES, Case, forgetting, run_matrix

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_a_run_resumed_from_any_kind_of_moment_is_the_same_bit_for_bit(case):
    assert run_matrix([case]) == (4, 4, [])


def test_every_extra_meets_every_schedule_and_every_rule():
    for names, position in ((SCHEDULES, 0), (RULES, 1)):
        assert {(case[position], case.extra) for case in CASES} == {(one, two) for one in names for two in EXTRAS}


@pytest.mark.parametrize("forgotten", FORGETTABLE)
def test_the_matrix_notices_a_resume_that_forgets_something(forgotten):
    with forgetting(forgotten):
        result = run_matrix([Case("cosine", "sgd", "ema")], ["mid-epoch"])
    assert (result.rounds, result.survived) == (1, 0) and result.lost == ["cosine/sgd/ema at mid-epoch"]
