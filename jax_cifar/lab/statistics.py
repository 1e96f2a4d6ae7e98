"""What a few runs say about an experiment: intervals of means and of differences by Student's t, and how many it takes.

The test is two-sided. Seeds that both experiments have are compared in pairs; otherwise the spreads of the two need not
be the same (Welch, The generalization of Student's problem, Biometrika 34, 1947).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

MOST_RUNS = 100_000


@dataclass(frozen=True)
class Interval:
    """The mean of n values, and where the mean of all that could come lies; of one value nothing is known of that."""

    mean: float
    low: float  # NaN for one value, as are the others
    high: float
    sd: float  # of the sample
    n: int


@dataclass(frozen=True)
class Difference:
    """The mean of these minus that of those."""

    difference: float
    low: float
    high: float
    p: float  # of a difference at least so large, either way, between experiments that are the same
    df: float  # degrees of freedom
    sd: float  # of the differences of the pairs; not paired: root mean square of the two
    paired: bool
    level: float

    @property
    def known(self) -> bool:
        """Whether the values spread at all, or are the same: without a spread a difference has no interval."""
        return not math.isnan(self.p)

    @property
    def decided(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.p < 1 - self.level


def interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """The mean, with its interval of confidence; raises `ValueError` where there are no values."""
    n, mean, sd = len(values), fmean(values), _sd(values)
    half = _quantile(n - 1, level) * sd / math.sqrt(n) if n > 1 else math.nan
    return Interval(mean, mean - half, mean + half, sd, n)


def difference(these: Sequence[float], those: Sequence[float], level: float = 0.95, paired: bool = False) -> Difference:
    """How far the mean of these lies from that of those, and how sure that is.

    Values that do not spread give an interval only where they are all the same: then p is 1, and otherwise NaN, as are
    the ends of the interval.

    Args:
        these: at least two values, in any unit.
        those: the same; where `paired`, as many, the i-th with the same seed as the i-th of these.
        level: the share of intervals that hold the true difference.

    Raises:
        ValueError: too few values, or pairs that are none.
    """
    if min(len(these), len(those)) < 2:
        raise ValueError(f"{len(these)} and {len(those)} values: a difference has an interval from 2 on each side on.")
    if paired:
        gaps = [one - other for one, other in zip(these, those, strict=True)]
        sd, df = _sd(gaps), len(gaps) - 1.0
        error = sd / math.sqrt(len(gaps))
    else:
        shares = [_sd(values) ** 2 / len(values) for values in (these, those)]
        error = math.sqrt(sum(shares))
        sd = math.sqrt((_sd(these) ** 2 + _sd(those) ** 2) / 2)
        df = error and error**4 / sum(v**2 / (len(x) - 1) for v, x in zip(shares, (these, those), strict=True))
    gap = fmean(these) - fmean(those)
    return Difference(gap, *_judge(gap, error, df, level), df, sd, paired, level)


def _judge(gap: float, error: float, df: float, level: float) -> tuple[float, float, float]:
    """Both ends of the interval, and p."""
    from scipy.special import stdtr

    if error <= 1e-12 * abs(gap) or error == 0:
        return (gap, gap, 1.0) if gap == 0 else (math.nan, math.nan, math.nan)
    half = _quantile(df, level) * error
    return gap - half, gap + half, 2 * float(stdtr(df, -abs(gap) / error))


def power(n: int, sd: float, difference: float, level: float = 0.95, paired: bool = False) -> float:
    """How often n runs of each experiment decide for the right side, where the true difference is this.

    By the noncentral t distribution (Cohen, Statistical power analysis for the behavioral sciences, 1988, chapter 2).
    """
    from scipy.special import nctdtr

    df, error = (n - 1, sd / math.sqrt(n)) if paired else (2 * n - 2, sd * math.sqrt(2 / n))
    return 1 - float(nctdtr(df, min(abs(difference) / error, 1e3), _quantile(df, level)))


def runs_needed(
    sd: float, difference: float, level: float = 0.95, power: float = 0.8, paired: bool = False
) -> int | None:
    """So many runs of each experiment decide, with this power, where the true difference is this.

    Args:
        sd: of the runs of one experiment; where `paired`, of the differences of pairs.
        difference: in the unit of `sd`, of either sign.
        level: of the interval that is to leave zero out.
        power: the share of such comparisons that decide.
        paired: both experiments have the same seeds.

    Returns:
        At least 2; None where it would take more than `MOST_RUNS`.
    """
    few, many = 1, 2
    while not _reaches(many, sd, difference, level, power, paired):
        few, many = many, 2 * many
        if few > MOST_RUNS:
            return None
    while many - few > 1:
        middle = (few + many) // 2
        enough = _reaches(middle, sd, difference, level, power, paired)
        few, many = (few, middle) if enough else (middle, many)
    return many if many <= MOST_RUNS else None


def _reaches(n: int, sd: float, gap: float, level: float, share: float, paired: bool) -> bool:
    return sd == 0 or (gap != 0 and power(n, sd, gap, level, paired) >= share)


def _quantile(df: float, level: float) -> float:
    """What Student's t stays within, either way, with this probability."""
    from scipy.special import stdtrit

    return float(stdtrit(df, (1 + level) / 2))


def _sd(values: Sequence[float]) -> float:
    if len(values) < 2:
        return math.nan
    mean = fmean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
