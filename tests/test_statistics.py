"""What few runs say: against published figures, and by simulating what the intervals, p and counts promise."""

import math

import numpy as np
import pytest

from jax_cifar.lab.statistics import Difference, difference, interval, power, runs_needed

# Cushny and Peebles 1905, as Student 1908 used them: hours of sleep that two drugs gained the same ten patients.
FIRST = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SECOND = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


def figures(found: Difference) -> tuple[float, ...]:
    return found.difference, found.low, found.high, found.p, found.df


def test_the_textbook_example_comes_out_as_published():
    # What R's t.test says of its data set `sleep`, not paired and paired.
    assert figures(difference(FIRST, SECOND)) == pytest.approx(
        (-1.58, -3.3654832, 0.2054832, 0.07939, 17.776), rel=1e-4
    )
    paired = (-1.58, -2.4598858, -0.7001142, 0.002833, 9)
    assert figures(difference(FIRST, SECOND, paired=True)) == pytest.approx(paired, rel=2e-4)
    assert difference(SECOND, FIRST, paired=True).p == difference(FIRST, SECOND, paired=True).p
    one = interval(FIRST)
    assert (one.mean, one.low, one.high, one.sd, one.n) == pytest.approx(
        (0.75, -0.5297804, 2.02978, 1.78901, 10), rel=1e-4
    )
    wide, narrow = difference(FIRST, SECOND, 0.99), difference(FIRST, SECOND, 0.5)
    assert wide.low < narrow.low < narrow.high < wide.high


def alarms(draw, count: int, paired: bool) -> float:
    """The share of comparisons that decide, of as many as are drawn."""
    pairs = (draw() for _ in range(count))
    return float(np.mean([difference(list(one), list(other), paired=paired).decided for one, other in pairs]))


@pytest.mark.parametrize(
    ("n", "sds", "shared", "paired"),
    [
        ((5, 5), (1.0, 1.0), 0.0, False),
        ((20, 5), (0.3, 1.5), 0.0, False),  # pooled, these would be taken for different every third time
        ((5, 5), (0.5, 0.5), 2.0, True),  # what a seed does to both: not paired, none would ever be taken so
    ],
)
def test_an_experiment_against_itself_is_taken_for_another_one_time_in_twenty(n, sds, shared, paired):
    generator = np.random.default_rng(7)

    def draw():
        seeds = shared * generator.normal(size=max(n))
        return [seeds[:size] + sd * generator.normal(size=size) for size, sd in zip(n, sds, strict=True)]

    assert alarms(draw, 4000, paired) == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("paired", [False, True])
def test_a_difference_is_found_as_often_as_predicted(paired):
    generator = np.random.default_rng(1)
    needed = runs_needed(sd=0.25, difference=0.3, paired=paired)
    assert needed is not None
    # Of pairs it is the differences that spread by 0.25.
    sd = 0.25 / math.sqrt(2) if paired else 0.25
    assert power(needed, 0.25, 0.3, paired=paired) >= 0.8 > power(needed - 1, 0.25, 0.3, paired=paired)
    for n in (needed, 8):
        found = alarms(lambda n=n: (sd * generator.normal(size=n) + 0.3, sd * generator.normal(size=n)), 2000, paired)
        assert found == pytest.approx(power(n, 0.25, 0.3, paired=paired), abs=0.025)


def test_the_runs_needed_are_those_of_tables_of_power():
    # Cohen 1988, table 2.4.1: d = 0.5 and 0.8 need 64 and 26 of each; pairs as G*Power has them, 34 and 15.
    assert [runs_needed(1, d) for d in (0.5, -0.8)] == [64, 26]
    assert [runs_needed(1, d, paired=True) for d in (0.5, 0.8)] == [34, 15]
    assert (runs_needed(0.0, 0.1), runs_needed(1, 1e-9), runs_needed(1, 0.0), runs_needed(1, 1e9)) == (2, None, None, 2)


def test_without_a_spread_only_what_is_the_same_is_known_to_be():
    for paired in (False, True):
        same, other = (
            difference([0.7, 0.7], [0.7, 0.7], paired=paired),
            difference([0.7, 0.7], [0.71, 0.71], paired=paired),
        )
        assert (same.known, same.decided, same.p, same.low, same.high) == (True, False, 1.0, 0.0, 0.0)
        assert (other.known, other.decided, math.isnan(other.low)) == (False, False, True)
    # The same bits for each seed, though seeds differ; and floats that were not quite the same.
    assert difference([0.7, 0.8], [0.7, 0.8], paired=True).p == 1.0
    assert not difference([0.1 + 0.2, 0.4], [0.2, 0.3], paired=True).known


def test_a_single_value_has_no_interval():
    one = interval([0.5])
    assert (one.mean, one.n, math.isnan(one.low), math.isnan(one.sd)) == (0.5, 1, True, True)
    with pytest.raises(ValueError, match="1 and 3 values"):
        difference([0.5], [0.1, 0.2, 0.3])
