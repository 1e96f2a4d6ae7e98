"""Output below a cell of a notebook, seen by a planted shell of IPython: one table, one line, that change in place."""

import io
import re
import sys
import types

import pytest

from jax_cifar import progress as progress_module
from jax_cifar.errors import ConfigError
from jax_cifar.notebook import is_notebook
from jax_cifar.progress import progress
from jax_cifar.telemetry.console import Console

FIGURES = {"loss": 1.25, "accuracy": 0.5, "lr": 0.02, "images_per_second": 3210.4}


class Cell(io.TextIOBase):
    """What appears below a cell, from top to bottom: texts, and lists of all the versions of a display."""

    def __init__(self):
        self.outputs = []

    def write(self, text):
        if not self.outputs or not isinstance(self.outputs[-1], str):
            self.outputs.append("")
        self.outputs[-1] += text
        return len(text)

    def display(self, content, *, raw, display_id):
        assert raw and display_id
        versions = [content]
        self.outputs.append(versions)
        return types.SimpleNamespace(update=lambda content, raw: versions.append(content))


@pytest.fixture
def cell(monkeypatch):
    found = Cell()
    shell = types.SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(display=found.display))
    monkeypatch.setattr(progress_module, "sys", types.SimpleNamespace(stderr=found))  # pytest sets sys.stderr itself
    monkeypatch.setattr(progress_module, "TERMINAL_SECONDS", 60)
    return found


def run(console, clock, steps=300):
    console.line("before")
    console.start(steps, 100)
    for step in range(1, steps + 1):
        clock.seconds = step / 8
        console.show_alive(step)
        if step % 10 == 0:
            console.update(step, **FIGURES)
        if step % 100 == 0:
            console.row(step, **FIGURES, eval_loss=1.5, eval_accuracy=0.4)


def test_what_is_kept_in_a_text_or_file_is_no_notebook_and_neither_is_a_terminal(cell, monkeypatch, tmp_path):
    assert is_notebook(cell)
    assert not is_notebook(io.StringIO())
    with (tmp_path / "log").open("w") as file:
        assert not is_notebook(file)
    for shell in (None, object()):
        monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda shell=shell: shell)
        assert not is_notebook(cell)
    monkeypatch.delitem(sys.modules, "IPython")
    assert not is_notebook(cell)


def test_a_run_is_one_display_between_its_lines(cell, clock):
    with Console(cell, now=clock) as console:
        run(console, clock)
    console.line("after")
    before, versions, after = cell.outputs
    assert (before, after) == ("before\n", "after\n")
    # 37.5 seconds, two versions in each, and the first and the last.
    assert len(versions) == 77
    assert versions[-1]["text/plain"].splitlines() == [
        " epoch     step  train loss  train acc   test loss   test acc        lr  images/s     time     left",
        "   1.0      100      1.2500     50.00%      1.5000     40.00%      0.02     3,210     0:12     0:25",
        "   2.0      200      1.2500     50.00%      1.5000     40.00%      0.02     3,210     0:25     0:12",
        "   3.0      300      1.2500     50.00%      1.5000     40.00%      0.02     3,210     0:38     0:00",
    ]
    rows = re.findall(r"<tr>(.*?)</tr>", versions[-1]["text/html"])
    assert [re.findall(r">([^<>]+)<", row)[0] for row in rows] == ["epoch", "1.0", "2.0", "3.0"]


def test_a_bar_above_the_table_tells_of_the_epoch_and_is_gone_at_the_end(cell, clock):
    with Console(cell, now=clock) as console:
        run(console, clock)
        versions = cell.outputs[-1]
        assert versions[0]["text/plain"] == "0%"
        assert 'max="300" value="0"' in versions[0]["text/html"]
        assert versions[37]["text/plain"].splitlines()[0] == "49%  loss 1.250  acc 50.0%  3,210 images/s  0:20 left"
        assert 'max="300" value="148"' in versions[37]["text/html"]
    assert "progress" not in versions[-1]["text/html"]
    assert "%  loss" not in versions[-1]["text/plain"]


def test_a_run_that_fails_leaves_its_rows(cell, clock):
    def fail():
        with Console(cell, now=clock) as console:
            run(console, clock, steps=200)
            console.row(201, **FIGURES)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    versions = cell.outputs[-1]
    assert [line.split()[1] for line in versions[-1]["text/plain"].splitlines()[1:]] == ["100", "200", "201"]


def test_of_a_long_run_the_newest_rows_are_shown_and_the_others_counted(cell, clock):
    with Console(cell, now=clock) as console:
        console.start(3000, 1)
        for step in range(1, 1031):
            console.row(step, **FIGURES)
    first, _, *rows = cell.outputs[-1][-1]["text/plain"].splitlines()
    assert first == "1,010 rows before these; all are in metrics.jsonl"
    assert [int(row.split()[1]) for row in rows] == list(range(1011, 1031))


def test_a_long_command_is_one_line_that_is_gone_at_the_end(cell, clock):
    with progress("sweep", total=2, now=clock) as outer:
        outer.draw()
        outer.advance(note="<b>")
        with progress("download", now=clock) as inner:
            inner.draw()
        outer.draw()
    (versions,) = cell.outputs
    begins = ("sweep: 0 of 2,", "sweep: 1 of 2, about 0:00 left | download, 0:00", "", "sweep: 1 of 2, ##########", "")
    for version, begin in zip(versions, begins, strict=True):
        assert version["text/plain"].startswith(begin) and bool(version["text/plain"]) == bool(begin)
    assert versions[3]["text/html"].startswith("<pre>sweep: 1 of 2, ##########----------, 0:00")
    assert versions[3]["text/html"].endswith("&lt;b&gt;</pre>")
    assert versions[-1]["text/html"] == ""


def test_a_quick_command_shows_nothing_and_what_it_prints_stays_text(cell):
    with progress("sweep", total=1) as bar:
        bar.print("| 0.1 |", cell)
        bar.advance()
    assert cell.outputs == ["| 0.1 |\n"]


def test_a_users_mistake_is_shown_as_its_message():
    error = ConfigError("optim.lr = -1 is not allowed: it must be greater than 0.\x1b[2J")
    assert error._render_traceback_() == [f"error: {error}".replace("\x1b", "\\x1b")]
