"""Two experiments held against each other: what differs, the verdict, and what is refused or left out."""

import json
import math
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_report import CPU, GPU, SUMMARY, make_run

from jax_cifar.cli import run
from jax_cifar.config import Config
from jax_cifar.config.files import apply_overrides, to_dict
from jax_cifar.errors import CheckpointError, ConfigError
from jax_cifar.lab.compare import METRICS, compare, differing
from jax_cifar.lab.curves import curves, draw, evaluated_split
from jax_cifar.lab.results import named_runs, read_results
from jax_cifar.lab.runs import FinishedRun, experiments
from jax_cifar.lab.statistics import difference
from jax_cifar.lab.tables import shown_seeds, shown_value
from jax_cifar.telemetry.comparison import Drawn, draw_comparison

SCRIPT = Path(__file__).parents[1] / "scripts" / "report.py"
SEEN = {"images_per_second": 1000.0, "parameters": 12345}


def a_run(seed: int, accuracy: float, *overrides: str, name: str = "", environment: Any = CPU, **figures: Any):
    config = to_dict(apply_overrides(Config("small"), ["--train.seed", str(seed), *overrides]))
    summary = SUMMARY | SEEN | {"test_accuracy": accuracy} | figures
    return FinishedRun(None, config, summary, environment, name or f"{overrides}, seed {seed}, {accuracy}")


def some_runs(accuracies, *overrides: str, first: int = 0, **options: Any) -> list[FinishedRun]:
    return [a_run(first + i, accuracy, *overrides, **options) for i, accuracy in enumerate(accuracies)]


OLD, NEW = [0.70, 0.71, 0.72, 0.70], [0.711, 0.719, 0.731, 0.709]
FASTER = ("--optim.lr", "0.2")


def test_runs_of_the_same_seeds_are_compared_in_pairs_and_others_are_not():
    old, new = some_runs(OLD), some_runs(NEW, *FASTER)
    paired = compare(new, old)
    assert paired.gap == difference(NEW, OLD, paired=True)
    assert paired.verdict == "better by 1.00 ± 0.18 points, 4 seeds each."
    assert paired.notes() == ["Paired by seed, Student's t: p = 0.00042, 95% interval of A - B: 0.82 to 1.18 points."]
    # In whatever order they come.
    assert compare(new[::-1], old).gap == paired.gap
    other = compare(some_runs(NEW, *FASTER, first=1), old)
    assert other.gap == difference(NEW, OLD)
    assert other.notes()[0].startswith("Not paired, Welch's t: p = 0.2, 95% interval of A - B: -0.69 to")
    three = compare(new[:3], old)
    assert (
        three.gap == difference(NEW[:3], OLD) and "; about " in three.verdict and " seeds each would" in three.verdict
    )
    assert three.verdict.startswith("cannot tell: 1.28 ± ") and ", 3 and 4 seeds;" in three.verdict


def test_a_verdict_says_how_many_more_seeds_would_decide():
    unsure = compare(some_runs([0.70, 0.72, 0.71], *FASTER), some_runs([0.70, 0.70, 0.72], first=5))
    assert unsure.verdict == (
        "cannot tell: 0.33 ± 2.47 points, 3 seeds each; about 163 more seeds each would decide on 0.33 points."
    )
    worth = compare(some_runs([0.70, 0.72, 0.71], *FASTER), some_runs([0.70, 0.70, 0.72], first=5), least=2.0)
    assert worth.verdict.endswith("; about 3 more seeds each would decide on 2.00 points.")
    plain = compare(some_runs([0.70, 0.72, 0.71], *FASTER), some_runs([0.70, 0.70, 0.72], first=5), least=9.0)
    assert plain.verdict.endswith("; one of 9.00 points would have been seen four times out of five.")
    # Pairs need fewer than the 106 that two samples of this spread do.
    paired = compare(some_runs([0.70, 0.72, 0.71, 0.73], *FASTER), some_runs([0.70, 0.70, 0.72, 0.72]))
    assert paired.verdict.endswith(", 4 seeds each; about 51 more seeds each would decide on 0.50 points.")
    level = compare(some_runs([0.70, 0.72], *FASTER), some_runs([0.72, 0.70], first=5))
    assert level.verdict.endswith(
        "no number of seeds would decide on 0.00 points: say with --least which difference matters."
    )


