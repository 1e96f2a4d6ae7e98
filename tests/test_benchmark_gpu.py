"""The suite for a lent GPU: parts that are kept, gone on with, and stopped by a budget."""

import argparse
import hashlib
import json
import os
import time
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

pytest.importorskip("torch", reason="the figures name its version")

from benchmarks import gpu
from benchmarks.gpu import Part, Stopwatch
from benchmarks.processes import ROOT
from benchmarks.tables import as_json
from jax_cifar import load_config, load_run
from jax_cifar.errors import ConfigError

HEAD = {"device": "1 x H100", "versions": {"jax": "0.9"}, "commit": "abc"}
USERS = {"PATH": "/bin"}


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    gpu.add_options(parser)
    options = parser.parse_args(arguments)
    options.environment = USERS
    return options


def measure(*arguments: str) -> list[Part]:
    """What a call yields; its file is written after each part, as the script does."""
    options, parts = parse(*arguments), []
    for part in gpu.measure(options):
        parts.append(part)
        if options.json is not None:
            options.json.write_text(json.dumps(gpu.as_json("gpu", parts)))
    return parts


@pytest.fixture
def head(monkeypatch):
    """What the child says that it runs on, which a test may change."""
    head = dict(HEAD)
    monkeypatch.setattr(gpu, "run_python", lambda arguments, environment: [head])
    return head


@pytest.fixture
def played(monkeypatch, head):
    """Names of the parts that were played, none of them for real; startup is one that fails."""
    names: list[str] = []

    def jobs(options, watch):
        def play(name: str):
            names.append(name)
            return name != "startup", {"of": name}, "" if name != "startup" else "no such thing"

        return {name: lambda name=name: play(name) for name in options.parts}

    monkeypatch.setattr(gpu, "jobs", jobs)
    return names


def test_what_is_done_stays_and_what_was_cut_off_is_done_again(played, tmp_path):
    arguments = ["--json", str(tmp_path / "gpu.json"), "--parts", "resume", "startup"]
    first = measure(*arguments)
    assert [(part.name, part.complete, part.said) for part in first] == [
        ("resume", True, ""),
        ("startup", False, "no such thing"),
    ]
    assert gpu.cases(parse(*arguments)) == 3
    second = measure(*arguments)
    assert played == ["resume", "startup", "startup"]
    assert [part.name for part in second] == ["resume", "startup", "startup"]
    assert [part.result for part in gpu.furthest(second)] == [{"of": "resume"}, {"of": "startup"}]


@pytest.mark.parametrize("later", [["--parts", "step"], ["--parts", "startup", "--budget", "1"]])
def test_what_was_cut_off_stays_in_the_file_until_there_is_more_of_it(later, played, tmp_path):
    file = tmp_path / "gpu.json"
    measure("--json", str(file), "--parts", "startup")
    (before,) = json.loads(file.read_text())["parts"]
    measure("--json", str(file), *later)
    assert before in json.loads(file.read_text())["parts"]


def test_of_two_that_were_cut_off_the_longer_counts_and_a_whole_one_before_both():
    long, short, whole = Part("a", False, 9.0, 1), Part("a", False, 2.0, None), Part("a", True, 3.0, 3)
    assert gpu.furthest([long, short]) == [long] == gpu.furthest([short, long])
    assert gpu.furthest([long, short, whole]) == [whole]


@pytest.mark.parametrize(
    ("now", "told"),
    [
        ({"quick": True}, "quick False, here True"),
        ({"device": "1 x A100"}, "device '1 x H100', here '1 x A100'"),
        ({"versions": {"jax": "1.0"}}, "versions {'jax': '0.9'}, here {'jax': '1.0'}"),
        ({"commit": "def"}, "commit 'abc', here 'def'"),
    ],
)
def test_parts_that_were_measured_otherwise_are_not_mixed_with_these(now, told, played, head, tmp_path):
    file = tmp_path / "gpu.json"
    measure("--json", str(file), "--parts", "resume")
    (part,) = json.loads(file.read_text())["parts"]
    assert part["origin"] == {"quick": False, **HEAD}
    before, quick = file.read_bytes(), ["--quick"] if now.pop("quick", False) else []
    head.update(now)
    with pytest.raises(ConfigError, match=f"it holds resume of {told}. Name another file"):
        measure("--json", str(file), *quick)
    assert (played, file.read_bytes()) == (["resume"], before)


