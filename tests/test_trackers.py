"""The examples of docs/trackers.md with the real packages, in an environment of their own."""

import json
import os
import sqlite3
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

from jax_cifar.telemetry import read_metrics

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """A Python with all that this one has, and the extra `trackers`."""
    place = tmp_path_factory.mktemp("trackers")
    venv.create(place)
    (site,) = place.glob("lib/python*/site-packages")
    (site / "below.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["trackers"]
    pip = [sys.executable, "-m", "pip", "--python", place / "bin/python", "install", "--quiet"]
    subprocess.run([*pip, "--disable-pip-version-check", *wanted], check=True, timeout=600)
    return place / "bin/python"


def followed(python, example, folder):
    """Run an example in a folder; what its run logged: figures by part, name and step."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "TRACKIO_DIR": str(folder), "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [python, ROOT / "docs/examples" / example]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "callback" not in done.stdout + done.stderr, done.stderr  # one that fails is a warning
    (run,) = folder.glob("runs/own_network/*")
    lines = [(f"{line['split']}/", line["step"], line) for line in read_metrics(run)]
    return {
        (f"{split}{name}", step, value)
        for split, step, line in lines
        for name, value in line.items()
        if isinstance(value, float)
    }


def test_trackio_has_every_figure_of_the_run(python, tmp_path):
    logged = followed(python, "trackio_callback.py", tmp_path)
    rows = sqlite3.connect(tmp_path / "jax_cifar.db").execute("SELECT step, metrics FROM metrics").fetchall()
    found = {(name, step, value) for step, metrics in rows for name, value in json.loads(metrics).items()}
    assert logged and found == logged


def test_mlflow_has_every_figure_of_the_run_its_configuration_and_its_pictures(python, tmp_path):
    logged = followed(python, "mlflow_callback.py", tmp_path)
    store = sqlite3.connect(tmp_path / "mlflow.db")
    assert logged and set(store.execute("SELECT key, step, value FROM metrics")) == logged
    parameters = dict(store.execute("SELECT key, value FROM params"))
    assert parameters["optim.lr"] == "0.05" and parameters["train.epochs"] == "2.0"
    assert store.execute("SELECT status FROM runs").fetchall() == [("FINISHED",)]
    assert {path.name for path in tmp_path.glob("mlruns/**/plots/*.png")} >= {"loss.png", "confusion_matrix.png"}