def test_one_run_on_a_side_tells_nothing():
    found = compare(some_runs(OLD[:1], *FASTER), some_runs(NEW[:1]))
    assert found.gap is None and found.verdict == (
        "cannot tell: 1.10 points apart, and one run has no spread to hold that against."
        " Train 4 more of A and 4 more of B."
    )
    assert compare(some_runs(OLD[:1], *FASTER), some_runs(NEW)).verdict.endswith("Train 4 more of A.")
    assert json.dumps(found.to_dict(), allow_nan=False) and "71.10" in found.table()


def test_figures_that_do_not_spread_give_no_verdict_but_that_they_are_the_same():
    for figures, which in (([0.7, 0.8], "each pair"), ([0.7, 0.7], "every run")):
        same = compare(some_runs(figures, *FASTER), some_runs(figures))
        assert same.verdict == f"no difference: {which} gave the same figure."
    apart = compare(some_runs([0.7, 0.7], *FASTER), some_runs([0.71, 0.71], first=3))
    assert apart.verdict.startswith("cannot tell: 1.00 points apart in every run")
    assert json.loads(json.dumps(apart.to_dict(), allow_nan=False))["difference"]["p"] is None


def test_every_metric_has_its_own_unit_and_its_own_better():
    ahead = {"test_loss": 0.5, "test_accuracy_tta": 0.8, "validation_accuracy": 0.6, "seconds": {"train": 5.0}}
    new = [a_run(i, 0.9 + i / 1000, *FASTER, **ahead) for i in range(3)]
    old = [
        a_run(i, 0.8, test_loss=0.6 + i / 1000, test_accuracy_tta=0.7 + i / 1000, validation_accuracy=0.5 + i / 1000)
        for i in range(3)
    ]
    for one, seconds in zip(old, (12.0, 12.5, 13.0), strict=True):
        one.summary["seconds"] = {"train": seconds}
    verdicts = {name: compare(new, old, name).verdict for name in METRICS}
    assert verdicts == {
        "test_accuracy": "better by 10.10 ± 0.25 points, 3 seeds each.",
        "test_accuracy_tta": "better by 9.90 ± 0.25 points, 3 seeds each.",
        "validation_accuracy": "better by 9.90 ± 0.25 points, 3 seeds each.",
        "test_loss": "better by 0.1010 ± 0.0025, 3 seeds each.",
        "seconds": "faster by 7.50 ± 1.24 s, 3 seeds each.",
    }
    assert compare(old, new).verdict.startswith("worse by") and compare(old, new, "seconds").verdict.startswith(
        "slower"
    )
    times = compare(new, old, "seconds").gap
    assert times is not None and not times.paired  # a seed does nothing to the time
    with pytest.raises(ConfigError, match=r"has no such figure: train with --eval\.tta mirror"):
        compare(some_runs(OLD, *FASTER), old, "test_accuracy_tta")


def test_what_differs_is_worked_out_and_stands_in_the_table():
    other = {**GPU, "versions": {"jax": "0.8.0"}, "commit": "b" * 40 + "-dirty"}
    free = ("--log.every", "7", "--data.dir", "elsewhere")
    found = compare(some_runs(NEW, *FASTER, "--optim.nesterov", "true", *free, environment=other), some_runs(OLD))
    assert found.fields == {"optim.lr": (0.2, 0.1), "optim.nesterov": (True, False)}
    assert list(found.surroundings) == ["commit", "jax", "on"]
    table = found.table().splitlines()
    assert "| seeds | 0-3 (n = 4) | 0-3 (n = 4) |" in table and "| optim.nesterov | true | false |" in table
    assert "| commit | bbbbbbbbb-dirty | - |" in table and "| jax | 0.8.0 | 0.7.2 |" in table
    assert "| on | 2 x NVIDIA H100 | CPU, 2 cores |" in table and "| parameters | 12,345 | 12,345 |" in table
    assert any(line.startswith("| test accuracy (%) | 71.75 (sd 1.00; 95 % interval 70.16 to 73.34)") for line in table)
    assert found.notes()[1:] == [
        "2 fields differ: which of them made the difference, this cannot tell.",
        "The devices differ: their times do not compare.",
    ]
    assert "one experiment against itself" in compare(some_runs(NEW, first=9), some_runs(OLD)).notes()[1]


