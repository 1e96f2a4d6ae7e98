"""What each ingredient of an experiment is worth: each changed alone, trained with the same seeds, told with intervals.

ablation = Ablation(config, removable(config), range(3), Ledger(folder / "runs.json"))
ablation.ledger.train(ablation.members(), on_run=lambda result: ...)
print(ablation.table())
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jax_cifar.config import Config
from jax_cifar.config.files import flat, to_dict
from jax_cifar.errors import check
from jax_cifar.lab.ingredients import Ingredient
from jax_cifar.lab.ledger import Ledger
from jax_cifar.lab.statistics import Difference, difference
from jax_cifar.lab.tables import markdown, spread

if TYPE_CHECKING:
    from jax_cifar.telemetry.worth import Worth

FIGURES = {
    "validation_accuracy": "validation accuracy",
    "test_accuracy_tta": "test accuracy with test-time augmentation",
    "test_accuracy": "test accuracy",
}


@dataclass(frozen=True)
class Row:
    """One experiment of the table and, unless it is the one that others are compared with, what it is worth."""

    name: str
    way: str  # as an ingredient's; empty for the experiment as it is
    change: str
    accuracies: tuple[float, ...]  # of the runs that are finished and did not diverge
    diverged: int
    missing: int  # runs still to do
    seconds: float | None  # of training, mean of those
    worth: Difference | None = None  # accuracy with the ingredient less that without it, as shares of 1
    cost: float | None = None  # seconds of training with it less those without it, mean

    @property
    def verdict(self) -> str:
        """What the runs say, in words."""
        lost = f"{self.diverged} of {len(self.accuracies) + self.diverged} diverged" if self.diverged else ""
        return ", ".join(filter(None, (self._told(), lost)))

    def _told(self) -> str:
        if self.missing:
            return f"{self.missing} to do"
        if not self.way or not self.accuracies:
            return ""
        if self.worth is None or not self.worth.known:
            return "cannot tell from one seed" if self.worth is None else "cannot tell: seeds make no difference"
        better, worse = ("better", "worse") if self.way == "instead" else ("helps", "hurts")
        word = (better if self.worth.difference > 0 else worse) if self.worth.decided else "cannot tell"
        return f"{word}, p = {self.worth.p:.2g}"


class _Seen(NamedTuple):
    """The finished runs of one experiment by seed: accuracy and seconds of training of those that did not diverge."""

    accuracies: dict[int, float]
    seconds: dict[int, float]
    diverged: int


@dataclass(frozen=True)
class Ablation:
    """An experiment, what it is compared with, and the runs of both that are finished.

    Raises:
        ConfigError: they would be judged by different images: not all hold out the same ones, or any.
    """

    config: Config
    arms: Sequence[Ingredient]
    seeds: Sequence[int]
    ledger: Ledger

    def __post_init__(self) -> None:
        ours = self.config.data
        for arm in self.arms:
            theirs = arm.config.data
            _check_judge(arm.name, "data.val_fraction", ours.val_fraction, theirs.val_fraction)
            if ours.val_fraction > 0:
                _check_judge(arm.name, "data.seed", ours.seed, theirs.seed)

    @property
    def configs(self) -> list[Config]:
        """The experiment as it is, then those of its arms."""
        return [self.config, *(arm.config for arm in self.arms)]

    @property
    def figure(self) -> str:
        """What runs are judged by: validation images where there are any, else the test images.

        The latter with test-time augmentation where every experiment has the same. Whether a data set has validation
        images of its own, finished runs tell.
        """
        found = [run for config in self.configs for run in self._finished(config).values()]
        own = {run["validation_accuracy"] is not None for run in found if run["diverged_at"] is None}
        if self.config.data.val_fraction > 0 or own == {True}:
            return "validation_accuracy"
        views = {config.eval.tta for config in self.configs}
        return "test_accuracy" if len(views) > 1 or "none" in views else "test_accuracy_tta"

    def members(self) -> list[Config]:
        """Every experiment with every seed."""
        return [with_seed(config, seed) for config in self.configs for seed in self.seeds]

    def rows(self) -> list[Row]:
        """The experiment as it is, then each of its arms; but for those that only test images could judge."""
        figure = self.figure
        base = self._seen(self.config, figure)
        judged = [arm for arm in self.arms if arm.figure is None or figure != "validation_accuracy"]
        arms = [self._row(arm, self._seen(arm.config, arm.figure or figure), base) for arm in judged]
        return [Row("as it is", "", "", *self._figures(base)), *arms]

    def ranked(self) -> list[Row]:
        """The experiment as it is, then its arms: what is worth most first, what nobody knows yet last."""
        first, *arms = self.rows()
        return [first, *sorted(arms, key=_rank)]

    def table(self) -> str:
        """The rows as Markdown, in points of accuracy and seconds of training."""
        first, worth, cost = ("ingredient", "worth", "costs")
        if any(arm.way == "instead" for arm in self.arms):
            first, worth, cost = ("experiment", "difference", "difference")
        head = (first, "change", FIGURES[self.figure], f"{worth}, points (95 %)", "", "training time", cost)
        return markdown(head, map(_cells, self.ranked()))

    def _finished(self, config: Config) -> dict[int, dict[str, Any]]:
        """Figures of an experiment's finished runs by seed."""
        found = {seed: self.ledger[with_seed(config, seed)] for seed in self.seeds}
        return {seed: run for seed, run in found.items() if run is not None}

    def _seen(self, config: Config, figure: str) -> _Seen:
        runs = self._finished(config)
        whole = {seed: run for seed, run in runs.items() if run["diverged_at"] is None}
        accuracies = {seed: run[figure] for seed, run in whole.items()}
        return _Seen(accuracies, {seed: run["seconds"] for seed, run in whole.items()}, len(runs) - len(whole))

    def _figures(self, seen: _Seen) -> tuple[tuple[float, ...], int, int, float | None]:
        missing = len(self.seeds) - len(seen.accuracies) - seen.diverged
        return tuple(seen.accuracies.values()), seen.diverged, missing, _mean(seen.seconds.values())

    def _row(self, arm: Ingredient, seen: _Seen, base: _Seen) -> Row:
        """A row with the worth by pairs of one seed, whose runs saw the images in the same order."""
        there, other = (base, seen) if arm.way == "without" else (seen, base)
        both = [seed for seed in self.seeds if seed in there.accuracies and seed in other.accuracies]
        worth = None
        if len(both) > 1:
            ours, theirs = ([side.accuracies[seed] for seed in both] for side in (there, other))
            worth = difference(ours, theirs, paired=True)
        cost = _mean(there.seconds[seed] - other.seconds[seed] for seed in both)
        return Row(arm.name, arm.way, arm.change, *self._figures(seen), worth=worth, cost=cost)


