"""What a run ran on."""

import json
import os
import platform
import subprocess
import sys

import jax

from jax_cifar.backend.threads import cpu_count
from jax_cifar.telemetry import environment
from jax_cifar.telemetry.environment import git_commit, write_environment


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


def test_lines_for_the_console(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    devices = environment.describe_devices()
    assert devices.endswith(f"; CPU cores: {cpu_count()}")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert environment.describe_devices() == f"{devices}; JAX_PLATFORMS=cpu"
    assert f"jax {jax.__version__}" in environment.describe_versions()


def test_several_processes_are_told_which_may_share_a_host(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    devices, _, rest = environment.describe_devices().partition(";")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert environment.describe_devices() == f"{devices} in 2 processes;{rest}"


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
