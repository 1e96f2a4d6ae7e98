"""Two experiments side by side: what differs, by how much, how sure that is, and how many more seeds would decide."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jax_cifar.errors import ConfigError, check
from jax_cifar.lab.runs import FinishedRun, experiments
from jax_cifar.lab.statistics import Difference, difference, interval, runs_needed
from jax_cifar.lab.tables import markdown, shown_seeds, shown_value

FEWEST = 5  # seeds of each side to begin with, where nothing is known of their spread


@dataclass(frozen=True)
class Metric:
    """A figure of a run: how to read it and how to show it."""

    name: str
    read: Callable[[FinishedRun], float | None]
    scale: float  # what is shown is so many times what is read
    unit: str  # of a difference
    form: str  # of both
    words: tuple[str, str]  # for more, and for less
    paired: bool = True  # whether runs of the same seed have something in common

    def show(self, value: float, unit: str = "") -> str:
        """A value or a difference as it is printed."""
        return f"{value * self.scale:{self.form}}{unit}"


def _last_validation(one: FinishedRun) -> float | None:
    """Of the last epoch, never of the best."""
    records = [record for record in one.curve if record.get("split") == "validation"]
    return records[-1].get("accuracy") if records else one.summary.get("validation_accuracy")


def _accuracy(name: str, read: Callable[[FinishedRun], float | None]) -> Metric:
    return Metric(name, read, 100, " points", ".2f", ("better", "worse"))


METRICS = {
    "test_accuracy": _accuracy("test accuracy (%)", lambda one: one.summary["test_accuracy"]),
    "test_accuracy_tta": _accuracy("test accuracy, TTA (%)", lambda one: one.summary.get("test_accuracy_tta")),
    "validation_accuracy": _accuracy("validation accuracy (%)", _last_validation),
    "test_loss": Metric("test loss", lambda one: one.summary["test_loss"], 1, "", ".4f", ("worse", "better")),
    "seconds": Metric(
        "training time (s)",
        lambda one: one.summary["seconds"]["train"],
        *(1, " s", ".2f"),
        words=("slower", "faster"),
        paired=False,
    ),
}


@dataclass(frozen=True)
class Side:
    """The runs of one experiment, one for each seed, in the order of their seeds."""

    runs: tuple[FinishedRun, ...]
    values: tuple[float, ...]  # of the metric

    @property
    def seeds(self) -> list[int]:
        """The seed of every run."""
        return [one.seed for one in self.runs]


@dataclass(frozen=True)
class Comparison:
    """What was found."""

    metric: Metric
    this: Side
    that: Side
    gap: Difference | None  # None: a side has a single run
    fields: dict[str, tuple[Any, Any]]  # of the experiment that differ: this one's value and that one's
    surroundings: dict[str, tuple[Any, Any]]  # that differ: devices, versions, commit
    diverged: tuple[int, int] = (0, 0)  # runs of each that are not counted
    least: float | None = None  # the smallest difference worth deciding on, as it is shown; None: the one seen

    @property
    def verdict(self) -> str:
        """The answer in a sentence."""
        metric, gap = self.metric, self.gap
        if gap is None:
            counts = zip("AB", (self.this, self.that), strict=True)
            more = " and ".join(f"{FEWEST - 1} more of {name}" for name, side in counts if len(side.runs) < 2)
            return f"cannot tell: {self._seen} apart, and one run has no spread to hold that against. Train {more}."
        if not gap.known:
            return f"cannot tell: {self._seen} apart in every run, so that how far seeds spread is not known."
        if gap.sd == 0:
            figures = {*self.this.values, *self.that.values}
            return f"no difference: {'every run' if len(figures) == 1 else 'each pair'} gave the same figure."
        half = metric.show((gap.high - gap.low) / 2, metric.unit)
        if gap.decided:
            word = metric.words[0] if gap.difference > 0 else metric.words[1]
            return f"{word} by {metric.show(abs(gap.difference))} ± {half}, {self._counts}."
        return f"cannot tell: {metric.show(gap.difference)} ± {half}, {self._counts}; {self._wanted(gap)}."

    @property
    def _firsts(self) -> tuple[FinishedRun, FinishedRun]:
        return self.this.runs[0], self.that.runs[0]

    @property
    def _counts(self) -> str:
        n, m = len(self.this.runs), len(self.that.runs)
        return f"{n} seeds each" if n == m else f"{n} and {m} seeds"

    @property
    def _seen(self) -> str:
        seen = statistics.fmean(self.this.values) - statistics.fmean(self.that.values)
        return self.metric.show(abs(seen), self.metric.unit)

    def _wanted(self, gap: Difference) -> str:
        """How many seeds would decide."""
        worth = abs(gap.difference) if self.least is None else self.least / self.metric.scale
        needed = runs_needed(gap.sd, worth, gap.level, paired=gap.paired)
        shown, have = self.metric.show(worth, self.metric.unit), (len(self.this.runs), len(self.that.runs))
        if needed is None:
            return f"no number of seeds would decide on {shown}: say with --least which difference matters"
        if needed <= min(have):
            return f"one of {shown} would have been seen four times out of five"
        if have[0] != have[1]:
            return f"about {needed:,} seeds each would decide on {shown}"
        return f"about {needed - have[0]:,} more seed{'s' * (needed - have[0] > 1)} each would decide on {shown}"

    def notes(self) -> list[str]:
        """What a reader has to know beside the verdict."""
        notes, gap, metric = [], self.gap, self.metric
        if gap is not None and gap.known:
            test = "Paired by seed, Student's t" if gap.paired else "Not paired, Welch's t"
            p = f"p = {gap.p:.2g}" if gap.p >= 1e-4 else "p < 0.0001"
            ends = f"{metric.show(gap.low)} to {metric.show(gap.high, metric.unit)}"
            notes.append(f"{test}: {p}, {gap.level:.0%} interval of A - B: {ends}.")
        if not self.fields:
            notes.append("Nothing that is recorded differs: this is one experiment against itself.")
        if len(self.fields) > 1:
            notes.append(f"{len(self.fields)} fields differ: which of them made the difference, this cannot tell.")
        if "on" in self.surroundings:
            notes.append("The devices differ: their times do not compare.")
        if any(self.diverged):
            lost = " and ".join(f"{n} of {name}" for n, name in zip(self.diverged, "AB", strict=True) if n)
            notes.append(f"Diverged: {lost}, not counted: the figures are of the runs that finished.")
        settings = {name: one.summary.get("settings", 1) for name, one in zip("AB", self._firsts, strict=True)}
        if max(settings.values()) > 1:
            tried = " and ".join(f"{name} is one of {n} settings" for name, n in settings.items() if n > 1)
            notes.append(f"{tried} that were tried: one chosen by this figure looks better than it is; new seeds tell.")
        return notes

    def table(self) -> str:
        """Both sides as a Markdown table: what differs, the metric, time and cost."""
        sides = (self.this, self.that)
        rows: list[tuple[str, ...]] = [_row("experiment", sides, lambda side: _names(side.runs))]
        rows.append(_row("seeds", sides, lambda side: f"{shown_seeds(side.seeds)} (n = {len(side.runs)})"))
        rows += [(name, *map(shown_value, values)) for name, values in self.fields.items()]
        rows.append(_row(self.metric.name, sides, self._shown_mean))
        if self.metric is not METRICS["seconds"]:
            rows.append(_row("training time, median", sides, lambda side: f"{_median(side, _seconds):.3g} s"))
        rows.append(_row("images a second, median", sides, lambda side: _count(_median(side, _speed))))
        rows.append(_row("parameters", sides, lambda side: _count(_median(side, _parameters))))
        rows += [(name, *map(shown_value, values)) for name, values in self.surroundings.items()]
        if "on" not in self.surroundings:
            rows.append(_row("on", sides, lambda side: side.runs[0].device))
        return markdown(("", "A", "B (against)"), rows)

    def _shown_mean(self, side: Side) -> str:
        known = interval(side.values)
        mean = self.metric.show(known.mean)
        if known.n < 2:
            return mean
        ends = f"{self.metric.show(known.low)} to {self.metric.show(known.high)}"
        return f"{mean} (sd {self.metric.show(known.sd)}; 95 % interval {ends})"

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values; accuracies are shares."""
        metric = next(name for name, metric in METRICS.items() if metric is self.metric)
        sides = {
            name: {"runs": [one.shown for one in side.runs], "seeds": side.seeds, "values": list(side.values)}
            for name, side in (("this", self.this), ("that", self.that))
        }
        gap = None if self.gap is None else {k: None if v != v else v for k, v in vars(self.gap).items()}
        differing = {"fields": self.fields, "surroundings": self.surroundings}
        told = {"verdict": self.verdict, "notes": self.notes()}
        return {"metric": metric, **sides, "difference": gap, **differing, **told}


