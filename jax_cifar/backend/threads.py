"""How many threads a CPU computes with."""

import os
import re

NAMES = ("PJRT_NPROC", "NPROC")  # the first of them that is set is how many threads XLA's pool has
FLAG = r"--xla_force_host_platform_device_count=(\d+)"


def cpu_count() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def leave_threads_free(devices: int) -> None:
    """Have XLA's pool hold two threads for each of several devices into which a CPU is divided.

    A device keeps a thread for as long as a program runs. Where that leaves none, nobody takes the tasks that these
    set down for others. After 1024 of them a queue is full, and who adds one does it at once, in the midst of another:
    Eigen's convolutions then pack both into the same place, and are wrong without a word (experiments.md).

    To be called before JAX looks for its devices, as XLA makes its pool then. `devices` are those that JAX's
    configuration asks for; XLA_FLAGS may ask for more.
    """
    devices = max(devices, *map(int, re.findall(FLAG, os.environ.get("XLA_FLAGS", ""))), 1)
    name = next((name for name in NAMES if name in os.environ), NAMES[0])
    threads = os.environ.get(name, str(cpu_count()))
    if devices > 1 and threads.isdecimal():  # of what is none XLA takes no notice
        os.environ[name] = str(max(2 * devices, int(threads)))
