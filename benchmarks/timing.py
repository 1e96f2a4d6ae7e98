"""Time several ways to do the same work in turn, so that a machine whose speed drifts is fair to all."""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from benchmarks import machine
from benchmarks.machine import Condition
from jax_cifar.progress import progress

# Does its work so many times, one after another, and waits until the last is done.
Work = Callable[[int], object]
# Does its work once, for the round of that number, and returns the seconds that count: infinity if it never got there.
Measurement = Callable[[int], float]


@dataclass(frozen=True)
class Timing:
    """Seconds that one piece of work took, in every round that counts."""

    seconds: tuple[float, ...]
    conditions: tuple[Condition, ...] = ()  # of the machine in these rounds, where that was looked at
    given_up: int = 0  # rounds measured beside these that do not count, as the machine was disturbed

    @property
    def median(self) -> float:
        """The figure to quote, in seconds."""
        return statistics.median(self.seconds)

    def __truediv__(self, parts: int) -> "Timing":
        """Seconds of one of so many equal parts of the work."""
        return replace(self, seconds=tuple(value / parts for value in self.seconds))


@dataclass(frozen=True)
class Case:
    """One row of a suite: the same work done in several ways, the first of them ours."""

    name: str
    timings: Mapping[str, Timing]
    images: int = 0  # images that one piece of work handles; 0 where that means nothing
    accuracies: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # what a way of training ends with

    @property
    def ours(self) -> Timing:
        """The first way."""
        return next(iter(self.timings.values()))

    @property
    def best_other(self) -> str | None:
        """The fastest of the other ways, by its median; None if there is none."""
        others = list(self.timings)[1:]
        return min(others, key=lambda name: self.timings[name].median) if others else None

    @property
    def ratios(self) -> tuple[float, ...]:
        """Our time over the best other's, round by round; under 1 we are ahead. Empty if one never got there."""
        if self.best_other is None:
            return ()
        ours, others = self.ours.seconds, self.timings[self.best_other].seconds
        if not all(map(math.isfinite, ours + others)):
            return ()  # ratios of the other rounds alone would favour who fails often
        return tuple(one / other for one, other in zip(ours, others, strict=True))

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """Of the machine in the rounds that count, where that was looked at."""
        return self.ours.conditions if self.timings else ()

    @property
    def given_up(self) -> int:
        """Rounds measured beside these that do not count."""
        return self.ours.given_up if self.timings else 0

    @property
    def disturbed(self) -> tuple[Condition, ...]:
        """The rounds among them in which the machine was not calm."""
        return tuple(condition for condition in self.conditions if not condition.calm)


def add_rounds(parser: argparse.ArgumentParser, default: int = 7) -> None:
    """The option of a suite that times its ways in turn, as often as that says."""
    told = f"times each way is measured (default {default})"
    parser.add_argument("--rounds", metavar="N", type=int, default=default, help=told)


def interleave(
    ways: Mapping[str, Work], rounds: int = 7, seconds: float = 0.5, again: int | None = None
) -> dict[str, Timing]:
    """Time each way once per round, about `seconds` at a time; what comes before its first use is not counted.

    Each is done once before its time is taken: so the neighbour's threads come to rest, the caches are filled again,
    and it has the memory that it needs, as in the midst of a training.

    A round in which the machine is disturbed is measured again, up to `again` more, by default as many as count; what
    is then still missing is filled up with the least disturbed.
    """
    repeats = {name: _repeats(work, seconds) for name, work in ways.items()}

    def measurement(work: Work, count: int) -> Measurement:
        def measure(_: int) -> float:
            work(1)
            started = time.perf_counter()
            work(count)
            return (time.perf_counter() - started) / count

        return measure

    measurements = {name: measurement(work, repeats[name]) for name, work in ways.items()}
    return in_turn(measurements, rounds, again=rounds if again is None else again)


def in_turn(ways: Mapping[str, Measurement], rounds: int, again: int = 0) -> dict[str, Timing]:
    """Measure each way once per round; nothing is warmed up.

    Every other round goes backwards, so that no way always follows the same neighbour.

    Args:
        ways: our own first.
        rounds: how many count.
        again: rounds at most that take the place of disturbed ones; without any, disturbed ones count, and say so.
    """
    measured: list[tuple[dict[str, float], Condition]] = []

    def needed() -> int:
        """Rounds in all, by what is known of those that are done."""
        calm = sum(condition.calm for _, condition in measured)
        return max(rounds, min(len(measured) + rounds - calm, rounds + again))

    with progress("measurements", total=rounds * len(ways)) as bar:

        def one_round() -> dict[str, float]:
            times = {}
            for name in list(ways)[:: 1 if len(measured) % 2 == 0 else -1]:
                bar.advance(0, note=name)
                times[name] = ways[name](len(measured))
                bar.advance()
            return times

        while len(measured) < needed():
            measured.append(machine.observe(one_round))
            bar.update(len(measured) * len(ways), needed() * len(ways))

    # In the order in which they were measured; of calm ones the first.
    best = sorted(range(len(measured)), key=lambda i: measured[i][1].disturbance)[:rounds]
    kept = [measured[i] for i in sorted(best)]
    conditions, given_up = tuple(condition for _, condition in kept), len(measured) - len(kept)
    return {name: Timing(tuple(times[name] for times, _ in kept), conditions, given_up) for name in ways}


def _repeats(work: Work, seconds: float) -> int:
    """How often the work fits into the time, at least once; compiles it on the way."""
    work(1)
    started = time.perf_counter()
    work(1)
    return max(1, round(seconds / (time.perf_counter() - started)))