def _check_judge(arm: str, field: str, ours: float, theirs: float) -> None:
    """Raise `ConfigError` where a field that says which images judge is not the same on both sides."""
    expected = f"{arm} would be judged by other images than what it is compared with, which has {ours}; give all the"
    check(ours == theirs, field, theirs, f"{expected} same, such as --{field} {theirs or ours}")


def with_seed(config: Config, seed: int) -> Config:
    """The same experiment with another seed."""
    return dataclasses.replace(config, train=dataclasses.replace(config.train, seed=seed))


def variants(config: Config, others: Mapping[str, Config]) -> list[Ingredient]:
    """Experiments by name, each to be compared with one of them."""
    ours, arms = flat(to_dict(config)), []
    for name, other in others.items():
        theirs = flat(to_dict(other))
        fields = [field for field in theirs if theirs[field] != ours.get(field)]
        if fields:
            arms.append(Ingredient(name, "instead", ", ".join(fields), other))
    return arms


def _rank(row: Row) -> tuple[int, float]:
    """What no run gets through without is worth most, what no run gets through with is worth least."""
    if row.worth is not None:
        return (1, -row.worth.difference)
    lost = row.diverged > 0 and not row.accuracies and not row.missing
    return (0 if row.way == "without" else 2, 0.0) if lost else (3, 0.0)


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return sum(known) / len(known) if known else None


def _cells(row: Row) -> tuple[str, ...]:
    seconds = "-" if row.seconds is None else f"{row.seconds:.3g} s"
    cost = "" if row.cost is None else f"{row.cost:+.2g} s"
    return (row.name, change_text(row), spread(row.accuracies, ".2%"), worth_text(row), row.verdict, seconds, cost)


def change_text(row: Row) -> str:
    """What was done: `without: --model.norm none`; of a variant, which fields differ."""
    return f"{row.way}: `{row.change}`" if row.way in ("without", "with") else row.change


def worth_text(row: Row) -> str:
    """`+1.79 (+1.21 to +2.37)`, in points."""
    if row.worth is None:
        return ""
    points = f"{100 * row.worth.difference:+.2f}"
    return f"{points} ({100 * row.worth.low:+.2f} to {100 * row.worth.high:+.2f})" if row.worth.known else points


def _drawn(row: Row) -> "Worth":
    from jax_cifar.telemetry.worth import Worth

    if row.worth is None or not row.worth.known:
        return Worth(row.name, None, note=row.verdict)
    value, low, high = (100 * share for share in (row.worth.difference, row.worth.low, row.worth.high))
    return Worth(row.name, value, low, high)


def draw(ablation: Ablation, folder: Path, against: str | None = None) -> Path:
    """The rows as a picture: what each arm is worth; or accuracy against a field, a line for every name of a config."""
    from jax_cifar.telemetry.worth import draw_lines, draw_worth

    config, rows = ablation.config, ablation.rows()
    detail = f"{FIGURES[ablation.figure]} on {config.data.name}, n = {len(ablation.seeds)}"
    if against is None:
        detail = f"worth in points of {detail}, 95 %; hollow: cannot tell"
        return draw_worth([_drawn(row) for row in ablation.ranked()[1:]], config.name, detail, folder / "worth.png")
    lines: dict[str, list[tuple[float, Sequence[float]]]] = {}
    for one, row in zip(ablation.configs, rows, strict=True):
        if row.accuracies:
            lines.setdefault(one.name, []).append((flat(to_dict(one))[against], row.accuracies))
    return draw_lines(lines, against, f"Accuracy against {against}", detail, folder / "lines.png")
