"""How this process gets memory from the system, and whether it gives it back."""

import ctypes
import os
import sys

# glibc's malloc.h: what is freed at the top of the heap stays; nothing has pages of its own; one heap for all threads,
# as a thread's own ends at 64 MiB, and what is larger then has pages of its own all the same.
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8
KEEP = ((TRIM_THRESHOLD, -1), (MMAP_MAX, 0), (ARENA_MAX, 1))
# One heap has one lock. What it costs many threads has not been measured, on two cores it costs less than it saves.
MOST_CORES = 4
# Who sets one of these has chosen for himself.
CHOSEN = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")


def keep_memory() -> bool:
    """Keep what is freed for the next who asks: true with glibc on few cores, where the user has set nothing else.

    Every call of a compiled program takes the memory of its intermediate arrays anew. From the system it comes page by
    page, each with a fault that fills it with zeros, and on a virtual machine one of the host's besides. To be called
    before there are threads, which would get heaps of their own.
    """
    if not sys.platform.startswith("linux") or any(name.startswith(CHOSEN) for name in os.environ):
        return False
    if len(os.sched_getaffinity(0)) > MOST_CORES:
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return all([library.mallopt(parameter, value) for parameter, value in KEEP])
