"""The library as a package: what a wheel holds, and that it works where there is nothing else of this project."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from jax_cifar.files import read_record, shipped

ROOT = Path(__file__).parents[1]
CHECKOUT_ONLY = {"scripts/audit.py", "scripts/benchmark.py"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel, made of a copy: building leaves folders behind."""
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    source.mkdir()
    for name in ("jax_cifar", "torch_ref", "scripts", "configs", "parity_tests", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", place, "."]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=120)
    return next(place.glob("*.whl"))


@pytest.fixture
def installed(wheel, tmp_path):
    """Run the package from a wheel's content, away from the checkout: exit code, standard output and errors."""
    place = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)

    def call(*arguments):
        command = [sys.executable, "-m", "jax_cifar", *map(str, arguments)]
        env = os.environ | {"PYTHONPATH": str(place)}
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)

    return call


def files_below(*folders):
    """Every file that is under version control there, as it would be named in a wheel."""
    listed = {path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()}
    return {path.relative_to(ROOT).as_posix() for path in listed if "__pycache__" not in path.parts}


def test_a_wheel_holds_the_library_the_scripts_and_the_experiments_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    beside = files_below("scripts", "configs") - CHECKOUT_ONLY
    assert held == files_below("jax_cifar", "torch_ref") | {f"jax_cifar/{name}" for name in beside}


def test_without_a_command_all_are_told_and_a_wrong_one_is_refused(installed):
    told = installed()
    assert told.returncode == 0 and told.stderr == ""
    for name in [path.stem for path in (ROOT / "scripts").glob("*.py") if f"scripts/{path.name}" not in CHECKOUT_ONLY]:
        assert f"\n  {name} " in told.stdout
    assert "cifar10_speedrun" in told.stdout and "benchmark" not in told.stdout
    wrong = installed("trian")
    assert (wrong.returncode, wrong.stderr) == (2, "error: trian is no command. Did you mean train?\n")


def test_what_needs_the_repository_says_so(installed):
    refused = installed("report", "variants", "--workdir", "run")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: report variants needs a checkout of the repository: ")


@pytest.mark.slow
def test_a_run_is_trained_and_judged_away_from_the_checkout(installed, tmp_path):
    done = installed("train", "--config", "quickstart", "--train.steps", "20", "--workdir", "run")
    assert done.returncode == 0, done.stderr
    judged = installed("evaluate", "--workdir", "run")
    assert judged.returncode == 0, judged.stderr
    assert f"{read_record(tmp_path / 'run/summary.json')['test_accuracy']:.2%}" in judged.stdout
    predicted = installed("predict", "--workdir", "run", ROOT / "docs/demo.png")
    assert predicted.returncode == 0 and predicted.stdout


def test_in_a_checkout_scripts_and_experiments_lie_beside_the_library():
    assert shipped("scripts") == ROOT / "scripts" and shipped("configs") == ROOT / "configs"
