"""One batch size tried in a process of its own, which may run out of memory without harm: `find_batch_size` starts it.

python -m jax_cifar.lab.batch_probe BATCH BYTES MARGIN --config FILE [overrides]

A line of JSON for what the compiler says, and one for what running showed; the second is missing where the first is
too much. BATCH 0 is the configuration's own; BYTES 0 what there is.
"""

from jax_cifar.allocator import free_memory, keep_memory, machine_memory, most_resident_memory

if __name__ == "__main__":
    keep_memory()  # as the training will, which does so before it imports JAX

import dataclasses
import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import jax

from jax_cifar.backend.compiler import compilation_cache
from jax_cifar.cli import ExperimentParser, run
from jax_cifar.config import Config, ScheduleConfig
from jax_cifar.data import load_data
from jax_cifar.errors import is_out_of_memory
from jax_cifar.run.clock import Clock
from jax_cifar.training.replicas import one_run
from jax_cifar.training.session import Session

UPDATES = 2  # after one more, which takes its memory for the first time
LOOK_SECONDS = 0.01  # in which a hundred megabytes may be written
MARK = "probe: "
TOO_MUCH = 3  # exit code
SLOWEST = 60.0  # seconds: what takes longer for an update is of no use, however much memory there is


def main(arguments: Sequence[str]) -> None:
    """Compile and run a few updates, and print what they took."""
    batch, limit, margin = int(arguments[0]), float(arguments[1]), float(arguments[2])
    _, config = ExperimentParser(None).read(arguments[3:])
    config = probed(config, batch)
    there = limit or memory_there()
    bound_memory((1 - margin) * there)
    try:
        probe(config, there, margin)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        sys.exit(TOO_MUCH)


def probe(config: Config, there: float, margin: float) -> None:
    """Print the compiler's figure; where it leaves the margin, run, and print what that took."""
    with compilation_cache(config):
        splits, replicas = load_data(config.data), one_run(config)
        session = Session(config, splits, replicas, Clock())
        state = session.start([config])
        session.compile(state, bounded=False)
    parts = replicas.mesh.size * config.optim.accumulate
    tell(batch=config.train.batch_size, there=there, needed=session.memory, parts=parts, images=len(splits.train))
    if session.memory > (1 - margin) * there:
        return
    seconds = []
    for step in range(1 + UPDATES):
        begin = time.perf_counter()
        state, _ = session.advance(state, step)
        seconds.append(time.perf_counter() - begin)
    tell(seconds=min(seconds[1:]), measured=memory_taken())


def probed(config: Config, batch: int) -> Config:
    """`config` for a few updates of so many images, as large as they get, and nothing in between."""
    largest = max((side for side, _ in config.train.resolutions), default=None)
    train = dataclasses.replace(
        config.train,
        batch_size=batch or config.train.batch_size,
        steps=1 + UPDATES,
        resolutions=() if largest is None else ((largest, 1.0),),
        patience=0,
    )
    return dataclasses.replace(
        config,
        train=train,
        schedule=ScheduleConfig(name="constant"),
        eval=dataclasses.replace(config.eval, every=0.0),
        checkpoint=dataclasses.replace(config.checkpoint, every=0.0),
        log=dataclasses.replace(config.log, every=1),
    )


def memory_there() -> float:
    """Bytes that a device has, or that are free in this machine's memory where that is the device."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit") or min(machine_memory(), free_memory())


def bound_memory(there: float) -> None:
    """End this process once it holds more of the machine's memory than there is for it, by a thread that watches."""

    def watch() -> None:
        while not memory_taken() > there:  # nan where the system does not tell
            time.sleep(LOOK_SECONDS)
        os._exit(TOO_MUCH)

    if jax.default_backend() == "cpu":
        threading.Thread(target=watch, name="memory", daemon=True).start()


def memory_taken() -> float:
    """The most bytes that were in use: on a CPU of the whole process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use") or most_resident_memory()


def tell(**values: Any) -> None:
    """Print a line of JSON, known among whatever a config file prints."""
    print(f"{MARK}{json.dumps(values)}", flush=True)


if __name__ == "__main__":
    run(main)