def test_other_views_are_a_difference_of_their_figure_alone():
    old = some_runs(OLD, "--eval.tta", "mirror", test_accuracy_tta=0.7)
    new = some_runs(NEW, "--eval.tta", "mirror-translate", test_accuracy_tta=0.71)
    assert compare(new, old).fields == {}
    found = compare(new, old, "test_accuracy_tta")
    assert found.fields == {"eval.tta": ("mirror-translate", "mirror")}
    with pytest.raises(ConfigError, match=r"of its side were judged by mirror and mirror-translate: name the runs of"):
        compare([old[0], *new[1:]], some_runs(NEW, *FASTER, test_accuracy_tta=0.7), "test_accuracy_tta")


def test_a_side_is_one_experiment_and_holds_no_run_of_the_other():
    old, new = some_runs(OLD), some_runs(NEW, *FASTER)
    with pytest.raises(
        ConfigError, match=r"holds 2 experiments, which differ:\n  optim.lr: 0.2 in .*, 0.1 in .*"
    ) as told:
        compare([*new, *old[:1]], old)
    assert "\n  on:" not in str(told.value)
    with pytest.raises(ConfigError, match=r"on: CPU, 2 cores in .*, 2 x NVIDIA H100 in"):
        compare(new, [*old, *some_runs(OLD, first=7, environment=GPU)])
    with pytest.raises(ConfigError, match="stands on both sides"):
        compare(old[:3], old[2:])
    with pytest.raises(ConfigError, match="B, after --against, holds no finished run"):
        compare(old, [])


def test_a_seed_counts_once_however_often_it_was_trained():
    old, left_out = some_runs(OLD), []
    again = a_run(1, 0.99, *FASTER, name="again")
    found = compare([*some_runs(NEW, *FASTER), again], old, leave_out=lambda name, why: left_out.append((name, why)))
    assert found.gap == difference(NEW, OLD, paired=True)
    assert [name for name, _ in left_out] == ["again"] and "has the same seed, 1" in left_out[0][1]


def test_names_do_not_make_another_experiment_but_code_and_foreign_weights_do(tmp_path):
    one, named = a_run(0, 0.7), a_run(1, 0.7)
    named.config["name"] = "other"
    assert len(experiments([one, named])) == 1
    begun = {**CPU, "argv": ["scripts/train.py", "--init-from=runs/a", "--train.seed", "1"]}
    started = [a_run(1, 0.7, environment=begun), a_run(2, 0.7, environment={**CPU, "argv": ["x", "--init-from", "b"]})]
    assert [begun.init_from for begun in started] == ["runs/a", "b"] and len(experiments(started)) == 1
    assert differing(started[0], one)[0] == {"--init-from": ("another run", None)}
    folders = [make_run(tmp_path / name) for name in "abc"]
    for folder, digest, config in zip(folders, "121", "xxy", strict=True):
        files = [{"name": "exp.py", "sha256": config * 9}, {"name": "net.py", "sha256": digest * 9}]
        (folder / "source.json").write_text(json.dumps({"files": files, "origins": {"net.py": "net.py"}}))
    runs = named_runs(map(str, folders), lambda *_: None)
    # The text of a config file that holds values only is told by its values.
    assert [[one.folder and one.folder.name for one in group] for group in experiments(runs)] == [["a", "c"], ["b"]]
    assert differing(runs[0], runs[1])[0] == {"the code in net.py": ("11111111", "22222222")}


def test_images_of_ones_own_from_elsewhere_are_another_experiment():
    own = ["--data.name", "npz", "--data.dir"]
    this, that = a_run(0, 0.7, *own, "/a.npz"), a_run(1, 0.7, *own, "/b.npz")
    assert len(experiments([this, that])) == 2 and differing(this, that)[0] == {"data.dir": ("/a.npz", "/b.npz")}
    moved = [a_run(seed, 0.7, "--data.dir", place) for seed, place in enumerate(("/here", "/there"))]
    assert len(experiments(moved)) == 1


def results_file(path: Path, *results: dict[str, Any], optimizer: str = "sgd") -> Path:
    config = to_dict(apply_overrides(Config("small"), ["--optim.name", optimizer]))
    empty = {"test_accuracy_tta": None, "validation_accuracy": None, "diverged_at": None}
    setting = {
        "seed": 0,
        "lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 0.0,
        "test_loss": 1.0,
        "steps": 10,
        "parameters": 5,
    }
    rows = [empty | setting | {"seconds": 2.0, "test_accuracy": 0.5} | result for result in results]
    path.write_text(json.dumps({"config": config, "environment": CPU, "results": rows}))
    return path


