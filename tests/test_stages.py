"""Signals at every stage of the scripts' work: each ends as promised, within seconds. Real processes."""

import shutil
from pathlib import Path

import pytest
from processes import ROOT, Signal, run_script

from jax_cifar.run.load import load_run

CONFIG = """
import sys
sys.path.insert(0, {tests!r})
from small_runs import small_config
get_config = lambda: small_config(log={{"tensorboard": False, "plots": True}}, eval={{"every": 0.5}})
"""
AT_ONCE = ("import numpy", "import jax", "import flax", "data", "start", "folder", "compile")
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
LONG = 30.0  # seconds that a stage would go on for
SOON = 8.0  # seconds in which a process has to be gone on a machine that has other things to do


@pytest.fixture
def config(tmp_path) -> Path:
    """A config file of a run of seconds, in a folder with a space."""
    path = tmp_path / "a b" / "small.py"
    path.parent.mkdir()
    path.write_text(CONFIG.format(tests=str(ROOT / "tests")))
    return path


def one_line(text: str) -> str:
    (line,) = text.splitlines()
    return line


@pytest.mark.slow
@pytest.mark.parametrize("stage", AT_ONCE)
def test_training_ends_at_once_where_there_is_nothing_to_save(config, tmp_path, stage):
    name = NAMES[AT_ONCE.index(stage) % len(NAMES)]
    ended = run_script("train", ["--config", config, "--workdir", tmp_path / "run"], [Signal(stage, name, 1, LONG)])
    assert (ended.code, one_line(ended.err)) == (75, f"Stopped by {name}. There was nothing to save.")
    assert ended.seconds_to_stop is not None and ended.seconds_to_stop < SOON
    assert not [path for path in (tmp_path).rglob("*.unfinished")]


@pytest.mark.slow
def test_training_saves_what_there_is_and_the_same_command_goes_on(config, tmp_path):
    assert run_script("train", ["--config", config, "--workdir", tmp_path / "whole"]).code == 0
    whole = load_run(tmp_path / "whole").evaluate("test").to_dict()
    for stage, count, pause in (
        ("train", 3, 0),
        ("evaluate", 2, 0),
        ("save", 1, 0.5),
        ("final", 1, LONG),
        ("draw", 1, LONG),
    ):
        folder = tmp_path / f"stopped in {stage}"
        command = ["--config", config, "--workdir", folder]
        ended = run_script("train", command, [Signal(stage, "SIGTERM", count, pause)])
        assert ended.code == 75, (stage, ended)
        assert ended.seconds_to_stop is not None and ended.seconds_to_stop < SOON, stage
        assert ended.err.splitlines()[-1].endswith(f"--workdir '{folder}'"), (stage, ended)
        assert ("There was nothing to save" in ended.err, "Traceback" in ended.err) == (False, False)
        assert (folder / "summary.json").exists() is False
        assert run_script("train", command).code == 0
        assert load_run(folder).evaluate("test").to_dict() == whole, stage


@pytest.mark.slow
def test_the_second_signal_is_told_what_it_waits_for_and_the_third_ends_at_once(config, tmp_path):
    command = ["--config", config, "--workdir", tmp_path / "run", "--train.epochs", "30"]
    pauses = [Signal("save", "SIGTERM", 1, 1.0), Signal("save", "SIGINT", 1, 1.0), Signal("save", "SIGTERM", 1, LONG)]
    ended = run_script("train", [*command, "--checkpoint.every", "1"], pauses)
    first, second, third = ended.err.splitlines()
    assert ended.code == 75
    assert first == "SIGTERM: stopping after the update under way, then saving. A third signal ends at once, unsaved."
    assert second == "SIGINT: still waiting for the state to be written. One more signal ends at once, unsaved."
    assert third == f"Stopped by SIGTERM. What was saved before is in {tmp_path / 'run' / 'checkpoints'}."


@pytest.mark.slow
def test_a_run_under_nohup_is_deaf_to_a_closed_terminal(config, tmp_path):
    command = ["--config", config, "--workdir", tmp_path / "run"]
    ended = run_script("train", command, [Signal(s, "SIGHUP") for s in ("compile", "train", "draw")], ["SIGHUP"])
    assert (ended.code, ended.err) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "stages", "more"),
    [
        ("evaluate", ("import jax", "load", "evaluate"), []),
        ("export", ("import jax", "load"), ["--out", "model.onnx"]),
        ("predict", ("import jax", "load"), ["cat.png"]),
        ("report", ("report",), []),
    ],
)
def test_other_scripts_end_at_once_and_leave_nothing(finished_run, tmp_path, monkeypatch, script, stages, more):
    shutil.copytree(finished_run.workdir, tmp_path / "run")
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    for stage, name in zip(stages, NAMES, strict=False):
        ended = run_script(script, ["--workdir", tmp_path / "run", *more], [Signal(stage, name, 1, LONG)])
        assert (ended.code, ended.err) == (75, f"Stopped by {name}. There was nothing to save.\n"), (stage, ended)
        assert ended.seconds_to_stop is not None and ended.seconds_to_stop < SOON
        assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
def test_a_stopped_lot_of_runs_shows_the_results_that_it_has(config):
    ended = run_script("train_many", ["--config", config, "--seeds", "3"], [Signal("start", "SIGTERM", 2, LONG)])
    assert ended.code == 75
    assert ended.err.splitlines()[-1] == "Stopped by SIGTERM. Results shown: 1 of 3."
    head, _, row = ended.out.splitlines()
    assert head.split("|")[4].strip() == "seeds"
    assert row.split("|")[4].strip() == "1"
