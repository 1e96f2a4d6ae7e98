"""Several processes train as one: the same numbers, one folder, one end for all."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jax_cifar import load_run
from jax_cifar.backend import hosts
from jax_cifar.config import DistributedConfig
from jax_cifar.errors import ConfigError
from jax_cifar.telemetry import read_metrics

ROOT = Path(__file__).parents[1]
CONFIG = """
from small_runs import small_config
def get_config():
    train, others = {"steps": 6, "batch_size": 8}, {"checkpoint": {"every": 0.5}, "log": {"every": 2}}
    judged = {"batch_size": 33, "tta": "unsure"}
    return small_config(train=train, eval=judged, schedule={"warmup": 0.0}, **others)
"""


# The same, and after the first updates nothing may be compiled, or sent to a device by the way.
GUARDED = f"""{CONFIG}
import jax
from jax_cifar.training.session import Session
advance = Session.advance
def guarded(self, state, step, *arguments):
    if step == 0:
        return advance(self, state, step, *arguments)
    with jax.transfer_guard("disallow"), jax.log_compiles():
        return advance(self, state, step, *arguments)
Session.advance = guarded
"""


# The same with the training images in parts, as they are where they are large for a device.
IN_PARTS = f"""{CONFIG}
from jax_cifar.backend import images
images.WHOLE_SHARE = 0
"""


GLOO = re.compile(r"\[Gloo\]|peer ranks|^\d*$")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Processes:
    """So many processes of scripts/train.py, with so many devices each, that train one run."""

    def __init__(self, folder, count, devices, *words, each=None, config=CONFIG):
        (folder / "experiment.py").write_text(config)
        where, self.running = f"127.0.0.1:{free_port()}", []
        for i in range(count):
            command = [sys.executable, "scripts/train.py", "--config", folder / "experiment.py", *words]
            if count > 1:
                command += ["--distributed.coordinator", where, "--distributed.num-processes", str(count)]
                command += ["--distributed.process-id", str(i)]
            env = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT}/tests"}
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            command += (each or {}).get(i, [])
            self.running.append(subprocess.Popen([*map(str, command)], cwd=ROOT, env=env, **pipes))

    def until(self, process, text):
        """Read the output of a process up to a line with this text."""
        for line in self.running[process].stdout:
            if text in line:
                return
        raise AssertionError(self.running[process].stderr.read())

    def ends(self, seconds=240):
        """Exit code and errors of each; Gloo's own remarks are left out, which its threads write at once."""
        found = []
        for process in self.running:
            out, errors = process.communicate(timeout=seconds)
            lines = f"{out}{errors}".splitlines()
            found.append((process.returncode, [line for line in lines if not GLOO.search(line)]))
        return found


def trained(folder, count, devices, *words, config=CONFIG):
    ends = Processes(folder, count, devices, "--workdir", folder / "run", *words, config=config).ends()
    assert [code for code, _ in ends] == [0] * count, [lines[-3:] for _, lines in ends]
    return ends


