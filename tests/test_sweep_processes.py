"""Sweeps by several processes, killed and not: exactly as many trials as asked for, in a file and on a server."""

import contextlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from processes import Signal, run_script

pytestmark = pytest.mark.slow

CONFIG = """
from small_runs import Perceptron, small_config

def get_config():
    return small_config(model=Perceptron(), data={"val_fraction": 0.2})
"""
GRID = ["--grid", "--space", "optim.lr=[0.01,0.02,0.05] optim.momentum=[0.5,0.8,0.9]", "--seeds", "2"]
ENVIRONMENT = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parent)])}


@pytest.fixture
def sweep(tmp_path):
    """Run scripts/sweep.py on a small experiment, in the folder `sweep`."""
    (tmp_path / "few.py").write_text(CONFIG)

    def start(*options, signals=(), workdir="sweep"):
        arguments = ["--config", tmp_path / "few.py", "--workdir", tmp_path / workdir, *GRID, *options]
        return run_script("sweep", arguments, signals, environment=ENVIRONMENT, timeout=600)

    return start


def record(folder):
    return json.loads((folder / "sweep.json").read_text())


def all_trials(url):
    import optuna

    storage = optuna.storages.RDBStorage(url)
    try:
        (name,) = [name for name in optuna.get_all_study_names(storage) if "/" not in name]
        return optuna.load_study(study_name=name, storage=storage).get_trials()
    finally:
        storage.remove_session()
        storage.engine.dispose()


def assert_every_cell_is_finished_once(folder, url, void=0):
    """With one process killed; two that take turns by no lock can begin `void` trials more, which nobody trains."""
    cells = Counter(tuple(trial["setting"].values()) for trial in record(folder)["trials"])
    assert len(cells) == 9 and set(cells.values()) == {1}
    states = Counter(trial.state.name for trial in all_trials(url))
    assert states.keys() == {"COMPLETE", "FAIL"} and states["COMPLETE"] == 9
    assert 1 <= states["FAIL"] <= 1 + void
    assert [run["setting"] for run in record(folder)["winner"]] == [{"train.seed": 1}, {"train.seed": 2}]


def test_a_killed_sweep_goes_on_and_counts_the_trial_that_was_lost_once(sweep, tmp_path):
    assert sweep(signals=[Signal("train", "SIGKILL", 30)]).code == -9
    url = f"sqlite:///{tmp_path / 'sweep' / 'sweep.db'}"
    before = all_trials(url)
    assert Counter(trial.state.name for trial in before)["RUNNING"] == 1 and 1 < len(before) < 9
    ended = sweep()
    assert ended.code == 0, ended.err
    assert_every_cell_is_finished_once(tmp_path / "sweep", url)
    (lost,) = [trial for trial in all_trials(url) if trial.state.name == "FAIL"]
    assert lost.params == before[-1].params
    assert not list((tmp_path / "sweep").glob("process-*"))


def test_ctrl_c_ends_with_75_and_the_command_that_it_names_goes_on(sweep, tmp_path):
    ended = sweep(signals=[Signal("train", "SIGINT", 20, 30.0)])
    assert ended.code == 75 and ended.seconds_to_stop is not None and ended.seconds_to_stop < 10
    (named,) = re.findall(r"To go on: python scripts/sweep\.py (.*)", ended.err)
    again = run_script("sweep", shlex.split(named), (), environment=ENVIRONMENT, timeout=600)
    assert again.code == 0, again.err
    assert len(record(tmp_path / "sweep")["trials"]) == 9


def test_two_processes_share_the_trials_and_one_that_is_killed_leaves_its_own_to_the_other(sweep, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        killed = pool.submit(sweep, signals=[Signal("train", "SIGKILL", 14)])
        other = pool.submit(sweep)
        assert (killed.result().code, other.result().code) == (-9, 0), other.result().err
    url = f"sqlite:///{tmp_path / 'sweep' / 'sweep.db'}"
    assert_every_cell_is_finished_once(tmp_path / "sweep", url)
    workers = {trial.user_attrs["worker"]["lock"] for trial in all_trials(url)}
    assert len(workers) == 2


@pytest.fixture
def postgres(tmp_path_factory):
    """The URL of an empty database on a PostgreSQL server of its own."""
    found = [*Path("/usr/lib/postgresql").glob("*/bin"), *map(Path, filter(None, [shutil.which("initdb")]))]
    assert found, "PostgreSQL is not here: apt-get install postgresql, or brew install postgresql"
    binaries = found[0] if found[0].is_dir() else found[0].parent
    folder = tmp_path_factory.mktemp("postgres")
    # It refuses to run as root.
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    user = {"user": "nobody", "group": "nogroup", "extra_groups": []} if root else {}
    if root:
        shutil.chown(folder, "nobody")
        for above in folder.parents[:3]:
            with contextlib.suppress(PermissionError):
                above.chmod(above.stat().st_mode | 0o011)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data, options = folder / "data", {"check": True, "cwd": folder, "stdout": subprocess.DEVNULL, **user}
    subprocess.run([binaries / "initdb", "-D", data, "-U", "sweeper", "--auth=trust", "--no-sync"], **options)
    command = [binaries / "postgres", "-D", data, "-p", str(port), "-k", folder, "-h", "127.0.0.1", "-F"]
    with (folder / "log").open("w") as log, subprocess.Popen(command, cwd=folder, stderr=log, **user) as server:
        try:
            until = time.monotonic() + 60
            while time.monotonic() < until and server.poll() is None:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                time.sleep(0.1)
            yield f"postgresql+psycopg://sweeper@127.0.0.1:{port}/postgres"
        finally:
            server.terminate()


def test_several_folders_share_a_server_and_a_process_that_is_killed_is_made_up_for(sweep, tmp_path, postgres):
    given = ("--storage", postgres)
    with ThreadPoolExecutor(2) as pool:
        killed = pool.submit(sweep, *given, workdir="here", signals=[Signal("train", "SIGKILL", 4)])
        other = pool.submit(sweep, *given, workdir="there")
        assert (killed.result().code, other.result().code) == (-9, 0), other.result().err
    assert_every_cell_is_finished_once(tmp_path / "there", postgres, void=9)
    assert sweep(*given, workdir="here").code == 0
    assert record(tmp_path / "here")["trials"] == record(tmp_path / "there")["trials"]
