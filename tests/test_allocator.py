"""Freed memory stays with the process: measured by the page faults of asking for it again."""

import ast
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from jax_cifar import allocator
from jax_cifar.allocator import CHOSEN

ROOT = Path(__file__).parents[1]
SCRIPTS = [path for path in sorted((ROOT / "scripts").glob("[a-z]*.py")) if path.stem != "audit"]  # trains nothing
MEGABYTES = 100
FAULTS_AGAIN = f"""
import resource, threading
from jax_cifar import allocator
allocator.free_memory = lambda: 1 << 60  # whatever else this machine is doing
{{begin}}

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    whole = b"1" * ({MEGABYTES} << 20)
    del whole
    again.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

again = []
for _ in range(2):
    faults()
for _ in range(4):
    thread = threading.Thread(target=faults)
    thread.start()
    thread.join()
print(max(again[1:]))
"""
KEEP = "from jax_cifar.allocator import keep_memory; print(keep_memory())"


def faults_again(begin: str = KEEP, **chosen: str) -> tuple[str, int]:
    """What `begin` prints in a new process, and the most page faults of an array that is allocated once more."""
    free = {name: value for name, value in os.environ.items() if not name.startswith(CHOSEN)}
    code = FAULTS_AGAIN.format(begin=begin)
    done = subprocess.run([sys.executable, "-c", code], env=free | chosen, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kept, faults = done.stdout.split()
    return kept, int(faults)


def test_memory_that_was_freed_is_not_taken_from_the_system_again():
    kept, faults = faults_again()
    if kept == "False":
        pytest.skip("no glibc here, or many cores")
    assert faults < 100


def test_a_script_begins_with_that_whatever_threads_it_has():
    if faults_again()[0] == "False":
        pytest.skip("no glibc here, or many cores")
    assert faults_again("from jax_cifar.process import begin; begin(); print(None)")[1] < 100


@pytest.mark.parametrize("script", [*SCRIPTS, ROOT / "jax_cifar/__main__.py"], ids=lambda path: path.stem)
def test_every_script_begins_so_before_it_imports_anything_else(script):
    _, first, *rest = ast.parse(script.read_text()).body
    assert ast.unparse(first) == "from jax_cifar.process import begin"
    begins = next(i for i, line in enumerate(rest) if ast.unparse(line) == "if __name__ == '__main__':\n    begin()")
    assert all(ast.unparse(line).startswith("from jax_cifar.signals import") for line in rest[:begins])


def test_a_script_within_another_begins_once():
    code = "import threading; from jax_cifar.process import begin; begin(); begin(); print(threading.active_count())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 3  # the main thread, that of the signals, that of the memory


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_who_has_chosen_for_himself_is_left_alone(name):
    assert faults_again(**{name: ""})[0] == "False"


GIVEN_BACK = f"""
import time
from jax_cifar import allocator
allocator.SECONDS_BETWEEN_LOOKS = 0.01
allocator.machine_memory, allocator.free_memory = (lambda: {{there}}), (lambda: {{free}})
print(allocator.keep_memory())
whole = b"1" * ({MEGABYTES} << 20)
del whole
end = time.monotonic() + {{wait}}
while allocator._resident_memory() > {MEGABYTES} << 20 and time.monotonic() < end:
    time.sleep(0.01)
print(allocator._resident_memory() > {MEGABYTES} << 20)
"""


@pytest.mark.parametrize(
    ("there", "free", "wait", "given_back"),
    [(150 << 20, 1 << 40, 5, True), (1 << 40, 1 << 37, 5, True), (1 << 40, 1 << 39, 0.2, False)],
)
def test_where_memory_gets_scarce_what_is_kept_is_given_back(there, free, wait, given_back):
    unset = {name: value for name, value in os.environ.items() if not name.startswith(CHOSEN)}
    code = GIVEN_BACK.format(there=there, free=free, wait=wait)
    done = subprocess.run([sys.executable, "-c", code], env=unset, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kept, holds = done.stdout.split()
    if kept == "False":
        pytest.skip("no glibc here, or many cores")
    assert (holds == "False") == given_back


class Ended(Exception):
    """So many seconds have passed."""


@pytest.mark.parametrize(
    ("held", "free", "looks"),
    [(1e9, 16e9, []), (3e9, 16e9, [1, 181, 361]), (9e9, 16e9, range(1, 401)), (1e9, 3e9, range(1, 401))],
    ids=["little", "much", "most", "scarce"],
)
def test_memory_that_is_not_scarce_is_given_back_as_often_as_costs_next_to_nothing(held, free, looks, monkeypatch):
    now, given_back = 0.0, []

    def sleep(seconds):
        nonlocal now
        now += seconds
        if now > 400:
            raise Ended

    monkeypatch.setattr(allocator, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: now))
    monkeypatch.setattr(allocator, "machine_memory", lambda: 16e9)
    monkeypatch.setattr(allocator, "free_memory", lambda: free)
    monkeypatch.setattr(allocator, "_resident_memory", lambda: held)
    monkeypatch.setattr(allocator, "_kept_by", [SimpleNamespace(malloc_trim=lambda _: given_back.append(now))])
    with pytest.raises(Ended):
        allocator._give_back_now_and_then()
    assert given_back == list(looks)


GAPS = """
from jax_cifar import allocator
kept = allocator.keep_memory()
{begin}
pieces = [b"1" * (3000 + i) for i in range(20000)]
gaps = sum(map(len, pieces[::2]))
del pieces[::2]
{fill}
last = max(map(id, pieces))
after = [b"1" * (3000 + i) for i in range(20000)]
print(kept, sum(id(piece) > last for piece in after) / len(after))
"""
ASKED = """
allocator.ROOM = 1 << 18
held = allocator._resident_memory()
taken = allocator.fill_gaps()
assert 0.8 * gaps < taken < 1.5 * gaps, (gaps, taken)
assert held - allocator._resident_memory() > gaps / 3  # most of their pages are the system's again
assert allocator.fill_gaps() < 0.02 * gaps
"""
COMPILING = "import jax; from jax_cifar.backend import compiler; compiler.LONG = 0"
COMPILED = "jax.jit(lambda x: x + 1).lower(1.0).compile()"


def share_behind_gaps(begin: str, fill: str) -> float:
    """The share of the pieces made after others had left gaps that lies behind all of these; nan where none is kept."""
    free = {name: value for name, value in os.environ.items() if not name.startswith(CHOSEN)}
    code = GAPS.format(begin=begin, fill=fill)
    done = subprocess.run([sys.executable, "-c", code], env=free, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kept, share = done.stdout.split()
    return float(share) if kept == "True" else math.nan


@pytest.mark.parametrize(
    ("begin", "fill"),
    [("", ASKED), (COMPILING, COMPILED)],
    ids=["asked", "compiled"],
)
def test_gaps_that_compiling_leaves_are_not_searched_again(begin, fill):
    if math.isnan(left := share_behind_gaps(begin, "pass")):
        pytest.skip("no glibc here, or many cores")
    assert left < 0.7 < 0.9 < share_behind_gaps(begin, fill)


def test_whoever_compiles_next_has_the_gaps():
    """Else each program of a process would leave its own."""
    begin = f"{COMPILING}; compiler.fill_gaps = lambda: 0"
    left = share_behind_gaps(begin, f"allocator.fill_gaps(); {COMPILED}")
    if math.isnan(left):
        pytest.skip("no glibc here, or many cores")
    assert left < 0.7


MOVED = """
import numpy as np
from jax_cifar import allocator
kept = allocator.keep_memory()
{fill}
call = np.empty(1 << 28, np.uint8)
place = call.ctypes.data
stays = [b"1" * (3000 + i) for i in range(1000)]
del call
call = np.empty((1 << 28) + 64, np.uint8)
print(kept, call.ctypes.data - place)
"""


def test_what_stays_does_not_shut_in_the_memory_of_a_call():
    """The next call has the same again, though it asks for a little more than lies there."""
    free = {name: value for name, value in os.environ.items() if not name.startswith(CHOSEN)}
    moved = {}
    for fill in ("allocator.ROOM = 64; allocator.fill_gaps()", "allocator.fill_gaps()"):
        command = [sys.executable, "-c", MOVED.format(fill=fill)]
        kept, by = subprocess.run(command, env=free, capture_output=True, text=True, check=True).stdout.split()
        if kept == "False":
            pytest.skip("no glibc here, or many cores")
        moved[fill] = int(by)
    without, with_room = moved.values()
    assert with_room < 1 << 20 < 1 << 28 <= without


def test_gaps_are_left_where_no_memory_is_kept():
    code = "from jax_cifar import allocator; print(allocator.keep_memory(), allocator.fill_gaps())"
    chosen = {**os.environ, "GLIBC_TUNABLES": ""}
    done = subprocess.run([sys.executable, "-c", code], env=chosen, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "0"]


def test_a_container_has_no_more_memory_than_it_is_given(monkeypatch, tmp_path):
    """It sees its own group at the root; a job of a cluster is in a group within others, and the least limit counts."""
    groups, job = tmp_path / "cgroup", "slurm/job_1/task_0"
    limits = {2: (str(tmp_path / "unified"), "max"), 1: (str(tmp_path / "memory"), "limit")}
    monkeypatch.setattr(allocator, "GROUP_LIMITS", limits)
    monkeypatch.setattr(allocator, "OWN_GROUPS", str(groups))
    whole = allocator.machine_memory()  # there are none

    for (root, name), line in zip(
        limits.values(), (f"0::/{job}\n", f"9:cpu,memory:/{job}\n8:pids:/other\n"), strict=True
    ):
        for path, limit in (("", "9223372036854771712"), ("slurm/job_1", "1000000"), (job, "max")):
            Path(root, path).mkdir(parents=True, exist_ok=True)
            Path(root, path, name).write_text(f"{limit}\n")
        groups.write_text("")
        assert allocator.machine_memory() == whole
        groups.write_text(line)
        assert allocator.machine_memory() == 1e6 < whole
        Path(root, name).write_text("1000\n")
        groups.write_text("")
        assert allocator.machine_memory() == 1000
        Path(root, name).write_text("max\n")


def test_the_most_memory_of_a_process_is_its_own_and_not_that_of_who_started_it():
    ask = "from jax_cifar.allocator import most_resident_memory as most; {}; print(most())"
    inner = ask.format("pass")
    outer = ask.format(
        f"import subprocess, sys; x = b'1' * ({4 * MEGABYTES} << 20); del x; "
        f"subprocess.run([sys.executable, '-c', {inner!r}], check=True)"
    )
    done = subprocess.run([sys.executable, "-c", outer], capture_output=True, text=True, check=True)
    started, whole = map(float, done.stdout.split())
    assert whole > 4 * MEGABYTES << 20 > 2 * started
