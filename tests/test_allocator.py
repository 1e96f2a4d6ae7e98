"""Freed memory stays with the process: measured by the page faults of asking for it again."""

import os
import subprocess
import sys

import pytest

from jax_cifar.allocator import CHOSEN

MEGABYTES = 100
FAULTS_AGAIN = f"""
import resource
from jax_cifar.allocator import keep_memory
print(keep_memory())
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    whole = b"1" * ({MEGABYTES} << 20)
    del whole
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults_again(**chosen: str) -> tuple[str, int]:
    """What `keep_memory` returns in a new process, and the page faults of an array that is allocated a second time."""
    free = {name: value for name, value in os.environ.items() if not name.startswith(CHOSEN)}
    done = subprocess.run([sys.executable, "-c", FAULTS_AGAIN], env=free | chosen, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kept, faults = done.stdout.split()
    return kept, int(faults)


def test_memory_that_was_freed_is_not_taken_from_the_system_again():
    kept, faults = faults_again()
    if kept == "False":
        pytest.skip("no glibc here, or many cores")
    assert faults < 100


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_who_has_chosen_for_himself_is_left_alone(name):
    assert faults_again(**{name: ""})[0] == "False"