def figures(folder):
    """What the log of a run says, without times."""
    names = ("step", "split", "loss", "accuracy", "gradient_norm", "update_ratio")
    return [{name: line.get(name) for name in names} for line in read_metrics(folder)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process with four devices."""
    folder = tmp_path_factory.mktemp("alone")
    trained(folder, 1, 4)
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "devices", "config"), [(2, 2, GUARDED), (4, 1, CONFIG), (2, 2, IN_PARTS)], ids=["2x2", "4x1", "parts"]
)
def test_processes_train_as_one_and_one_of_them_writes(alone, tmp_path, count, devices, config):
    (_, said), *others = trained(tmp_path, count, devices, config=config)
    assert any(f"4 x cpu in {count} processes" in line for line in said)
    assert [lines for _, lines in others] == [[]] * (count - 1)
    assert not any("ompiling" in line for line in said)
    here, there = figures(tmp_path / "run"), figures(alone)
    assert [(line["step"], line["split"]) for line in here] == [(line["step"], line["split"]) for line in there]
    for ours, theirs in zip(here, there, strict=True):
        for name in ("loss", "accuracy", "gradient_norm", "update_ratio"):
            assert ours[name] == (theirs[name] if theirs[name] is None else pytest.approx(theirs[name], rel=1e-5))
    assert sorted(os.listdir(tmp_path / "run")) == sorted(os.listdir(alone))
    images = np.random.default_rng(0).integers(0, 256, (20, *load_run(alone).image_shape), np.uint8)
    np.testing.assert_allclose(load_run(tmp_path / "run").logits(images), load_run(alone).logits(images), atol=1e-4)


@pytest.mark.slow
def test_a_signal_to_one_stops_all_and_another_number_of_processes_goes_on(alone, tmp_path):
    words = ["--workdir", tmp_path / "run", "--train.steps", "600", "--checkpoint.every", "1000"]
    both = Processes(tmp_path, 2, 2, *words)
    both.until(0, "train loss")
    both.running[1].send_signal(signal.SIGTERM)
    for code, lines in both.ends():
        assert code == 75, "\n".join(lines)
        assert any("Stopped by SIGTERM at step" in line and f"--workdir {tmp_path / 'run'}" in line for line in lines)
    step = load_run(tmp_path / "run").step
    assert 0 < step < 600
    (_, lines), *_ = trained(tmp_path, 1, 4, "--train.steps", "600", "--checkpoint.every", "1000")
    assert any(f"resuming at step {step:,} of 600" in line for line in lines)
    again = trained(tmp_path, 2, 2, "--train.steps", "600", "--checkpoint.every", "1000")  # nothing is left to do
    assert any("test accuracy" in line for line in again[0][1])


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_others(tmp_path):
    both = Processes(tmp_path, 2, 1, "--workdir", tmp_path / "run", "--train.steps", "100000")
    both.until(0, "train loss")
    both.running[1].kill()
    code, lines = both.ends(hosts.HEARTBEAT_SECONDS + 60)[0]
    # As JAX has it where nothing was being sent.
    told = "Another process of this run has ended" if code == 75 else "another task died"
    assert code in (75, -signal.SIGABRT) and any(told in line for line in lines), lines


@pytest.mark.slow
def test_what_is_wrong_in_one_process_ends_all_with_a_message(tmp_path):
    words = ["--workdir", tmp_path / "run"]
    differing = Processes(tmp_path, 2, 1, *words, each={1: ["--optim.lr", "0.3"]}).ends()
    told = "error: The processes of this run differ in their configuration or code: start all with the same command."
    assert differing == [(2, [*differing[0][1][:-1], told]), (2, [told])]
    (tmp_path / "run").write_text("in the way")
    taken = Processes(tmp_path, 2, 1, *words).ends()
    assert [code for code, _ in taken] == [2, 2]
    assert "is a file, not a folder" in taken[0][1][-1]
    assert taken[1][1] == ["error: Process 0 of this run has ended with an error: see what it says."]


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, False),
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_NTASKS": "4"}, False),  # a script of sbatch, which has started one process
        ({"SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2"}, True),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
    ],
    ids=str,
)
def test_launchers_are_known_by_what_they_set(variables, found, monkeypatch):
    for name in (*hosts.COUNTS, *hosts.TPU_HOSTS, "KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert hosts.started_by_launcher() is found


def test_half_of_what_is_needed_is_refused_and_one_process_joins_nothing(monkeypatch):
    with pytest.raises(ConfigError, match="belong together: give all three"):
        hosts.connect(DistributedConfig(coordinator="localhost:1234", num_processes=2))
    with pytest.raises(ConfigError, match=r"process_id = 2 is not allowed: of 2 processes the last is 1"):
        DistributedConfig(num_processes=2, process_id=2)
    with pytest.raises(ConfigError, match=r"coordinator = 'localhost' is not allowed: it must be HOST:PORT"):
        DistributedConfig(coordinator="localhost")
    jax.devices()
    with pytest.raises(ConfigError, match=r"before JAX is asked for devices, and .*speedrun\.py:94"):
        hosts.connect(DistributedConfig(coordinator=f"localhost:{free_port()}", num_processes=2, process_id=0))
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    hosts.connect(DistributedConfig(num_processes=1))
    assert not hosts.several()


def test_alone_nothing_is_sent():
    assert hosts.on_main(lambda: 3) == hosts.together(lambda: 3) == hosts.least(3) == hosts.greatest(3) == 3
    with pytest.raises(ConfigError, match="as it is"):
        hosts.on_main(lambda: hosts._outcome({"error": "ConfigError", "message": "as it is"}))
    assert json.loads(json.dumps(hosts._attempt(lambda: [1, {"a": None}]))) == {"value": [1, {"a": None}]}
