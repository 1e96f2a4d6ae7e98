"""How long a prediction takes: several ways of making it, timed in turn, so that a slow minute meets all alike."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Num

from jax_cifar.progress import progress

BATCHES = (1, 128)  # images of a call


class Latency(NamedTuple):
    """Seconds of one call, of many."""

    p50: float  # half of the calls took at most as long
    p95: float  # so did 95 % of them


def measure_latencies(
    ways: Mapping[str, Callable[[], object]], seconds: float = 1.0, least: int = 20, most: int = 2000
) -> dict[str, Latency]:
    """Call every way in turn, again and again, and time each call; by name, in the order of `ways`.

    Args:
        ways: functions that return when their result is there (a JAX array is to be waited for).
        seconds: how long to go on for each way, at least.
        least: calls of each way, at least; the first of each, which may compile, comes before and is not counted.
        most: calls of each way, at most.
    """
    for way in ways.values():
        way()
    times: dict[str, list[float]] = {name: [] for name in ways}
    started, planned = time.perf_counter(), seconds * len(ways)
    with progress("timed", planned, unit="seconds") as bar:
        for rounds in range(1, most + 1):
            for name, way in ways.items():
                begin = time.perf_counter()
                way()
                times[name].append(time.perf_counter() - begin)
            spent = time.perf_counter() - started
            bar.update(spent, max(planned, spent / rounds * least))
            if rounds >= least and spent > planned:
                break
    return {name: of_calls(values) for name, values in times.items()}


def of_calls(seconds: Sequence[float]) -> Latency:
    """The latency of calls that took so many seconds each."""
    return Latency(*map(float, np.percentile(seconds, (50, 95))))


def latency_lines(
    ways: Mapping[str, Callable[[np.ndarray], object]], images: Num[np.ndarray, "n axis1 axis2 axis3"]
) -> Iterator[str]:
    """Ways of predicting, timed in turn with each of `BATCHES` images: a line for each batch.

    Args:
        ways: functions of images, which return when their result is there, by name.
        images: what they are given; fewer than the batch are repeated.
    """
    for count in BATCHES:
        batch = np.resize(images, (count, *images.shape[1:]))
        found = measure_latencies({name: partial(way, batch) for name, way in ways.items()})
        told = (f"{name} {1e3 * each.p50:.3g} ms (p95 {1e3 * each.p95:.3g})" for name, each in found.items())
        yield f"batch of {count:<6} {', '.join(told)}"