def test_results_of_many_runs_are_chosen_by_their_settings(tmp_path):
    path = results_file(
        tmp_path / "all.json",
        *({"lr": lr, "seed": seed, "test_accuracy": lr + seed / 100} for lr in (0.1, 0.3) for seed in range(4)),
        {"lr": 0.3, "seed": 4, "diverged_at": 3, "test_loss": None, "test_accuracy": None},
    )
    left_out = []
    runs = named_runs([f"{path}:lr=0.3,seed=1-9"], lambda name, why: left_out.append((name, why)))
    assert [(one.seed, one.config["optim"]["lr"], one.summary["test_accuracy"]) for one in runs] == [
        (seed, 0.3, 0.3 + seed / 100) for seed in (1, 2, 3)
    ]
    assert runs[0].summary["images_per_second"] == 640 and runs[0].summary["settings"] == 2
    assert [(name[-45:], why[:15]) for name, why in left_out] == [
        (", seed 4, lr 0.3, momentum 0.9, weight_decay 0"[-45:], "it diverged: at")
    ]
    found = compare(runs, named_runs([f"{path}:lr=0.1,seed=1-3"], lambda *_: None), diverged=(1, 0))
    assert found.fields == {"optim.lr": (0.3, 0.1)} and found.gap is not None and found.gap.paired
    assert found.notes()[-2:] == [
        "Diverged: 1 of A, not counted: the figures are of the runs that finished.",
        "A is one of 2 settings and B is one of 2 settings that were tried: one chosen by this figure looks better than"
        " it is; new seeds tell.",
    ]
    adam = results_file(tmp_path / "adam.json", {"momentum": 0.8}, optimizer="adam")
    (one,) = named_runs([str(adam)], lambda *_: None)
    assert (one.config["optim"]["b1"], one.config["optim"]["momentum"]) == (0.8, 0.9)
    with pytest.raises(ConfigError, match=r"B, after --against, holds 2 experiments(.|\n)*such as FILE.json:lr=0.05"):
        compare([one], named_runs([str(path)], lambda *_: None))
    for wrong, message in (
        (f"{path}:rate=1", "choose runs by seed, lr, momentum, weight_decay"),
        (f"{path}:lr=fast", "give a number, or"),
        (f"{path}:lr=7", "there is no such run in the file"),
    ):
        with pytest.raises(ConfigError, match=message):
            named_runs([wrong], lambda *_: None)


def test_a_table_has_the_results_of_many_runs_too(tmp_path, capsys):
    path = results_file(tmp_path / "all.json", *({"lr": lr, "seed": seed} for lr in (0.1, 0.3) for seed in range(2)))
    main, row = runpy.run_path(str(SCRIPT))["main"], "| small | 2 | "
    for words, rows in (([str(path)], 2), ([f"{path}:lr=0.3"], 1)):
        main(["compare", *words])
        assert [line[: len(row)] for line in capsys.readouterr().out.splitlines()[2:]] == [row] * rows


def test_results_that_differ_in_the_seventh_digit_are_all_counted(tmp_path):
    settings = [{"seed": seed, "lr": lr} for seed in (1234567, 1234568, 2**32 - 1) for lr in (0.1, 0.1000001)]
    runs = named_runs([str(results_file(tmp_path / "all.json", *settings))], lambda *_: None)
    assert [{"seed": one.seed, "lr": one.config["optim"]["lr"]} for one in runs] == settings
    assert runs[1].shown.endswith("all.json, seed 1234567, lr 0.1000001, momentum 0.9, weight_decay 0")


@pytest.mark.parametrize("content", [None, "{", "[]", '{"results": [{}]}', '{"results": 3}', '{"a": 1}'])
def test_a_file_that_holds_no_results_is_refused(tmp_path, content):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(CheckpointError, match=r"cannot be read|is no file that scripts/train_many.py --json wrote"):
        read_results(path)