@pytest.mark.parametrize("text", ["", '{"parts": [', '{"cases": []}', "[]", '{"parts": [{"name": "resume"}]}'])
def test_a_file_that_cannot_be_gone_on_with_is_told(text, played, tmp_path):
    file = tmp_path / "gpu.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"--json .*gpu\.json holds no parts to go on with \(.+\)\. Remove it"):
        measure("--json", str(file))
    assert (played, file.read_text()) == ([], text)


def test_a_child_says_what_it_runs_on():
    options = parse()
    options.environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    here, there = as_json("gpu", []), gpu.origin_of(options)
    assert there.pop("device").endswith("; JAX_PLATFORMS=cpu")
    assert there == {"quick": False, "versions": here["versions"], "commit": here["commit"]}


def test_nothing_is_begun_once_the_budget_is_spent(played):
    assert measure("--budget", "1") == []
    assert played == []


def test_a_part_that_takes_too_long_is_stopped():
    started = time.monotonic()
    code = "import time; print('begun', flush=True); time.sleep(60)"
    code, out, _ = gpu.run(["-c", code], Stopwatch(0.0), os.environ)
    assert (code, out) == (-15, "begun\n")
    assert time.monotonic() - started < 30


def test_what_is_alone_on_the_gpu_has_the_users_environment_and_what_is_not_takes_no_memory_at_once(monkeypatch):
    seen: list[dict] = []
    monkeypatch.setattr(gpu, "run", lambda command, watch, environment: seen.append(environment) or (1, "", ""))
    monkeypatch.setattr(gpu, "run_until_stopped", lambda command, workdir, watch, environment: seen.append(environment))
    shared = {}
    for name, play in gpu.jobs(parse("--peer", __file__), Stopwatch(99)).items():
        play()
        assert all(environment == seen[0] for environment in seen)
        shared[name] = seen[0] == {**USERS, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        assert shared[name] or seen[0] == USERS
        seen.clear()
    assert {name for name, together in shared.items() if together} == {"resume", "tests"}
    assert {"speedrun cifar10-94", "peer", "step 128", "startup"} < shared.keys()


def test_a_process_has_no_other_environment_than_its_own(monkeypatch):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    users = {name: value for name, value in os.environ.items() if name != "XLA_PYTHON_CLIENT_PREALLOCATE"}
    code = "import os, jax_cifar; print(os.environ.get('XLA_PYTHON_CLIENT_PREALLOCATE'))"
    assert gpu.run(["-c", code], Stopwatch(99), users) == (0, "None\n", "")


def test_an_experiment_is_what_train_takes_it_for(monkeypatch):
    seen: list[list[str]] = []
    monkeypatch.setattr(gpu, "run", lambda command, watch, environment: seen.append(command) or (1, "", "no"))
    for options, config in (((), "cifar100_resnet34_200:mixed"), (("--experiments", "mine.py:big"), "mine.py:big")):
        for play in gpu.jobs(parse("--parts", "train", *options), Stopwatch(99)).values():
            assert play() == (False, {"summary": None, "log": []}, "no")
        command = seen.pop()
        assert command[command.index("--config") + 1] == config  # in the current folder, which the process has too
    assert load_config(gpu.TRAINED[0]).model.name == "resnet34"


@pytest.fixture
def flows(monkeypatch):
    """Runs that are not trained: all with the bits "a", but for those whose name is among the keys."""
    special: dict[str, tuple[int, str, str]] = {}

    def run(command, watch, environment):
        name = "/".join(Path(command[-1]).parts[-2:])  # of the run's folder
        return special.get(name, (0, "a", "")) if command[0] == "-c" else (0, "", "")

    monkeypatch.setattr(gpu, "run", run)
    monkeypatch.setattr(gpu, "run_until_stopped", lambda *_: 20)
    return special


def test_bits_that_differ_are_told(flows):
    flows["default/resumed"] = (0, "b", "")
    complete, result, _ = gpu.resume(True, Stopwatch(99), USERS)
    assert complete and result["stopped_at_step"] == {"default": 20, "deterministic": 20}
    assert result["same_bits"] == {
        "default": {"first": True, "again": True, "resumed": False},
        "deterministic": {"first": True, "again": True, "resumed": True},
    }


def test_bits_that_could_not_be_read_are_no_equal_bits(flows):
    for mode in ("default", "deterministic"):
        flows |= {f"{mode}/{which}": (1, "", "no checkpoint") for which in ("first", "again", "resumed")}
    assert gpu.resume(True, Stopwatch(99), USERS) == (False, None, "('default', 'first'): no checkpoint")


def test_the_bits_of_a_run_are_its_arrays_and_its_loss(tmp_path):
    zipfile.ZipFile(Path(__file__).parent / "old_runs" / "format_1.zip").extractall(tmp_path)
    (tmp_path / "summary.json").write_text('{"test_loss": 0.25}')
    code, out, _ = gpu.run(["-c", gpu.DIGEST, str(tmp_path)], Stopwatch(99), os.environ)
    leaves = jax.tree.leaves(load_run(tmp_path).variables)
    expected = hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in leaves)).hexdigest()
    assert (code, out.split()) == (0, [expected, "0.25"])


