"""Are two sets of figures the same to within a margin? Two one-sided t-tests: not a difference that was not found."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from scipy import stats


class Equivalence(NamedTuple):
    """Difference of two means, and the bounds that it lies within with the confidence asked for."""

    difference: float
    lower: float
    upper: float
    standard_error: float

    def within(self, margin: float) -> bool:
        """Whether the means differ by less than `margin`, either way."""
        return -margin < self.lower and self.upper < margin


def compare_means(first: Sequence[float], second: Sequence[float], level: float = 0.05) -> Equivalence:
    """The mean of `first` minus that of `second`, independent samples, with its (1 - 2 level) confidence interval.

    The interval lies inside the margin exactly when both one-sided tests reject at `level` (Schuirmann 1987). Variances
    may differ (Welch). Raises `statistics.StatisticsError` for fewer than two figures a side.
    """
    squares = [statistics.variance(values) / len(values) for values in (first, second)]
    error = math.sqrt(sum(squares))
    freedom = error**4 / sum(
        square**2 / (len(values) - 1) for square, values in zip(squares, (first, second), strict=True)
    )
    difference = statistics.mean(first) - statistics.mean(second)
    reach = float(stats.t.ppf(1 - level, freedom)) * error
    return Equivalence(difference, difference - reach, difference + reach, error)
