"""XLA's threads on a CPU: where programs keep all of them, convolutions are wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jax_cifar.backend.threads import leave_threads_free

ROOT = Path(__file__).parents[1]
# One convolution 1200 times, of twenty batches in turn; how far the results are from those of the first time.
PROGRAM = """
from concurrent.futures import ThreadPoolExecutor
import jax, jax.numpy as jnp, numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from jax_cifar.backend.compiler import compiler_options
from jax_cifar.backend.mesh import find_devices
from jax_cifar.evaluation.predict import Batches, predict_logits

{begin}
draws, nothing = np.random.default_rng(0), PartitionSpec()
kernel = draws.standard_normal((3, 3, 40, 40), dtype=np.float32) / 19
images = draws.standard_normal((20, 20, 15, 15, 40), dtype=np.float32)


def convolved(images):
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(images, kernel, (1, 1), "VALID", dimension_numbers=layout).sum((1, 2))


def most_off(times, images):
    first = lax.map(convolved, images)
    off = lambda i: jnp.abs(convolved(images[i % 20]) - first[i % 20]).max()
    return lax.pmax(lax.fori_loop(0, times, lambda i, most: jnp.maximum(most, off(i)), jnp.float32(0)), "d")[None]


mesh = jax.make_mesh((jax.device_count(),), ("d",))
each = jax.shard_map(most_off, mesh=mesh, in_specs=nothing, out_specs=nothing, check_vma=False)
program = jax.jit(each, compiler_options=compiler_options()).lower(1200, images).compile()


def predicted(_):
    return float(predict_logits(program, 1200, Batches((jax.device_put(images),), images[:1]))[0])


print(*ThreadPoolExecutor({threads}).map(predicted, range({threads})))
"""
LATER = "jax.config.update('jax_num_cpu_devices', 2); find_devices()"


def most_off(begin: str, devices: int, threads: int) -> float:
    """How far a convolution gets from itself, on so many devices of a CPU, for so many threads that ask at once."""
    # Two of XLA's threads, as on two cores: of many it would take as many who ask.
    asked = {"JAX_NUM_CPU_DEVICES": str(devices), "PJRT_NPROC": "2", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROGRAM.format(begin=begin, threads=threads)]
    done = subprocess.run(command, env=os.environ | asked, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return max(map(float, done.stdout.split()))


@pytest.mark.parametrize("later", [False, True])
def test_devices_of_a_cpu_compute_what_one_does(later):
    assert most_off(LATER if later else "", devices=1 if later else 2, threads=1) == 0


def test_so_they_do_for_several_who_ask_at_once():
    assert most_off("", devices=1, threads=4) == 0


@pytest.mark.parametrize(
    ("devices", "before", "after"),
    [
        (1, {}, {}),
        (-1, {"NPROC": "3"}, {"NPROC": "3"}),
        (8, {}, {"PJRT_NPROC": "16"}),
        (2, {"PJRT_NPROC": "64"}, {"PJRT_NPROC": "64"}),
        (2, {"NPROC": "2"}, {"NPROC": "4"}),
        (2, {"NPROC": "2", "PJRT_NPROC": "1"}, {"NPROC": "2", "PJRT_NPROC": "4"}),
        (2, {"NPROC": "many"}, {"NPROC": "many"}),
        (1, {"XLA_FLAGS": "--xla_a=1 --xla_force_host_platform_device_count=4"}, {"PJRT_NPROC": "8"}),
    ],
)
def test_a_pool_has_two_threads_for_each_of_several_devices(monkeypatch, devices, before, after):
    monkeypatch.setattr("jax_cifar.backend.threads.cpu_count", lambda: 2)
    for name in ("NPROC", "PJRT_NPROC", "XLA_FLAGS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    leave_threads_free(devices)
    assert {name: value for name, value in os.environ.items() if name.endswith("NPROC")} == after
