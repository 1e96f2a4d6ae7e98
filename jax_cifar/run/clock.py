"""Where the seconds of a run go, by kind: data, compile, train, eval, checkpoint, and the whole process."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

KINDS = ("data", "compile", "train", "eval", "checkpoint")


class Clock:
    """Adds up seconds by kind. `started` is the time (of `time.time`) that the total counts from; default: now."""

    def __init__(self, started: float | None = None) -> None:
        # The time of day is asked once: it may be set, forwards and back, while a run goes on.
        self._started = time.monotonic() - (0.0 if started is None else max(0.0, time.time() - started))
        self.seconds: dict[str, float] = dict.fromkeys(KINDS, 0.0)
        self._earlier: dict[str, float] = dict.fromkeys(KINDS, 0.0)

    @contextmanager
    def __call__(self, kind: str) -> Iterator[None]:
        """Charge the time inside to `kind`; what the device still computes must be waited for inside."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[kind] += time.perf_counter() - start

    def add(self, seconds: Mapping[str, float]) -> None:
        """Count what earlier processes spent on the same run, as their `report` had it."""
        for kind in KINDS:
            self.seconds[kind] += seconds[kind]
            self._earlier[kind] += seconds[kind]
        self._started -= seconds["total"]

    def here(self, kind: str) -> float:
        """Seconds of one kind in this process alone."""
        return self.seconds[kind] - self._earlier[kind]

    def report(self) -> dict[str, float]:
        """Seconds by kind, and `total`: this process from its start until now, and those before it on the same run."""
        seconds = {**self.seconds, "total": time.monotonic() - self._started}
        return {kind: round(value, 3) for kind, value in seconds.items()}
