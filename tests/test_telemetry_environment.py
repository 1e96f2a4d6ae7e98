"""What a run ran on, on machines that are only imagined."""

import json
import os
import platform
import subprocess
import sys

import jax
import pytest

from jax_cifar.telemetry import environment
from jax_cifar.telemetry.environment import NvidiaGpu, find_nvidia_gpu, git_commit, gpu_advice, write_environment

MODULE = "NVRM version: NVIDIA UNIX {}  {}  Release Build  (dvs-builder)\nGCC version:  gcc version 12.3.0\n"


def make_machine(root, version=None, device=True):
    (root / "proc/driver/nvidia").mkdir(parents=True)
    (root / "dev").mkdir()
    if version is not None:
        (root / "proc/driver/nvidia/version").write_text(version)
    if device:
        (root / "dev/nvidia0").touch()
    return root


def put_command(folder, monkeypatch, name, script):
    folder.mkdir()
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_environment_json(tmp_path):
    path = write_environment(tmp_path / "run")
    values = json.loads(path.read_text())
    assert path == tmp_path / "run" / "environment.json"
    assert os.listdir(path.parent) == ["environment.json"]
    assert values["versions"]["python"] == platform.python_version()
    assert values["versions"]["jax"] == jax.__version__
    assert {"jaxlib", "flax", "optax", "orbax", "numpy"} <= set(values["versions"])
    assert sum(values["devices"].values()) == values["device_count"] == jax.device_count()
    assert values["cpu_count"] >= 1
    assert values["argv"] == sys.argv


def test_lines_for_the_console():
    assert environment.describe_devices().endswith(f"; CPU cores: {environment.cpu_count()}")
    assert f"jax {jax.__version__}" in environment.describe_versions()


def test_a_package_that_is_not_installed_is_left_out(monkeypatch):
    monkeypatch.setitem(environment.PACKAGES, "ghost", "no-such-distribution")
    assert "ghost" not in environment.package_versions()


def git(root, *arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    return subprocess.run(["git", "-C", str(root), *identity, *arguments], check=True, capture_output=True, text=True)


def test_commit_and_whether_files_differ_from_it(tmp_path):
    git(tmp_path, "init", "-q")
    assert git_commit(tmp_path) is None
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-q", "-m", "first")
    git(tmp_path, "tag", "-a", "v1", "-m", "not the commit")
    commit = git(tmp_path, "rev-parse", "HEAD").stdout.strip()
    assert git_commit(tmp_path) == commit
    (tmp_path / "file").write_text("2")
    assert git_commit(tmp_path) == f"{commit}-dirty"
    (tmp_path / "inside").mkdir()
    assert git_commit(tmp_path / "inside") is None


def test_no_git_is_no_commit(tmp_path, monkeypatch):
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit(tmp_path) is None


@pytest.mark.parametrize(
    ("module", "version", "driver"),
    [("x86_64 Kernel Module", "535.129.03", 535), ("Open Kernel Module for x86_64", "580.65.06", 580)],
)
def test_gpu_by_its_device_file_and_driver(tmp_path, monkeypatch, module, version, driver):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_nvidia_gpu(make_machine(tmp_path / "root", MODULE.format(module, version))) == NvidiaGpu(driver, None)


def test_gpu_of_an_unknown_driver(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_nvidia_gpu(make_machine(tmp_path / "root")) == NvidiaGpu(None, None)


def test_a_container_that_only_sees_the_hosts_driver_has_no_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_nvidia_gpu(make_machine(tmp_path / "root", MODULE.format("x", "580.1"), device=False)) is None


def test_gpu_by_nvidia_smi(tmp_path, monkeypatch):
    put_command(tmp_path / "bin", monkeypatch, "nvidia-smi", "echo '580.65.06, 7.0'; echo '580.65.06, 9.0'")
    assert find_nvidia_gpu(tmp_path) == NvidiaGpu(580, 7.0)


def test_nvidia_smi_without_a_gpu(tmp_path, monkeypatch):
    put_command(tmp_path / "bin", monkeypatch, "nvidia-smi", "echo '580.65.06, 9.0'; exit 9")
    assert find_nvidia_gpu(tmp_path) is None


@pytest.mark.parametrize(
    ("gpu", "extra"),
    [
        (NvidiaGpu(580, 9.0), "cuda13"),
        (NvidiaGpu(None, None), "cuda13"),
        (NvidiaGpu(580, None), "cuda13"),
        (NvidiaGpu(575, 9.0), "cuda12"),
        (NvidiaGpu(580, 7.0), "cuda12"),
    ],
)
def test_the_pip_line_fits_driver_and_gpu(gpu, extra):
    assert str(gpu_advice("cpu", gpu, {})).endswith(f'pip install -U "jax[{extra}]"')


@pytest.mark.parametrize(
    ("name", "value"), [("JAX_PLATFORMS", "cpu"), ("CUDA_VISIBLE_DEVICES", ""), ("CUDA_VISIBLE_DEVICES", "-1")]
)
def test_a_hidden_gpu_needs_no_pip(name, value):
    advice = str(gpu_advice("cpu", NvidiaGpu(580, 9.0), {name: value}))
    assert f"{name}={value!r}" in advice
    assert "pip" not in advice


def test_no_advice_where_nothing_is_amiss():
    assert gpu_advice("gpu", NvidiaGpu(580, 9.0), {}) is None
    assert gpu_advice("tpu", None, {}) is None
    assert gpu_advice("cpu", None, {}) is None
    harmless = {"CUDA_VISIBLE_DEVICES": "0", "JAX_PLATFORMS": "cuda,cpu"}
    assert "pip" in str(gpu_advice("cpu", NvidiaGpu(580, 9.0), harmless))


def test_the_warning_asks_this_machine(monkeypatch):
    monkeypatch.setattr(environment, "find_nvidia_gpu", lambda: NvidiaGpu(580, 9.0))
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert "jax[cuda13]" in str(environment.gpu_warning())
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(environment, "find_nvidia_gpu", pytest.fail)  # where all is well, nothing is searched
    assert environment.gpu_warning() is None
