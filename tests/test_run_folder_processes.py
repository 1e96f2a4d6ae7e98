"""Real processes at one folder and at several: each run has its own, and a dead one leaves no lock."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jax_cifar.run.load import load_run
from jax_cifar.run.lock import LOCK
from jax_cifar.telemetry import read_metrics

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture
def start(tmp_path):
    """Starts scripts/train.py on the small run in `tmp_path`; what is still running at the end is killed."""
    (tmp_path / "small.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT / 'tests')!r})\nfrom small_runs import small_config\n"
        "get_config = small_config\n"
    )
    processes = []

    def start(*options: str) -> subprocess.Popen:
        command = [sys.executable, str(ROOT / "scripts/train.py"), "--config", "small.py", *options]
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def ends(process: subprocess.Popen) -> tuple[int, str]:
    """Exit code, and all that was printed."""
    printed, _ = process.communicate(timeout=180)
    return process.returncode, printed


def wait_for(path: Path, process: subprocess.Popen) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def test_runs_started_at_once_have_a_folder_each_and_of_two_with_one_folder_one_is_refused(start, tmp_path):
    # One command by seed would show nothing if they met: different seeds write different summaries.
    free = [start("--train.seed", str(seed)) for seed in range(3)]
    same = [start("--workdir", "both/run") for _ in range(2)]
    assert [ends(process)[0] for process in free] == [0, 0, 0]
    summaries = [json.loads(path.read_text()) for path in (tmp_path / "runs" / "small").glob("*/summary.json")]
    assert sorted(summary["seed"] for summary in summaries) == [0, 1, 2]
    (_, printed), (code, message) = sorted(map(ends, same))
    assert "test accuracy" in printed and code == 2
    assert re.fullmatch(
        r"error: both/run is in use by process \d+ on \S+ since \S+: wait for it to end, or choose another --workdir\.",
        message.splitlines()[-1],
    )
    for folder in (*(tmp_path / "runs" / "small").iterdir(), tmp_path / "both" / "run"):
        assert [line["step"] for line in read_metrics(folder)] == [2, 4, 6, 6, 8, 10, 12, 12]
        assert not (folder / LOCK).exists()


def test_a_run_is_alone_from_compiling_on_can_be_read_meanwhile_and_goes_on_after_a_kill(start, tmp_path):
    rarely = ("--eval.every", "0", "--checkpoint.every", "10", "--log.every", "100")
    command, folder = ("--workdir", "run", "--train.epochs", "200", *rarely), tmp_path / "run"
    first = start(*command)
    wait_for(folder / LOCK, first)
    assert not (folder / "metrics.jsonl").exists()  # it is still compiling
    before = os.listdir(folder)
    assert LOCK in before
    code, printed = ends(start(*command))
    assert (code, f"is in use by process {first.pid} on " in printed) == (2, True)
    while not any(path.parent.name.isdigit() for path in (folder / "checkpoints").glob("*/manifest.json")):
        assert first.poll() is None
        time.sleep(0.01)
    assert load_run(folder).evaluate("test").count == 500
    assert first.poll() is None and (folder / LOCK).exists()
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert (folder / LOCK).exists()
    again = start(*command)
    assert again.stdout is not None
    printed = []
    for line in again.stdout:
        printed.append(line)
        if line.startswith("resuming at step"):
            again.terminate()
    assert (again.wait(), any("WARNING" in line for line in printed)) == (75, False), printed
    assert not (folder / LOCK).exists()
