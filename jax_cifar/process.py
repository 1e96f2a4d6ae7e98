"""What every script does before it imports anything that takes long."""

from jax_cifar.allocator import keep_memory
from jax_cifar.signals import guard


def begin() -> None:
    """Keep the memory of this process, and guard it against signals, in that order: the guard is a thread.

    glibc gives every new thread one of the heaps that there are. Had the guard one of its own, JAX's threads would get
    now that, which cannot hold large blocks, and now the main one: each update would take its memory from the system.
    """
    keep_memory()
    guard()