def compare(
    this: Sequence[FinishedRun],
    that: Sequence[FinishedRun],
    metric: str = "test_accuracy",
    leave_out: Callable[[str, str], object] = lambda name, why: None,
    *,
    diverged: tuple[int, int] = (0, 0),
    least: float | None = None,
) -> Comparison:
    """Compare the runs of an experiment with those of another.

    Args:
        this: finished runs; `that` are those it is held against.
        metric: one of `METRICS`.
        leave_out: called with the name of each run that is not counted because another has its seed, and the reason.
        diverged: how many more runs of each there were, which diverged.
        least: the smallest difference worth deciding on, as it is shown: in points for an accuracy.

    Raises:
        ConfigError: a side holds no run or several experiments, both hold the same run, or a run lacks the figure.
    """
    for runs, name in ((this, "A"), (that, "B, after --against,")):
        require_one_experiment(runs, name)
    shared = {one.shown for one in this} & {one.shown for one in that}
    if shared:
        raise ConfigError(f"{min(shared)} stands on both sides: a run does not differ from itself. Name it once.")
    one, other = _side(this, metric, leave_out), _side(that, metric, leave_out)
    gap, (fields, surroundings) = _gap(one, other, METRICS[metric]), differing(this[0], that[0])
    if metric == "test_accuracy_tta":
        fields |= _differing({"eval.tta": _views(this[0])}, {"eval.tta": _views(that[0])})
    return Comparison(METRICS[metric], one, other, gap, fields, surroundings, diverged, least)


