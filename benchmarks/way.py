"""One way to train or run a network, in a process of its own.

In one process the ways get in each other's way: beside three of PyTorch's, which had left its memory in pieces, an
update of ResNet-50 took twice as long as beside one (experiments.md, 30 November).
"""

from jax_cifar.process import begin

if __name__ == "__main__":
    begin()  # as every script does, before all that takes long to import

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

from benchmarks.networks import (
    What,
    jax_inference,
    jax_train_step,
    network_config,
    random_batch,
    torch_inference,
    torch_train_step,
)
from benchmarks.processes import serve, worker
from benchmarks.timing import Work
from benchmarks.trainings import JAX
from jax_cifar.config import Config, ModelName
from jax_cifar.config.files import load_config


class Subject(NamedTuple):
    """What is timed: a network at its own size, or that of a config file."""

    kind: Literal["model", "config"]
    name: str
    batch: int

    def config(self) -> Config:
        """Its experiment, with batches of that size."""
        if self.kind == "model":
            model: ModelName = self.name  # pyright: ignore[reportAssignmentType]
            return network_config(model, self.batch)
        config = load_config(self.name)
        return replace(config, train=replace(config.train, batch_size=self.batch))


def make(way: str, what: What, config: Config) -> Work:
    """The work of one way, in this process."""
    batch = random_batch(config.train.batch_size)
    if way == JAX:
        return {"train": jax_train_step, "inference": jax_inference}[what](config, batch)
    return {"train": torch_train_step, "inference": torch_inference}[what](config, batch, way)


@contextlib.contextmanager
def in_processes(ways: Sequence[str], what: What, subject: Subject) -> Iterator[dict[str, Work]]:
    """Inside, the work of every way in a process of its own, which ends with the block."""
    with contextlib.ExitStack() as stack:
        yield {
            way: stack.enter_context(worker(["-m", "benchmarks.way", way, what, *map(str, subject)], os.environ))
            for way in ways
        }


if __name__ == "__main__":
    way, what, kind, name, batch = sys.argv[1:]
    serve(make(way, what, Subject(kind, name, int(batch)).config()))  # pyright: ignore[reportArgumentType]
