"""Time several ways to do the same work in turn, so that a machine whose speed drifts is fair to all."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

# Does its work so many times, one after another, and waits until the last is done.
Work = Callable[[int], object]


@dataclass(frozen=True)
class Timing:
    """Seconds that one piece of work took, in every round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The figure to quote, in seconds."""
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Case:
    """One row of a suite: the same work done in several ways, the first of them ours."""

    name: str
    timings: Mapping[str, Timing]
    images: int = 0  # images that one piece of work handles; 0 where that means nothing

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
        """Our time over the best other's, round by round; under 1 we are ahead."""
        if self.best_other is None:
            return ()
        pairs = zip(self.ours.seconds, self.timings[self.best_other].seconds, strict=True)
        return tuple(ours / other for ours, other in pairs)


def interleave(ways: Mapping[str, Work], rounds: int = 7, seconds: float = 0.5) -> dict[str, Timing]:
    """Time each way once per round, about `seconds` at a time; what comes before its first use is not counted.

    Every other round goes backwards, so that no way always follows the same neighbour.
    """
    repeats = {name: _repeats(work, seconds) for name, work in ways.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(rounds):
        for name in list(ways)[:: 1 if i % 2 == 0 else -1]:
            if repeats[name] > 1:
                ways[name](1)  # the neighbour's threads come to rest, and the caches are filled again
            started = time.perf_counter()
            ways[name](repeats[name])
            times[name].append((time.perf_counter() - started) / repeats[name])
    return {name: Timing(tuple(values)) for name, values in times.items()}


def _repeats(work: Work, seconds: float) -> int:
    """How often the work fits into the time, at least once; compiles it on the way."""
    work(1)
    started = time.perf_counter()
    work(1)
    return max(1, round(seconds / (time.perf_counter() - started)))
