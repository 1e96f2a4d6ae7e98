"""What every script does before it imports anything that takes long."""

from jax_cifar.allocator import keep_memory
from jax_cifar.signals import guard


def begin() -> None:
    """Keep the memory of this process, and guard it against signals."""
    keep_memory()
    guard()
