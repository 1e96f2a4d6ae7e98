"""scripts/predict.py: what is printed of every picture, of every fault, and how the script ends."""

import io
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_files import METADATA, make_model, save
from PIL import Image

from jax_cifar import load_run
from jax_cifar.data.pictures import read_pictures
from jax_cifar.deploy import stablehlo
from jax_cifar.deploy.onnx import load_onnx
from jax_cifar.errors import ConfigError, DataError

SCRIPT = Path(__file__).parents[1] / "scripts" / "predict.py"
HARMFUL = "\x1b[2J\r\n\u202e\x7f"
SHOWN = r"\x1b[2J\r\n\u202e\x7f"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A network that sees red, green and blue."""
    return save(make_model(), tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures, and two files that are none."""
    (tmp_path / "mine").mkdir()
    for number, colour in enumerate(("red", "lime", "blue")):
        Image.new("RGB", (40, 40), colour).save(tmp_path / "mine" / f"{number}.png")
    (tmp_path / "mine" / "1 empty.png").touch()
    (tmp_path / "mine" / "1 notes.txt").write_text("red, green, blue\n")
    return tmp_path / "mine"


def predict(*arguments: object) -> int:
    """The script's `main`, called in this process: its exit code."""
    try:
        runpy.run_path(str(SCRIPT))["main"](list(map(str, arguments)))
    except SystemExit as end:
        return int(str(end.code))
    return 0


def test_a_folder_is_a_table_with_a_line_for_every_fault(model: Path, folder: Path, capsys: Any) -> None:
    assert predict("--onnx", model, folder) == 2
    said = capsys.readouterr()
    assert said.out.split("\n\n")[:2] == [
        f"  99.80%  red    {folder}/0.png\n   0.15%  blue\n   0.05%  green",
        f"  99.89%  green  {folder}/1.png\n   0.11%  blue\n   0.00%  red",
    ]
    errors = said.err.splitlines()
    assert errors[0].startswith(f"warning: {folder}/0.png was shrunk a lot, from 40 x 40 pixels to 4 x 4")
    assert errors[1:] == [
        f"error: {folder}/1 empty.png cannot be read as a picture: it is empty.",
        f"error: {folder}/1 notes.txt cannot be read as a picture: it is no picture of a known format; save it"
        " as PNG or JPEG.",
    ]


def test_json_is_an_object_a_line_for_programs(model: Path, folder: Path, capsys: Any) -> None:
    assert predict("--onnx", model, "--json", "--top", 2, folder) == 2
    said = capsys.readouterr()
    found = [json.loads(line) for line in said.out.splitlines()]
    assert [set(each) for each in found] == [{"file", "predictions"}, *[{"file", "error"}] * 2] + [set(found[0])] * 2
    assert [Path(each["file"]).name for each in found] == ["0.png", "1 empty.png", "1 notes.txt", "1.png", "2.png"]
    assert [set(guess) for guess in found[0]["predictions"]] == [{"label", "index", "probability"}] * 2
    assert [(each["predictions"][0]["label"], each["predictions"][0]["index"]) for each in found[3:]] == [
        ("green", 1),
        ("blue", 2),
    ]
    assert 0.99 < found[0]["predictions"][0]["probability"] < 1 and "it is empty" in found[1]["error"]
    assert "error" not in said.err


def test_one_class_of_each_is_a_line_of_each_and_a_success_is_code_0(model: Path, folder: Path, capsys: Any) -> None:
    assert predict("--onnx", model, "--top", "1", folder / "2.png", folder / "0.png") == 0
    said = capsys.readouterr()
    assert said.out == f"  99.94%  blue   {folder}/2.png\n  99.80%  red    {folder}/0.png\n"
    assert said.err.count("shrunk a lot") == 1
    assert predict("--onnx", model, "--top", "100", folder / "2.png") == 0
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_an_animation_and_a_small_picture_are_told_of_as_they_are(model: Path, tmp_path: Path, capsys: Any) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert predict("--onnx", model, tmp_path / "a.gif", tmp_path / "a.gif") == 0
    warning = f"warning: {tmp_path}/a.gif holds several frames; the first one was taken.\n"
    assert capsys.readouterr().err == 2 * warning