def test_the_tables_for_the_results():
    case = {
        "name": "cifar10_speedrun",
        "accuracies": {"run": [0.94, 0.93]},
        "seconds": {"run": [1.5, 1.25]},
        "setup_cold": 40.0,
    }
    runs = [{"setup": 90.0}, {"accuracy": 0.9401, "seconds": 2.0, "wall": 3.0}]
    parts = [
        Part("speedrun cifar10-94", True, 60.0, {"cases": [case]}),
        Part("peer", True, 99.0, runs),
        Part("train a.py", False, 10.0, {"summary": None, "log": [{"epoch": 3.0, "accuracy": 0.5}]}, "stopped"),
    ]
    assert gpu.table(parts).splitlines() == [
        "| recipe | n | test accuracy | seconds a run | set-up, cold |",
        "| - | - | - | - | - |",
        "| cifar10_speedrun | 2 | 93.50% (sd 0.71%) | 1.375 (sd 0.177) | 40.0 s |",
        "| airbench94_muon, PyTorch | 1 | 94.01% | 2.000 | 90.0 s |",
        "",
        "train a.py: accuracy 0.5, epoch 3.0",
        "",
        "| part | complete | took |  |",
        "| - | - | - | - |",
        "| speedrun cifar10-94 | yes | 60 s |  |",
        "| peer | yes | 99 s |  |",
        "| train a.py | no | 10 s | stopped |",
    ]


def test_results_have_the_columns_that_the_suite_prints():
    _, _, section = (ROOT / "RESULTS.md").read_text().partition("\n## On a GPU\n")
    case = {"name": "a", "accuracies": {"run": [1]}, "seconds": {"run": [1]}, "setup_cold": 1}
    head, *_ = gpu.table([Part("speedrun a", True, 1, {"cases": [case]})]).splitlines()
    assert next(line for line in section.splitlines() if line.startswith("|")) == head


def test_wrong_options_are_refused_before_anything_is_played(played):
    for arguments, message in (("--seeds 0", "--seeds = 0"), ("--peer nowhere.py", "--peer = 'nowhere.py'")):
        with pytest.raises(ConfigError, match=message):
            next(gpu.measure(parse(*arguments.split())))
    assert played == []
