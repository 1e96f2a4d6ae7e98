"""scripts/report.py on folders as runs leave them, and the table and the spread that all scripts share."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from jax_cifar.cli import run
from jax_cifar.config import Config
from jax_cifar.config.files import apply_overrides, to_dict
from jax_cifar.errors import ConfigError
from jax_cifar.lab.runs import experiments, read_run
from jax_cifar.lab.tables import markdown, spread

SCRIPT = Path(__file__).parents[1] / "scripts" / "report.py"
SUMMARY: dict[str, Any] = {
    "config_name": "small",
    "epochs": 2.0,
    "test_accuracy": 0.5,
    "test_loss": 1.5,
    "train_accuracy": 0.75,
    "seconds": {"train": 12.4},
}
CPU = {"backend": "cpu", "cpu_count": 2, "devices": {"cpu": 1}, "versions": {"jax": "0.7.2"}}
GPU = {**CPU, "backend": "gpu", "devices": {"NVIDIA H100": 2}}


def make_run(folder, *overrides, environment=CPU, **figures):
    folder.mkdir()
    config = to_dict(apply_overrides(Config("small"), overrides))
    for name, values in {"config": config, "environment": environment, "summary": SUMMARY | figures}.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    return folder


@pytest.fixture
def report(monkeypatch, capsys):
    """The script's exit code, and what it prints to each stream."""

    def call(*folders):
        monkeypatch.setattr(sys, "argv", ["report.py", "--workdir", *map(str, folders)])
        code = 0
        try:
            run(runpy.run_path(str(SCRIPT))["main"])
        except SystemExit as end:
            code = end.code
        printed = capsys.readouterr()
        return code, printed.out.splitlines(), printed.err.splitlines()

    return call


def test_runs_on_other_images_given_in_python_are_other_experiments(tmp_path):
    runs: list[Any] = []
    for name, images in (("bars", "1f"), ("bars", "1f"), ("bars", "2e"), ("noise", "1f")):
        folder = make_run(tmp_path / str(len(runs)), dataset=name, training_images=images)
        (folder / "network.json").write_text('{"data_name": null}')
        runs.append(read_run(folder))
    assert [len(group) for group in experiments(runs)] == [2, 1, 1]
    (tmp_path / "3" / "network.json").write_text('{"data_name": "cifar10"}')
    runs[3] = read_run(tmp_path / "3")
    assert ["the images given" in one.fields for one in runs] == [True] * 3 + [False]


def test_runs_that_differ_in_seed_and_in_what_changes_no_result_share_a_row(tmp_path, report):
    free = ["--log.every", "10", "--eval.tta", "mirror", "--checkpoint.keep", "5", "--data.dir", "elsewhere"]
    runs = [
        make_run(tmp_path / "a", test_accuracy=0.5, test_loss=1.0),
        make_run(tmp_path / "b", "--train.seed", "1", *free, test_accuracy=0.75, test_loss=2.0),
        make_run(tmp_path / "c", "--optim.lr", "0.2"),
        make_run(tmp_path / "d", environment=GPU),
    ]
    assert report(*runs) == (
        0,
        [
            "| experiment | runs | epochs | test accuracy | test loss | train accuracy | training time | on |",
            "| - | - | - | - | - | - | - | - |",
            "| small | 2 | 2 | 62.50% (sd 17.68%) | 1.5000 (sd 0.7071) | 75.00% (sd 0.00%) | 12 s | CPU, 2 cores, "
            "jax 0.7.2 |",
            "| small | 1 | 2 | 50.00% | 1.5000 | 75.00% | 12 s | CPU, 2 cores, jax 0.7.2 |",
            "| small | 1 | 2 | 50.00% | 1.5000 | 75.00% | 12 s | 2 x NVIDIA H100, jax 0.7.2 |",
        ],
        [],
    )


def test_a_run_named_twice_counts_once(tmp_path, report, monkeypatch):
    folder = make_run(tmp_path / "a")
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    _, lines, _ = report(folder, "a", "./a/", "link")
    assert [line.split(" | ")[1] for line in lines[2:]] == ["1"]


def test_unfinished_and_diverged_runs_are_named_and_left_out(tmp_path, report):
    good = make_run(tmp_path / "good", train_accuracy=None)
    diverged = make_run(tmp_path / "diverged", test_loss=None, test_accuracy=0.1)
    unfinished = make_run(tmp_path / "unfinished")
    (unfinished / "summary.json").unlink()
    code, lines, said = report(diverged, good, unfinished)
    assert (code, lines[2:]) == (0, ["| small | 1 | 2 | 50.00% | 1.5000 | - | 12 s | CPU, 2 cores, jax 0.7.2 |"])
    assert said == [
        f"{diverged} is left out: it diverged: its test loss is not finite.",
        f"{unfinished} is left out: it is not finished: it holds no summary.json.",
    ]
    code, lines, said = report(diverged)
    assert (code, lines, said[-1]) == (2, [], "error: There is no finished run to show.")


def test_what_is_no_run_is_refused_in_one_line(tmp_path, report):
    good, empty = make_run(tmp_path / "good"), tmp_path / "empty"
    empty.mkdir()
    for wrong in (empty, tmp_path / "nowhere"):
        code, _, said = report(good, wrong)
        assert (code, said[0].startswith(f"error: {wrong} is no run folder")) == (2, True)


def test_a_damaged_run_is_named_and_left_out(tmp_path, report):
    good = make_run(tmp_path / "good")
    damages = {
        "half": ("summary.json", '{"test_acc', "summary.json cannot be read"),
        "empty": ("config.json", "", "config.json cannot be read"),
        "foreign": ("summary.json", "[]", "its files are not those of a run of this version"),
        "another": ("config.json", '{"train": {"seed": 0}}', "its files are not those of a run of this version"),
    }
    for name, (file, content, _) in damages.items():
        (make_run(tmp_path / name) / file).write_text(content)
    code, lines, said = report(good, *(tmp_path / name for name in damages))
    assert (code, len(lines)) == (0, 3)
    for line, (name, (_, _, why)) in zip(said, damages.items(), strict=True):
        assert line.startswith(f"{tmp_path / name} is left out: {why}")


@pytest.mark.parametrize("option", ["--finetune-epochs", "--seconds"])
def test_variants_are_neither_trained_on_nor_timed_for_nothing(option, tmp_path):
    for value in ("0", "-1", "nan"):
        with pytest.raises(ConfigError, match=f"{option} = {float(value)} is not allowed: it must be greater than 0"):
            runpy.run_path(str(SCRIPT))["main"](["variants", "--workdir", str(tmp_path / "none"), option, value])


def test_the_spread_is_mean_and_sample_standard_deviation_of_what_is_known():
    assert spread([0.94, 0.942], ".2%") == "94.10% (sd 0.14%)"
    assert spread([2.0, None, 4.0], ".3f") == "3.000 (sd 1.414)"
    assert spread((value for value in [None, 0.5]), ".1%") == "50.0%"
    assert spread([None], ".1%") == spread([], ".1%") == "-"


def test_a_table_has_as_many_cells_in_every_row():
    assert markdown(["a", "b"], [["1", "2"], ("3", "")]) == "| a | b |\n| - | - |\n| 1 | 2 |\n| 3 |  |"
    with pytest.raises(ValueError, match="other cells"):
        markdown(["a", "b"], [["1"]])