def test_names_of_files_and_classes_act_on_no_terminal(tmp_path: Path, capsys: Any) -> None:
    names = json.dumps([HARMFUL, "green", "blue"])
    model = save(make_model(metadata=METADATA | {"label_names": names}), tmp_path)
    good, bad = tmp_path / f"good{HARMFUL}.png", tmp_path / f"bad{HARMFUL}.png"
    Image.new("RGB", (40, 40), "red").save(good)
    bad.touch()
    for options in ([], ["--json"]):
        assert predict("--onnx", model, *options, good, bad) == 2
        said = capsys.readouterr()
        assert not set(HARMFUL) - set("[2J\n") & set(said.out + said.err)
        if options:
            assert [json.loads(line)["file"] for line in said.out.splitlines()] == [str(good), str(bad)]
        else:
            assert said.out.startswith(f"  99.80%  {SHOWN}  {tmp_path}/good{SHOWN}.png\n") and f"bad{SHOWN}" in said.err
            assert len(said.err.splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [],
            "one of the arguments --workdir --onnx --stablehlo is required|the following arguments are required: IMAGE",
        ),
        (["--onnx", "m.onnx"], "the following arguments are required: IMAGE"),
        (["--onnx", "m.onnx", "--workdir", "runs/q", "a.png"], "--workdir: not allowed with argument --onnx"),
        (["--onnx", "m.onnx", "--top", "0", "a.png"], "--top 0 is not allowed: it must be at least 1"),
        (["--onnx", "m.onnx", "--top", "x", "a.png"], "--top: invalid int value: 'x'"),
        (["--onnx", "m.onnx", "-", "-"], "- is given twice"),
        (["--onnx", "m.onnx", "--checkpoint", "best", "a.png"], "--checkpoint does nothing with an exported file"),
        (["--onnx", "m.onnx", "--trust-code", "a.png"], "--trust-code does nothing with an exported file"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_read(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        predict(*arguments)


def test_a_run_predicts_what_load_run_says(finished_run: Any, tmp_path: Path, capsys: Any) -> None:
    rng, paths = np.random.default_rng(0), [tmp_path / f"{number}.png" for number in range(3)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)).save(path)
    assert predict("--workdir", finished_run.workdir, "--json", *paths) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    run = load_run(finished_run.workdir)
    shares = run.probabilities(read_pictures(paths, 32))
    for each, row in zip(found, shares, strict=True):
        order = np.argsort(-row)[:5]
        assert [guess["label"] for guess in each["predictions"]] == [run.label_names[index] for index in order]
        np.testing.assert_allclose([guess["probability"] for guess in each["predictions"]], row[order], rtol=1e-5)


def test_a_stablehlo_file_predicts_too(model: Path, folder: Path, monkeypatch: Any, capsys: Any) -> None:
    asked: list[str] = []
    monkeypatch.setattr(stablehlo, "load_stablehlo", lambda path: asked.append(path) or load_onnx(model))
    assert predict("--stablehlo", "model.stablehlo", "--top", 1, folder / "0.png") == 0
    assert asked == ["model.stablehlo"] and capsys.readouterr().out == f"  99.80%  red    {folder}/0.png\n"


def test_a_terminal_is_no_picture(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", stream)
    with pytest.raises(DataError, match=r"- is a picture that is piped in"):
        predict("--onnx", model, "-")


def test_standard_input_is_a_picture_and_an_output_that_ends_ends_the_work(model: Path, folder: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--onnx", str(model), "--top", "1"]
    content = (folder / "1.png").read_bytes()
    done = subprocess.run([*command, "-", str(folder / "0.png")], input=content, capture_output=True, check=True)
    assert done.stdout.decode() == f"  99.89%  green  -\n  99.80%  red    {folder}/0.png\n"

    reading, writing = os.pipe()
    os.close(reading)
    gone = subprocess.run([*command, *[str(folder / "0.png")] * 9, "gone"], stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (gone.returncode, gone.stderr) == (0, b"")
    with open("/dev/full", "wb") as full:
        stopped = subprocess.run([*command, str(folder / "0.png"), "gone"], stdout=full, stderr=subprocess.PIPE)
        assert (stopped.returncode, stopped.stderr) == (2, b"error: [Errno 28] No space left on device\n")
        by_name = [sys.executable, "-m", "jax_cifar", "predict", *command[2:], str(folder / "0.png")]
        stopped = subprocess.run(by_name, stdout=full, stderr=subprocess.PIPE)
    assert (stopped.returncode, stopped.stderr) == (2, b"error: [Errno 28] No space left on device\n")
