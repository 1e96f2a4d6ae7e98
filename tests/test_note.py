"""The lab notebook: what an entry says of a run and its parent, and that nothing of a notebook is lost."""

import threading
import time
from pathlib import Path

import pytest
from test_compare import a_run, curved, report  # noqa: F401
from test_report import CPU, make_run

from jax_cifar.config.files import load_config
from jax_cifar.config.source import record_source
from jax_cifar.errors import CheckpointError, ConfigError
from jax_cifar.files import write_text
from jax_cifar.lab import note
from jax_cifar.lab.note import append, changes, entry, find_parent, paragraph
from jax_cifar.lab.runs import FinishedRun, read_run

CONFIG = '''
"""Two experiments."""
from typing import Literal
from jax_cifar.config import Config, OptimConfig

def get_config(variant: Literal["slow", "quick"] = "slow"):
    return Config("small", optim=OptimConfig(lr=0.05 if variant == "slow" else 0.3))
'''


def made_by(
    folder: Path, file: Path, *overrides: str, variant: str = "", option: tuple[str, ...] = ("--config", "{}")
) -> FinishedRun:
    """A finished run of a config file, with its source."""
    argv = ["scripts/train.py", *(word.format(f"{file}{variant}") for word in option), *overrides]
    make_run(folder, *overrides, environment={**CPU, "argv": argv})
    record_source(folder, load_config(f"{file}{variant}"))
    one = read_run(folder)
    assert isinstance(one, FinishedRun)
    return one


def test_a_parent_is_the_run_named_else_the_one_begun_from_else_the_config_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(CONFIG)
    one = made_by(tmp_path / "a", file, "--optim.lr", "0.2")
    named = make_run(tmp_path / "parent", "--optim.lr", "0.4", "--train.epochs", "3")
    (named / "summary.json").unlink()  # it need not be finished
    assert changes(one, find_parent(one, named)[0]) == {"optim.lr": (0.4, 0.2), "train.epochs": (3.0, 10.0)}
    with pytest.raises(CheckpointError, match="is not a run folder"):
        find_parent(one, tmp_path)

    own, shown = find_parent(one, None)
    assert (changes(one, own), shown) == ({"optim.lr": (0.05, 0.2)}, "the defaults of `mine.py`")
    other = made_by(tmp_path / "b", file, "--optim.lr", "0.2", variant=":quick")
    assert changes(other, find_parent(other, None)[0]) == {"optim.lr": (0.3, 0.2)}

    other = made_by(tmp_path / "c", file, "--optim.lr", "0.2", variant=":quick", option=("--config={}",))
    assert changes(other, find_parent(other, None)[0]) == {"optim.lr": (0.3, 0.2)}
    shipped = made_by(tmp_path / "d", Path("cifar10_simple_cnn"), variant=":augmented")
    assert find_parent(shipped, None)[1] == "the defaults of `cifar10_simple_cnn.py:augmented`"

    begun = {**CPU, "argv": ["scripts/train.py", "--init-from", str(named)]}
    child = a_run(0, 0.5, "--optim.lr", "0.4", environment=begun)
    parent, shown = find_parent(child, None)
    assert "whose weights it began with" in shown
    assert changes(child, parent) == {"--init-from": (None, "another run"), "train.epochs": (3.0, 10.0)}