@pytest.fixture
def report(monkeypatch, capsys):
    """The script's exit code, and what it prints to each stream."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["report.py", *map(str, words)])
        code = 0
        try:
            run(runpy.run_path(str(SCRIPT))["main"])
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return call


def curved(folder: Path, accuracies, split: str = "test") -> Path:
    lines = [
        {"step": i, "epoch": i + 1.0, "split": split, "accuracy": a, "loss": 1 - a} for i, a in enumerate(accuracies)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_the_script_compares_folders_leaves_out_the_unfinished_and_draws(tmp_path, report):
    new, old = [
        [
            curved(make_run(tmp_path / f"{name}{i}", "--train.seed", f"{i}", *own, test_accuracy=a), [0.3, a])
            for i, a in enumerate(all)
        ]
        for name, own, all in (("new", FASTER, NEW), ("old", (), OLD))
    ]
    lost = make_run(tmp_path / "lost", *FASTER, "--train.seed", "8", test_loss=None)
    undone = make_run(tmp_path / "undone", "--train.seed", "8")
    (undone / "summary.json").unlink()
    picture, file = tmp_path / "both.png", tmp_path / "found.json"
    code, out, err = report("compare", *new, lost, "--against", *old, undone, "--out", picture, "--json", file)
    assert code == 0 and "A against B: better by 1.00 ± 0.18 points, 4 seeds each." in out
    assert "Diverged: 1 of A" in out and [line.split()[0] for line in err.splitlines()] == [f"{lost}", f"{undone}"]
    assert picture.read_bytes().startswith(b"\x89PNG") and out.endswith(f"drawn in {picture}\n")
    assert json.loads(file.read_text())["difference"]["difference"] == pytest.approx(0.01)
    assert report("--workdir", *new, "--against", *old)[1].splitlines() == out.splitlines()[:-2]  # fewer notes
    for words, message in (
        (["compare"], "name the folders of runs"),
        (["--workdir", *new, "--metric", "seconds"], "it needs --against"),
        (["against", *new], "command = 'against' is not allowed: choose one of compare, "),
        ([*["compare", *new, "--against", *old], "--out", "x.svg"], "its name must end in .png"),
        ([*["compare", *new, "--against", *old], "--least", "0"], "it must be greater than 0"),
        (["compare", *new, "--against", tmp_path], "is no run folder"),
    ):
        code, _, err = report(*words)
        assert (code, message in err, len(err.splitlines())) == (2, True, 1), err


def test_curves_have_the_epochs_that_all_runs_have(tmp_path):
    folders = [curved(make_run(tmp_path / f"{n}", "--train.seed", f"{n}"), [0.1 * n] * n, "validation") for n in (2, 3)]
    runs = named_runs(map(str, folders), lambda *_: None)
    epochs, values = curves([*runs, a_run(0, 0.5)], evaluated_split(runs), "accuracy")
    assert epochs.tolist() == [1, 2] and values.round(2).tolist() == [[0.2, 0.2], [0.3, 0.3]]
    # Of the last epoch; the best would be an accident.
    assert [METRICS["validation_accuracy"].read(one) for one in runs] == pytest.approx([0.2, 0.3])
    epochs, values = curves([a_run(0, 0.5)], "test", "accuracy")
    assert len(epochs) == 0


def test_every_shape_of_comparison_can_be_drawn(tmp_path):
    found = compare(some_runs(NEW, *FASTER), some_runs(OLD[:1]), "test_loss")
    assert draw(found, tmp_path / "a.png").is_file()
    one = Drawn(np.array([]), np.zeros((0, 0)), [1.0], math.nan, math.nan)
    many = Drawn(np.arange(3.0), np.ones((2, 3)), [1.0, 2.0], 0.5, 2.5)
    assert draw_comparison([one, many], "$x", "\x1b", "a", "b", tmp_path / "b.png").is_file()


def test_seeds_and_values_are_shown_as_people_write_them():
    assert shown_seeds([3, 1, 2, 7, 9, 10]) == "1-3, 7, 9-10" and shown_seeds([]) == ""
    crop = {"transform": "RandomCrop", "padding": 4, "from": "my.py"}
    assert shown_value([crop, {"network": "Net"}]) == "[RandomCrop(padding=4), Net()]"
    assert [shown_value(value) for value in (None, True, 0.1, 3.0, "x", [], {})] == [
        "-",
        "true",
        "0.1",
        "3",
        "x",
        "[]",
        "()",
    ]
