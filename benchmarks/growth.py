"""How cost grows: seconds of an epoch, and memory, from a small to a large value of one thing at a time.

Everything else stays at a batch of 128 from 1,024 random images of 32 x 32 pixels in 10 classes. `of linear` is how
much longer an epoch takes than with the smallest value, over how much more work there is: 1.00 is linear, less is
better. The work of `side` is its square, that of `width` too (a convolution reads as many channels as it writes);
`batch` and `classes` leave it as it is. `seeds` are whole calls of `train_many`, an epoch each, tracing and compiling
included. Memory is the compiler's figure for an update, training images and state included.
"""

import argparse
import dataclasses
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.networks import network_config
from benchmarks.step import MODELS
from benchmarks.tables import disturbed, shown_ratio, shown_time
from benchmarks.timing import Case, Timing, Work, interleave
from jax_cifar.config import Config
from jax_cifar.data import Dataset, Splits
from jax_cifar.lab import tables
from jax_cifar.run.clock import Clock
from jax_cifar.training.many import choose_way, train_many
from jax_cifar.training.replicas import make_replicas
from jax_cifar.training.session import Session


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
# What --quick asks for where nothing else is said.
QUICK = {"axes": ["images", "batch", "seeds"], "rounds": 2}


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
    parser.set_defaults(rounds=3)


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
    config, splits = experiment(model, point), random_images(point)
    seeds = [dataclasses.replace(config, train=dataclasses.replace(config.train, seed=i)) for i in range(point.seeds)]
    session = Session(config, splits, make_replicas(config, choose_way(config, point.seeds), point.seeds), Clock())
    state = session.start(seeds[: session.replicas.size])
    session.compile(state)

    def whole_lot(count: int) -> None:
        for _ in range(count):
            train_many(seeds, splits=splits)

    def one_epoch(count: int) -> None:
        # Updates beyond the plan's last take the last entry of its tables, which are constant.
        nonlocal state
        for _ in range(count):
            state, _ = session.advance(state, 0)
        jax.block_until_ready(state)

    return whole_lot if axis == "seeds" else one_epoch, session.memory


def experiment(model: Any, point: Point) -> Config:
    """An epoch of plain SGD, with nothing but training in it."""
    config = network_config(model, point.batch)
    width = config.model.width if point.width is None else point.width
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, width=width),
        train=dataclasses.replace(config.train, epochs=1, compilation_cache=False),
        log=dataclasses.replace(config.log, every=point.images),
    )


def random_images(point: Point) -> Splits:
    """Random images and labels; what they show does not change the time."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (point.images, point.side, point.side, 3), np.uint8)
    part = Dataset(images, rng.integers(0, point.classes, point.images, np.int32))
    names = tuple(map(str, range(point.classes)))
    return Splits("random", part, part.take(np.arange(1)), None, names, "drawn on the spot")


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