def test_a_config_file_that_was_changed_is_not_run(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(CONFIG)
    one = made_by(tmp_path / "a", file, "--optim.lr", "0.2")
    file.write_text(CONFIG.replace("0.05", "0.07"))
    parent, shown = find_parent(one, None)
    assert (changes(one, parent), shown) == ({"optim.lr": (0.1, 0.2)}, "the defaults of the library")


def test_an_entry_says_what_was_changed_and_what_came_out(tmp_path):
    folders = [
        curved(
            make_run(tmp_path / f"{seed}", "--train.seed", f"{seed}", "--optim.lr", "0.2"), [0.1, 0.2, 0.3 + seed / 10]
        )
        for seed in (0, 1)
    ]
    runs = [one for one in map(read_run, folders) if isinstance(one, FinishedRun)]
    text = entry(runs, (a_run(0, 0.1), "`runs/old`"), "It is\nbetter.", "It is.", "2026-01-02")
    assert text.splitlines() == [
        "## 2026-01-02: small, optim.lr 0.2",
        "",
        "**Hypothesis.** It is better.",
        "",
        "Against `runs/old` differ:",
        "",
        "- `optim.lr`: `0.1` \u2192 `0.2`",
        "",
        "| seeds | epochs | test accuracy | test loss | train accuracy | training |",
        "| - | - | - | - | - | - |",
        "| 0-1 | 2 | 50.00% (sd 0.00%) | 1.5000 (sd 0.0000) | 75.00% (sd 0.00%) | 12.4 s |",
        "",
        "CPU, 2 cores, jax 0.7.2, commit None.",
        "",
        "| epoch | 1 | 2 | 3 |",
        "| - | - | - | - |",
        "| test accuracy (%) | 10.0 | 20.0 | 35.0 |",
        "",
        "**Conclusion.** It is.",
    ]
    same = entry(runs, (runs[0], "x"), "a", "b", "d")
    assert "\n\nNothing differs from x.\n\n" in same and same.startswith("## d: small\n")
    long = curved(make_run(tmp_path / "long"), [i / 1000 for i in range(100)])
    one = read_run(long)
    assert isinstance(one, FinishedRun)
    row = next(line for line in entry([one], (one, "x"), "a", "b", "d").splitlines() if line.startswith("| epoch"))
    assert row.startswith("| epoch | 1 | 10 |") and row.endswith("| 100 |") and row.count("|") == 14


def test_a_text_of_the_user_stays_one_paragraph():
    assert paragraph("a\n\n# b\r\n- c\t|\n```\n") == "a # b - c | ```"
    assert paragraph("p < 0.05 <!-- <b>x</b> \x1b[2J\u202e") == r"p < 0.05 &lt;!-- &lt;b>x&lt;/b> \x1b[2J\u202e"


def test_the_newest_entry_comes_first_and_all_that_is_there_is_kept(tmp_path):
    path = tmp_path / "notes.md"
    append(path, "## 1: one\n\ntext\n")
    assert path.read_text().startswith("# Experiments\n\nA lab notebook") and path.read_text().endswith(
        "\n\n## 1: one\n\ntext\n"
    )
    head, old = b"# Mine\r\n\r\n```\n## no heading\n```\n", b"## 0: caf\xc3\xa9\r\n\r\nlast line without an end"
    path.write_bytes(head + b"\n" + old)
    append(path, "## 1: one\n")
    assert path.read_bytes() == head + b"\n## 1: one\n\n" + old
    (tmp_path / "link.md").symlink_to(path)
    append(tmp_path / "link.md", "## 2: two\n")
    assert path.read_bytes() == head + b"\n## 2: two\n\n## 1: one\n\n" + old and (tmp_path / "link.md").is_symlink()
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="is no UTF-8 text"):
        append(path, "x")
    assert path.read_bytes() == b"\xff"


def test_of_two_entries_written_at_once_none_is_lost(tmp_path, monkeypatch):
    def write_slowly(path, text):
        time.sleep(0.02)
        write_text(path, text)

    monkeypatch.setattr(note, "write_text", write_slowly)
    path = tmp_path / "notes.md"
    threads = [threading.Thread(target=append, args=(path, f"## {i}: entry\n")) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(line for line in path.read_text().splitlines() if line.startswith("## ")) == sorted(
        f"## {i}: entry" for i in range(5)
    )


def test_the_script_adds_an_entry_and_refuses_one_that_says_nothing(tmp_path, report):  # noqa: F811
    runs = [make_run(tmp_path / f"{seed}", "--train.seed", f"{seed}") for seed in (0, 1)]
    path = tmp_path / "notes.md"
    said = ["--hypothesis", "so", "--conclusion", "it is"]
    code, out, err = report("note", "--workdir", *runs, *said, "--out", path)
    assert (code, err) == (0, "") and path.read_text().endswith(out.split("\nadded to")[0])
    other = make_run(tmp_path / "other", "--optim.lr", "0.3")
    for words, message in (
        (["--workdir", *runs, *said[:3], " "], "--conclusion = ' ' is not allowed: say it in a sentence"),
        (["--workdir", *runs, other, *said], "--workdir holds 2 experiments, which differ:"),
        (["--workdir", *runs, *said, "--parent", tmp_path], "is not a run folder"),
        (["--workdir", *runs, *said[:2]], "required: --conclusion"),
    ):
        before = path.read_bytes()
        code, _, err = report("note", *words, *([] if "--out" in words else ["--out", path]))
        assert (code, message in err, path.read_bytes() == before) == (2, True, True), err
