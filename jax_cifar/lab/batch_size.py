"""The largest batch that fits into memory, by the compiler's figures and by running, each size in its own process."""

import bisect
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jax_cifar.errors import ConfigError, check
from jax_cifar.files import with_library
from jax_cifar.lab.batch_probe import MARK, SLOWEST, TOO_MUCH
from jax_cifar.signals import ending_with_us

MANTISSAS = range(8, 16)  # sizes are these times a power of two: an eighth or less lies between two of them
# How a process ends that got no memory: by the system's last resort, or by what a library could not go on without.
OUT_OF_MEMORY = re.compile(
    "out of memory|bad_alloc|cannot allocate|can't allocate|RESOURCE_EXHAUSTED|MemoryError", re.I
)


@dataclass(frozen=True)
class Probe:
    """What became of one batch size."""

    batch: int
    fits: bool
    needed: float | None  # bytes, as the compiler reckons; None where it did not come to that
    measured: float | None = None  # bytes; None where it was not run, or did not get through
    seconds: float | None = None  # of an update

    @property
    def load(self) -> float:
        """Bytes by which the next size is guessed."""
        return max(self.needed or 0.0, self.measured or 0.0)


@dataclass(frozen=True)
class Search:
    """All that was tried, smallest first."""

    probes: Sequence[Probe]
    there: float  # bytes
    limit: float  # bytes: without the margin
    most: int  # images: no larger batch is asked for; the configured one, which is tried first, may be

    @property
    def best(self) -> Probe | None:
        """The largest that fits; None where nothing does."""
        return next((probe for probe in reversed(self._wanted) if probe.fits), None)

    @property
    def why_no_larger(self) -> str:
        """What else than memory kept a larger batch from being tried; empty where nothing did."""
        last = self._wanted[-1]
        if not last.fits:
            return ""
        if last.seconds and last.seconds > SLOWEST / 2:
            return f", and an update of more would take over {SLOWEST:.0f} seconds"
        return f", and no more than {self.most:,} were to be tried"

    @property
    def _wanted(self) -> list[Probe]:
        return [probe for probe in self.probes if probe.batch <= self.most]


def find_batch_size(
    arguments: Sequence[str],
    memory: float,
    margin: float,
    most: int,
    tell: Callable[[str], object] = lambda text: None,
) -> Search:
    """Compile and run a few updates of one batch size after another, until the largest that fits is known.

    Args:
        arguments: `--config FILE` and overrides, as for training; the configured batch is tried first, of any size, as
            it tells what is there.
        memory: bytes that may be used; 0: what a device has, or what is free of the machine's where that is a CPU.
        margin: share of it that is left alone.
        most: the batch is to be no larger, nor of more than all training images.
        tell: is told of what is tried.

    Raises:
        ConfigError: a bad argument, or a configuration that does not train at any size.
        DataError: the data set.
    """
    check(0 <= margin < 1, "--margin", margin, "it must be at least 0 and less than 1")
    check(memory >= 0, "--memory", memory, "it must be greater than 0")
    check(most >= 1, "--most", most, "it must be at least 1")
    facts: dict[str, float] = {}

    def probe(batch: int) -> Probe:
        tell(f"{batch:,} images" if batch else "the configured batch")
        return run_probe([str(batch), str(memory), str(margin), *arguments], batch, margin, facts)

    first = probe(0)
    if not facts:
        raise ConfigError("Not even compiling the configured batch got through: give more --memory.")
    there = facts["there"]  # now: what is free of a machine's memory is another amount at every look
    most, parts = min(most, int(facts["images"])), int(facts["parts"])
    check(parts <= most, "--most", most, f"the devices and optim.accumulate need a multiple of {parts} images")
    limit = (1 - margin) * there
    probes = search(probe, first, sizes(parts, most), limit)
    return Search(sorted(probes, key=lambda probe: probe.batch), there, limit, most)


def sizes(multiple: int, most: int) -> list[int]:
    """The sizes that are tried, ascending: multiples of `multiple`."""
    doublings = range(max(most // multiple, 1).bit_length())
    found = {m << e for e in doublings for m in MANTISSAS} | set(range(1, MANTISSAS[0]))
    return sorted(multiple * size for size in found if multiple * size <= most)


def search(probe: Callable[[int], Probe], first: Probe, sizes: Sequence[int], limit: float) -> list[Probe]:
    """Try sizes until one fits and the next larger does not, or would take too long."""
    probes = [first]
    while (batch := next_size(probes, sizes, limit)) is not None:
        probes.append(probe(batch))
    return probes


def next_size(probes: Sequence[Probe], sizes: Sequence[int], limit: float) -> int | None:
    """The size to try next, by memory that grows with the batch as it did; None where all is known."""
    largest = max(sizes, default=0)
    fitting = max((probe.batch for probe in probes if probe.fits and probe.batch <= largest), default=0)
    failing = min((probe.batch for probe in probes if not probe.fits), default=math.inf)
    slow = min((probe.batch * SLOWEST / probe.seconds for probe in probes if probe.seconds), default=math.inf)
    open_sizes = [size for size in sizes if fitting < size < failing and size <= slow]
    if not open_sizes:
        return None
    place = bisect.bisect_right(open_sizes, _expected(probes, limit)) - 1
    if place == len(open_sizes) - 1 and failing < math.inf:
        place //= 2  # what would have fitted by the guess did not
    return open_sizes[max(place, 0)]


def _expected(probes: Sequence[Probe], limit: float) -> float:
    """The batch that would just reach the limit, by the two largest that fit."""
    *_, small, large = [None, None, *sorted((probe for probe in probes if probe.fits), key=lambda probe: probe.batch)]
    if large is None:
        return min(probe.batch for probe in probes) / 4
    if small is None or large.load <= small.load:
        return large.batch * 4
    return large.batch + (limit - large.load) * (large.batch - small.batch) / (large.load - small.load)


def run_probe(arguments: Sequence[str], batch: int, margin: float, facts: dict[str, float]) -> Probe:
    """One size in a process of its own; what it says of machine and data goes into `facts`."""
    command = [sys.executable, "-P", "-m", "jax_cifar.lab.batch_probe", *arguments]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, env=with_library(), stdout=pipe, stderr=pipe, text=True)
    with process, ending_with_us(process):
        output, errors = process.communicate()
    lines = [line.removeprefix(MARK) for line in output.splitlines() if line.startswith(MARK)]
    told = {key: value for line in lines for key, value in json.loads(line).items()}
    facts |= {key: told[key] for key in ("there", "parts", "images") if key in told}
    code = process.returncode
    if code and code != TOO_MUCH and not (code < 0 and code != -15) and not OUT_OF_MEMORY.search(errors):
        last = (errors.strip().splitlines() or [f"exit code {code}"])[-1]
        raise ConfigError(last.removeprefix("error: "))
    measured = told.get("measured")
    fits = measured is not None and measured <= (1 - margin) * told["there"]
    return Probe(told.get("batch", batch), fits, told.get("needed"), measured, told.get("seconds"))
