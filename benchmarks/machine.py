"""How the machine is while something is measured: what others take of it, how fast it is, how near its cores are.

All of it is told without looking at what is measured. The last costs one way more than another: a host may put the
cores of a virtual machine on two dies, and back, and what goes from core to core then takes two or three times as long.
"""

import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from benchmarks.processes import spent
from jax_cifar.backend.threads import cpu_count

T = TypeVar("T")

OTHERS = 0.1  # of the cores: what others may take in a round that counts
SLOWER = 1.25  # how much longer than at its best the yardstick may take beside it
FARTHER = 1.25  # how much farther from one another than at their nearest the cores may be
SIDE = 1024  # of the yardstick's matrices
HANDED, HANDOVERS = 1 << 16, 15  # numbers that one core writes and another reads, 256 KiB, and how often
SHORT = 0.1  # seconds; the system counts in hundredths, which tell nothing of less


class Condition(NamedTuple):
    """The machine during one round."""

    others: float = 0.0  # share of this process's cores that other processes had, or that the host withheld
    slowness: float = 1.0  # time of the yardstick beside the round, over the least that it ever took in this process
    gflops: float = 0.0  # of the yardstick: a product of float32 matrices by NumPy
    distance: float = 1.0  # time in which a core reads what another has written, over that for what it wrote itself
    farther: float = 1.0  # that, over the least that it ever was in this process

    @property
    def calm(self) -> bool:
        """Whether little else went on."""
        return self.disturbance == 0

    @property
    def disturbance(self) -> float:
        """How much of the machine was missing beyond what is allowed, as a share; by all calm ones it is 0."""
        excess = (
            self.others if self.others > OTHERS else 0.0,
            1 - 1 / self.slowness if self.slowness > SLOWER else 0.0,
            1 - 1 / self.farther if self.farther > FARTHER else 0.0,
        )
        return max(excess)


class Yardstick:
    """The same small pieces of work again and again: a product on all cores, an array that goes from core to core."""

    def __init__(self) -> None:
        self._factors = np.random.default_rng(0).standard_normal((2, SIDE, SIDE), np.float32)
        self._handed = np.zeros(HANDED, np.float32)
        self.least = self.nearest = math.inf

    def seconds(self) -> float:
        """Of one product, the shortest of three: a neighbour's threads may still be coming to rest in the first."""
        taken = []
        for _ in range(3):
            started = time.perf_counter()
            np.matmul(*self._factors)
            taken.append(time.perf_counter() - started)
        self.least = min(self.least, *taken)
        return min(taken)

    def distance(self) -> float:
        """Of the core that is farthest from the first, see `Condition`; 1 where there is one, or no way to choose it.

        This thread goes from core to core, so that none has to wait for another, which would take longer than reading.
        """
        if not hasattr(os, "sched_setaffinity"):
            return 1.0
        first, *others = cores = sorted(os.sched_getaffinity(0))
        try:
            own = self._reading(first, first)
            found = max((self._reading(other, first) / own for other in others), default=1.0)
        finally:
            os.sched_setaffinity(0, cores)
        self.nearest = min(self.nearest, found)
        return found

    def _reading(self, writer: int, reader: int) -> float:
        taken = []
        for _ in range(HANDOVERS):
            os.sched_setaffinity(0, {writer})
            self._handed.fill(1)
            os.sched_setaffinity(0, {reader})
            started = time.perf_counter()
            self._handed.sum()
            taken.append(time.perf_counter() - started)
        return statistics.median(taken)


_yardsticks: list[Yardstick] = []  # the one of this process, made when it is first needed


def observe(work: Callable[[], T]) -> tuple[T, Condition]:
    """What the work returns, and how the machine was during it.

    The processes that it starts have to end within it, or to be workers.
    """
    if not _yardsticks:
        _yardsticks.append(Yardstick())
        _yardsticks[0].seconds()
    yardstick = _yardsticks[0]
    distance, before = yardstick.distance(), yardstick.seconds()
    started, busy, own = time.monotonic(), _busy_seconds(), _own_seconds()
    result = work()
    elapsed, others = time.monotonic() - started, _busy_seconds() - busy - (_own_seconds() - own)
    beside, distance = (before + yardstick.seconds()) / 2, max(distance, yardstick.distance())
    share = min(max(others / (elapsed * cpu_count()), 0.0), 1.0) if elapsed > SHORT else 0.0
    gflops, farther = 2 * SIDE**3 / beside / 1e9, distance / yardstick.nearest
    return result, Condition(share, beside / yardstick.least, gflops, distance, farther)


def _own_seconds() -> float:
    """CPU time of this process, of those it has started that have ended, and of its workers."""
    return sum(os.times()[:4]) + sum(spent.values())


def _busy_seconds() -> float:
    """Time in which the cores of this process did something, or were withheld; where the system tells none, its own."""
    try:
        lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    except OSError:
        return _own_seconds()
    cores = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    # user, nice, system, idle, iowait, irq, softirq, steal
    ticks = sum(int(line[i]) for line in lines if line[0] in cores for i in (1, 2, 3, 6, 7, 8))
    return ticks / os.sysconf("SC_CLK_TCK")
