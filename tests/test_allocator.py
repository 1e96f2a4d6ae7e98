"""Freed memory stays with the process: measured by the page faults of asking for it again."""

import ast
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
import resource
from jax_cifar import allocator
allocator.free_memory = lambda: 1 << 60  # whatever else this machine is doing
{{begin}}
def use():
    return b"1" * ({MEGABYTES} << 20)
{{define}}
again = []
for _ in range(9):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    use()
    again.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sorted(again)[4])  # what is small and stays may take the place of one, whose next is new
"""
PROGRAM = f"""
from jax_cifar.backend import compiler
import jax, jax.numpy as jnp
program = jax.jit(lambda x: jax.lax.optimization_barrier(jnp.full({MEGABYTES} << 19, x))[::2].sum())
one = jax.block_until_ready(jnp.float32(1))  # else the call may wait for it in one of XLA's threads
def use():
    program(one).block_until_ready()
"""
KEEP = "from jax_cifar.allocator import keep_memory; print(keep_memory())"


def faults_again(begin: str = KEEP, define: str = "", **chosen: str) -> tuple[str, int]:
    """What `begin` prints in a new process, and the page faults of most arrays that are allocated once more."""
    free = {name: value for name, value in os.environ.items() if not name.startswith(CHOSEN)}
    code = FAULTS_AGAIN.format(begin=begin, define=define)
    done = subprocess.run([sys.executable, "-c", code], env=free | chosen, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kept, faults = done.stdout.split()
    return kept, int(faults)


def test_memory_that_was_freed_is_not_taken_from_the_system_again():
    kept, faults = faults_again()
    if kept == "False":
        pytest.skip("no glibc here, or many cores")
    assert faults < 100


@pytest.mark.parametrize("define", ["", PROGRAM], ids=["array", "program"])
def test_a_script_begins_with_that_and_so_does_what_its_programs_ask_for(define):
    if faults_again()[0] == "False":
        pytest.skip("no glibc here, or many cores")
    assert faults_again("from jax_cifar.process import begin; begin(); print(None)", define)[1] < 100


HEAPS = """
import ctypes, threading
from jax_cifar.allocator import keep_memory
kept, all_there, pieces = keep_memory(), threading.Barrier(41), []
def ask():
    pieces.append(ctypes.create_string_buffer(3000))
    all_there.wait()
for _ in range(40):
    threading.Thread(target=ask).start()
all_there.wait()
print(kept, len({ctypes.addressof(piece) >> 26 for piece in pieces}))
"""


def test_no_thread_waits_for_the_lock_of_anothers_heap():
    """Each has its own, of 64 MiB, where glibc would have eight for a core."""
    free = {name: value for name, value in os.environ.items() if not name.startswith(CHOSEN)}
    command = [sys.executable, "-c", HEAPS]
    kept, heaps = subprocess.run(command, env=free, capture_output=True, text=True, check=True).stdout.split()
    if kept == "False":
        pytest.skip("no glibc here, or many cores")
    assert heaps == "40"


@pytest.mark.parametrize("script", [*SCRIPTS, ROOT / "jax_cifar/__main__.py"], ids=lambda path: path.stem)
def test_every_script_begins_so_before_it_imports_anything_else(script):
    _, first, *rest = ast.parse(script.read_text()).body
    assert ast.unparse(first) == "from jax_cifar.process import begin"
    begins = next(i for i, line in enumerate(rest) if ast.unparse(line) == "if __name__ == '__main__':\n    begin()")
    assert all(ast.unparse(line).startswith("from jax_cifar.signals import") for line in rest[:begins])


def test_what_tries_a_batch_size_keeps_memory_as_the_training_will():
    code = """
import runpy, sys
import jax_cifar.allocator
sys.argv = ["batch_probe", "no number", "0", "0"]
try:
    runpy.run_module("jax_cifar.lab.batch_probe", run_name="__main__")
except ValueError:
    import jax
    print(jax_cifar.allocator.is_kept(), jax.config.values["jax_cpu_enable_async_dispatch"])
"""
    free = {name: value for name, value in os.environ.items() if not name.startswith(CHOSEN)}
    done = subprocess.run([sys.executable, "-c", code], env=free, capture_output=True, text=True, check=True)
    kept, asynchronous = done.stdout.split()
    assert (kept == "True") == (asynchronous == "False")


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
