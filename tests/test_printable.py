"""What comes from files is shown as text: names and messages colour, move and turn nothing on a terminal."""

import io
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from jax_cifar.cli import run
from jax_cifar.errors import DataError, printable
from jax_cifar.evaluation.metrics import report
from jax_cifar.lab.tables import markdown
from jax_cifar.telemetry.console import Console
from jax_cifar.telemetry.plots import draw_confusion_matrix

HARMFUL = "\x1b[2J\x1b]0;title\x07\r\b\x9b1m\u202e\u2066\udcff\x00"
SHOWN = r"\x1b[2J\x1b]0;title\x07\r\x08\x9b1m\u202e\u2066\udcff\x00"


def test_control_characters_are_written_out_and_writing_of_all_people_is_not():
    assert printable(HARMFUL) == SHOWN
    plain = "Größe, 猫\u3000犬, кот, קול, 100 %\nnext line"
    assert printable(plain) == plain
    assert printable("a\nb", keep="") == r"a\nb"


def is_harmless(text: str) -> bool:
    return not set(HARMFUL) & set(text) - set("[2J]0;title1m") and SHOWN in text


def test_no_way_of_showing_a_name_lets_it_act(monkeypatch, tmp_path, capsys):
    def fails(arguments):
        raise DataError(f"{tmp_path}/{HARMFUL} is no picture.")

    with pytest.raises(SystemExit):
        run(fails)
    assert is_harmless(capsys.readouterr().err)

    for is_terminal in (False, True):
        stream = io.StringIO()
        monkeypatch.setattr(stream, "isatty", lambda shown=is_terminal: shown)
        monkeypatch.setenv("TERM", "xterm")
        console = Console(stream, width=200)
        console.line(HARMFUL)
        console.facts({"data": HARMFUL})
        assert stream.getvalue().count(SHOWN[:22]) == 2  # a carriage return is a space where lines are wrapped
        assert "\x1b[2J" not in stream.getvalue() and "\u202e" not in stream.getvalue()

    judged = report(np.eye(2, dtype=np.float32), np.array([0, 1]), (f"{HARMFUL}\n", "b"))
    assert is_harmless(judged.table()) and len(judged.table().splitlines()) == 6
    assert is_harmless(markdown(["a"], [[f"{HARMFUL}|\n"]])) and markdown(["a"], [["b|c"]]).endswith(r"| b\|c |")


def test_a_class_with_dollar_signs_is_drawn(tmp_path):
    names = [r"$\frac$", HARMFUL[:8], "_b$x"]
    assert draw_confusion_matrix(np.eye(3, dtype=int) + 1, names, tmp_path / "x.png").is_file()


def test_a_report_of_harmful_runs_is_text(tmp_path, capsys, monkeypatch):
    folder = tmp_path / f"run{HARMFUL[:5]}"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"name": "x"}))
    main = runpy.run_path(str(Path(__file__).parents[1] / "scripts/report.py"))["main"]
    monkeypatch.setattr(sys, "argv", ["report.py", "--workdir", str(folder)])
    with pytest.raises(SystemExit):
        run(main)
    shown = capsys.readouterr().err
    assert r"run\x1b[2J" in shown and "\x1b" not in shown
