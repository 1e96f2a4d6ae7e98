"""How much memory there is, how this process gets it from the system, and when it gives it back."""

import contextlib
import ctypes
import functools
import math
import os
import sys
import threading
import time

try:
    import resource
except ImportError:  # Windows
    resource = None

# glibc's malloc.h: what is freed at the top of the heap stays; nothing has pages of its own; one heap for all threads,
# as a thread's own ends at 64 MiB, and what is larger then has pages of its own all the same.
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8
KEEP = ((TRIM_THRESHOLD, -1), (MMAP_MAX, 0), (ARENA_MAX, 1))
# One heap has one lock. What it costs many threads has not been measured, on two cores it costs less than it saves.
MOST_CORES = 4
# Who sets one of these has chosen for himself.
CHOSEN = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
# Shares of the memory: this process may hold the one, what is kept included, while the other is free for others.
MOST_HELD, LEAST_FREE, SECONDS_BETWEEN_LOOKS = 1 / 8, 1 / 4, 1.0
# What a container may use of the machine: version 2 and version 1 of Linux' control groups.
CONTAINER_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@functools.cache
def keep_memory() -> bool:
    """Keep what is freed for the next who asks: true with glibc on few cores, where the user has set nothing else.

    Every call of a compiled program takes the memory of its intermediate arrays anew. From the system it comes page by
    page, each with a fault that fills it with zeros, and on a virtual machine one of the host's besides. To be called
    before there are threads, which would get heaps of their own.

    What a call has left does not always serve the next one: with large batches the process comes to hold what three or
    four calls need. Above `MOST_HELD`, or with less than `LEAST_FREE`, a thread gives back what is free: while a call
    runs, that is what it does not need. A second call of this function changes nothing.
    """
    if not sys.platform.startswith("linux") or any(name.startswith(CHOSEN) for name in os.environ):
        return False
    if len(os.sched_getaffinity(0)) > MOST_CORES:
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    kept = all([library.mallopt(parameter, value) for parameter, value in KEEP])
    if kept:
        threading.Thread(target=_give_back_if_scarce, args=(library,), name="memory", daemon=True).start()
    return kept


def _give_back_if_scarce(library: ctypes.CDLL) -> None:
    memory = machine_memory()
    while True:
        time.sleep(SECONDS_BETWEEN_LOOKS)
        if _resident_memory() > MOST_HELD * memory or free_memory() < LEAST_FREE * memory:
            library.malloc_trim(0)


def machine_memory() -> float:
    """Bytes of memory of this machine, or of the container this is; infinite where the system does not tell."""
    try:
        installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return math.inf  # Windows
    return min([installed, *filter(None, map(_container_limit, CONTAINER_LIMITS))])


def free_memory() -> float:
    """Bytes that programs could still get of this machine's memory; infinite where the system does not tell."""
    with contextlib.suppress(OSError, StopIteration, ValueError), open("/proc/meminfo") as lines:
        return 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    return math.inf


def most_resident_memory() -> float:
    """The most bytes of memory that this process has had at once; nan where the system does not tell.

    Linux counts in `ru_maxrss` what the process that started this one had, too.
    """
    with contextlib.suppress(OSError, StopIteration, ValueError), open("/proc/self/status") as lines:
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    if resource is None:
        return math.nan
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _container_limit(file: str) -> int | None:
    try:
        with open(file) as limit:
            return int(limit.read())
    except (OSError, ValueError):  # no such group, or "max"
        return None


def _resident_memory() -> float:
    """Bytes of memory of its own that this process has by now; 0 where the system does not tell."""
    with contextlib.suppress(OSError, ValueError), open("/proc/self/statm") as file:
        _, resident, shared, *_ = map(int, file.read().split())
        return (resident - shared) * os.sysconf("SC_PAGE_SIZE")
    return 0
