"""The suite for a lent GPU: parts that are kept, gone on with, and stopped by a budget."""

import argparse
import json
import time
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the figures name its version")

from benchmarks import gpu
from benchmarks.gpu import Part, Stopwatch
from benchmarks.processes import ROOT
from jax_cifar.errors import ConfigError


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    gpu.add_options(parser)
    return parser.parse_args(arguments)


@pytest.fixture
def played(monkeypatch):
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
    file = tmp_path / "gpu.json"
    options = parse("--json", str(file), "--parts", "resume", "startup")
    first = list(gpu.measure(options))
    assert [(part.name, part.complete, part.said) for part in first] == [
        ("resume", True, ""),
        ("startup", False, "no such thing"),
    ]
    file.write_text(json.dumps(gpu.as_json("gpu", first)))
    second = list(gpu.measure(options))
    assert played == ["resume", "startup", "startup"]
    assert [part.result for part in second] == [{"of": "resume"}, {"of": "startup"}]


def test_nothing_is_begun_once_the_budget_is_spent(played):
    assert list(gpu.measure(parse("--budget", "1"))) == []
    assert played == []


def test_a_part_that_takes_too_long_is_stopped():
    started = time.monotonic()
    code, out, _ = gpu.run(["-c", "import time; print('begun', flush=True); time.sleep(60)"], Stopwatch(0.0))
    assert (code, out) == (-15, "begun\n")
    assert time.monotonic() - started < 30


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
