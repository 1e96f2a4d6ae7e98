"""How much memory there is, how this process gets it from the system, and when it gives it back."""

import contextlib
import ctypes
import functools
import math
import os
import sys
import threading
import time
from collections.abc import Iterator

try:
    import resource
except ImportError:  # Windows
    resource = None

# glibc's malloc.h: what is freed at the top of a heap stays; nothing has pages of its own; and every thread has a heap,
# where glibc would have eight for a core. Whoever shares one waits for its lock, XLA's compiler most of all.
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8
KEEP = ((TRIM_THRESHOLD, -1), (MMAP_MAX, 0), (ARENA_MAX, 1 << 10))
MOST_CORES = 4  # with more, which means more heaps that keep what they once had, it has not been measured
# Who sets one of these has chosen for himself.
CHOSEN = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
# Shares of the memory: from the first on what is kept by this process goes back now and then, above the second, and
# with less than the third free for others, every second.
MUCH_HELD, MOST_HELD, LEAST_FREE, SECONDS_BETWEEN_LOOKS = 1 / 8, 1 / 2, 1 / 4, 1.0
# Who needs again what was given back takes 0.3 s for a GB, or 0.8 where a virtual machine has not got it from its host
# before: with so long between two looks that is a hundredth of the time.
SECONDS_PER_BYTE = 60e-9
# Linux' control groups: those of this process, and by their version where they lie and what they may use together.
OWN_GROUPS = "/proc/self/cgroup"
GROUP_LIMITS = {2: ("/sys/fs/cgroup", "memory.max"), 1: ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")}


@functools.cache
def keep_memory() -> bool:
    """Keep what is freed for the next who asks: true with glibc on few cores, where the user has set nothing else.

    Every call of a compiled program takes the memory of its intermediate arrays anew. From the system it comes page by
    page, each with a fault that fills it with zeros, and on a virtual machine one of the host's besides.

    The heaps of other threads than the main one end at 64 MiB, and what is larger has pages of its own there all the
    same. So the main thread has to ask for it: `backend.compiler.compute_where_memory_is_kept`. To be called before
    JAX is imported.

    What a call has left does not always serve the next one, and with large batches that is much. From `MUCH_HELD` on a
    thread gives back what is free, as often as that costs next to nothing; above `MOST_HELD`, or with less than
    `LEAST_FREE`, at every look. A second call of this function changes nothing.
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
        _kept_by.append(library)
        threading.Thread(target=_give_back_now_and_then, name="memory", daemon=True).start()
    return kept


_kept_by: list[ctypes.CDLL] = []  # glibc, where `keep_memory` has set it


def is_kept() -> bool:
    """Whether `keep_memory` has been called, and keeps it."""
    return bool(_kept_by)


def give_back() -> None:
    """Give back to the system what is free of the memory that `keep_memory` keeps: for a process that has a rest."""
    for library in _kept_by:
        library.malloc_trim(0)


def _give_back_now_and_then() -> None:
    memory, due = machine_memory(), 0.0
    while True:
        time.sleep(SECONDS_BETWEEN_LOOKS)
        held, now = _resident_memory(), time.monotonic()
        scarce = held > MOST_HELD * memory or free_memory() < LEAST_FREE * memory
        if scarce or (held > MUCH_HELD * memory and now >= due):
            give_back()
            due = now + SECONDS_PER_BYTE * held


def machine_memory() -> float:
    """Bytes of memory of this machine, or of the container or the cluster's job that this process is in.

    Infinite where the system does not tell.
    """
    try:
        installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return math.inf  # Windows
    return min([installed, *filter(None, map(_group_limit, _own_groups()))])


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


def _own_groups() -> Iterator[str]:
    """The files that hold the limits of this process's control groups, and of all groups that these lie in."""
    paths = dict.fromkeys(GROUP_LIMITS, "/")  # a container sees its own group there
    with contextlib.suppress(OSError, ValueError), open(OWN_GROUPS) as lines:
        for _, controllers, path in (line.rstrip("\n").split(":", 2) for line in lines):
            if not controllers or "memory" in controllers.split(","):
                paths[1 if controllers else 2] = path
    for version, (root, name) in GROUP_LIMITS.items():
        folders = list(filter(None, paths[version].split("/")))
        yield from ("/".join([root, *folders[:depth], name]) for depth in range(len(folders) + 1))


def _group_limit(file: str) -> int | None:
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