def require_one_experiment(runs: Sequence[FinishedRun], name: str) -> None:
    """Raise `ConfigError` where there is no run, or where runs differ in more than their seeds."""
    if not runs:
        raise ConfigError(f"{name} holds no finished run.")
    groups = experiments(runs)
    if len(groups) > 1:
        one, other = groups[0][0], groups[1][0]
        fields, surroundings = differing(one, other)
        shown = "\n  ".join(
            f"{field}: {shown_value(ours)} in {one.shown}, {shown_value(theirs)} in {other.shown}"
            for field, (ours, theirs) in (fields | surroundings).items()
            if field in fields or field == "on"
        )
        way_out = "Name the runs of one" + (", such as FILE.json:lr=0.05." if one.member else ".")
        raise ConfigError(f"{name} holds {len(groups)} experiments, which differ:\n  {shown}\n{way_out}")


def differing(this: FinishedRun, that: FinishedRun) -> tuple[dict[str, tuple[Any, Any]], dict[str, tuple[Any, Any]]]:
    """The fields of the experiment, and what it ran on, of which two runs have different values."""
    return _differing(this.fields, that.fields), _differing(_surroundings(this), _surroundings(that))


def _surroundings(one: FinishedRun) -> dict[str, Any]:
    return {"on": one.device, **one.environment["versions"], "commit": one.commit}


def _differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = sorted(ours.keys() | theirs.keys())
    pairs = {name: (ours.get(name), theirs.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _side(runs: Sequence[FinishedRun], metric: str, leave_out: Callable[[str, str], object]) -> Side:
    """One run for each seed, with its figure: what is repeated with a seed is no second draw."""
    by_seed: dict[int, FinishedRun] = {}
    for one in runs:
        first = by_seed.setdefault(one.seed, one)
        if first is not one:
            leave_out(one.shown, f"{first.shown} has the same seed, {one.seed}, and is counted")
    kept = tuple(by_seed[seed] for seed in sorted(by_seed))
    values = [METRICS[metric].read(one) for one in kept]
    without = [one.shown for one, value in zip(kept, values, strict=True) if value is None]
    ways = {"test_accuracy_tta": "--eval.tta mirror", "validation_accuracy": "--data.val_fraction 0.1"}
    expected = f"{', '.join(without[:3])} has no such figure: train with {ways.get(metric)}, or choose another"
    check(not without, "--metric", metric, expected)
    views = {_views(one) for one in kept}
    if metric == "test_accuracy_tta" and len(views) > 1:
        told = " and ".join(sorted(views))
        raise ConfigError(f"{kept[0].shown} and the others of its side were judged by {told}: name the runs of one.")
    return Side(kept, tuple(value for value in values if value is not None))


def _views(one: FinishedRun) -> str:
    """The test-time augmentation that a run was judged with: what it computes does not depend on it."""
    return one.summary.get("tta") or one.config["eval"]["tta"]


def _gap(this: Side, that: Side, metric: Metric) -> Difference | None:
    if min(len(this.runs), len(that.runs)) < 2:
        return None
    return difference(this.values, that.values, paired=metric.paired and this.seeds == that.seeds)


def _row(name: str, sides: Iterable[Side], show: Callable[[Side], str]) -> tuple[str, str, str]:
    ours, theirs = map(show, sides)
    return name, ours, theirs


def _names(runs: Iterable[FinishedRun]) -> str:
    return ", ".join(dict.fromkeys(one.summary["config_name"] for one in runs))


def _median(side: Side, read: Callable[[FinishedRun], float | None]) -> float:
    values = [value for one in side.runs if (value := read(one)) is not None]
    return statistics.median(values) if values else math.nan


def _seconds(one: FinishedRun) -> float:
    return one.summary["seconds"]["train"]


def _speed(one: FinishedRun) -> float | None:
    return one.summary.get("images_per_second")


def _parameters(one: FinishedRun) -> float | None:
    return one.summary.get("parameters")


def _count(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:,.0f}"
