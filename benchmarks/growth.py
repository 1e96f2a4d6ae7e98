"""How cost grows: seconds of an epoch, and memory, from a small to a large value of one thing at a time.

Everything else stays at a batch of 128 from 1,024 random images of 32 x 32 pixels in 10 classes. `of linear` is how
much longer an epoch takes than with the smallest value, over how much more work there is: 1.00 is linear, less is
better. The work of `side` is its square, that of `width` too (a convolution reads as many channels as it writes);
`batch` and `classes` leave it as it is. `seeds` are whole calls of `train_many`, an epoch each, tracing and compiling
included. Memory is the compiler's figure for an update, training images and state included.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from benchmarks.networks import network_config
from benchmarks.scan import epoch_and_memory, random_images
from benchmarks.step import MODELS
from benchmarks.tables import disturbed, shown_ratio, shown_time
from benchmarks.timing import Case, Timing, Work, add_rounds, interleave
from jax_cifar.config import Config
from jax_cifar.lab import tables
from jax_cifar.training.many import train_many


class Axis(NamedTuple):
    """One thing that grows."""

    values: tuple[int, ...]
    work: Callable[[int], float]  # of an epoch, in any unit


class Point(NamedTuple):
    """What is trained."""

    images: int = 1024
    side: int = 32
    width: int | None = None
    batch: int = 128
    classes: int = 10
    seeds: int = 1


AXES = {
    "images": Axis((256, 1024, 4096, 16384), float),
    "side": Axis((16, 32, 64, 128), lambda side: side**2),
    "width": Axis((8, 16, 32, 64, 128), lambda width: width**2),
    "batch": Axis((8, 32, 128, 512), lambda batch: 1),
    "classes": Axis((10, 100, 1000), lambda classes: 1),
    "seeds": Axis((1, 2, 4, 8), float),
}
# What --quick asks for where nothing else is said. Seeds, whose rounds alone take most of a minute: `many --quick`.
QUICK = {"axes": ["images", "batch"], "rounds": 2}


@dataclass(frozen=True)
class Growth(Case):
    """One row for each value: the ways of `timings`, named by it."""

    axis: str = ""
    memory: Mapping[str, float] = field(default_factory=dict)  # bytes

    @property
    def best_other(self) -> str | None:
        """None: these are not ways to do the same."""
        return None

    def of_linear(self, name: str) -> tuple[float, ...]:
        """Growth of the seconds over growth of the work, since the smallest value, round by round."""
        least, work = next(iter(self.timings)), AXES[self.axis].work
        more = work(int(name)) / work(int(least))
        pairs = zip(self.timings[name].seconds, self.timings[least].seconds, strict=True)
        return tuple(seconds / first / more for seconds, first in pairs)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this suite."""
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES), help="what grows (default: all)")
    parser.add_argument("--model", choices=MODELS, default="simple_cnn", help="network (default simple_cnn)")
    add_rounds(parser, 3)


def cases(options: argparse.Namespace) -> int:
    """How many cases `measure` will yield."""
    return len(options.axes)


def measure(options: argparse.Namespace) -> Iterator[Growth]:
    """Time every value of an axis in turn."""
    for axis in options.axes:
        made = {str(value): epoch(options.model, Point(**{axis: value}), axis) for value in AXES[axis].values}
        timings = interleave({name: work for name, (work, _) in made.items()}, options.rounds)
        memory = {name: bytes_ for name, (_, bytes_) in made.items()}
        yield Growth(f"{options.model}, {axis}", timings, axis=axis, memory=memory)


def epoch(model: Any, point: Point, axis: str) -> tuple[Work, float]:
    """An epoch of a point, ready to be timed, and the bytes that an update takes."""
    config, splits = experiment(model, point), random_images(point.images, point.side, point.classes)
    one_epoch, memory = epoch_and_memory(config, splits, None)
    seeds = [replace(config, train=replace(config.train, seed=seed, epochs=1)) for seed in range(point.seeds)]

    def whole_lot(count: int) -> None:
        for _ in range(count):
            train_many(seeds, splits=splits)

    return whole_lot if axis == "seeds" else one_epoch, memory


def experiment(model: Any, point: Point) -> Config:
    """Plain SGD on the network at its own width, or at that of the point."""
    config = network_config(model, point.batch)
    model_config = config.model if point.width is None else replace(config.model, width=point.width)
    return replace(config, model=model_config, train=replace(config.train, compilation_cache=False))


def table(cases: Sequence[Growth]) -> str:
    """A row for every value of every axis."""
    rows = []
    for case in cases:
        for name, timing in case.timings.items():
            rows.append([case.axis, f"{int(name):,}", *figures(case, name, timing)])
    head = ["grows", "value", "seconds of an epoch", "of linear", "memory of an update"]
    notes = [f"{case.name}: {told}." for case in cases if (told := disturbed(case))]
    return "\n\n".join([tables.markdown(head, rows), *notes])


def figures(case: Growth, name: str, timing: Timing) -> list[str]:
    """Seconds, their growth, memory."""
    return [shown_time(timing), shown_ratio(case.of_linear(name)), f"{case.memory[name] / 1e6:,.1f} MB"]


def as_json(suite: str, cases: Sequence[Growth]) -> dict[str, Any]:
    """As `benchmarks.tables.as_json`, with the growth of each value."""
    from benchmarks.tables import as_json

    values = as_json(suite, cases)
    for case, kept in zip(cases, values["cases"], strict=True):
        kept["of_linear"] = {name: statistics.median(case.of_linear(name)) for name in case.timings}
    return values
