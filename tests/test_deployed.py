"""Ways to run one network side by side, and the suite that runs it in every runtime."""

import argparse
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import runtimes
from benchmarks.tables import as_json
from jax_cifar.data import Dataset
from jax_cifar.errors import ConfigError
from jax_cifar.evaluation.latency import Latency, of_calls
from jax_cifar.lab import deployed
from jax_cifar.lab.deployed import Figures, Way
from jax_cifar.telemetry.trade_off import Point, best_of_both, draw_trade_off

TEST = Dataset(np.arange(4 * 12, dtype=np.uint8).reshape(4, 2, 2, 3), np.array([0, 1, 1, 1], np.int32))
FIRST = np.array([[8, 0], [1, 2], [0, 4], [3, 1]], np.float32)


def answers(logits):
    """A network that knows the test images by their first pixel, and calls of what sizes it got."""

    def predict(images):
        sizes.append(len(images))
        return logits[images[:, 0, 0, 0] // 12]

    sizes = []
    return predict, sizes


def test_ways_are_compared_with_labels_and_with_the_first():
    other = FIRST + np.array([[0, 0], [2, 0], [0, 0], [0, 0]], np.float32)
    (first, sizes), (second, _) = answers(FIRST), answers(other)
    own = {1: Latency(0.5, 0.6), 128: Latency(2.0, 3.0)}
    one, two = deployed.compare({"a": Way(first, 2000), "b": Way(second, 500, own)}, TEST, seconds=0)
    assert (one.accuracy, one.same, one.images, one.gap, one.size) == (0.75, 4, 4, 0.0, 2000)
    assert (two.accuracy, two.same, two.gap, two.size) == (0.5, 3, 0.25, 500)
    assert set(sizes) == {4, 1, 128}
    assert one.latencies[1].p50 > 0 and two.latencies == own and two.images_per_second == 64


def test_many_images_come_in_several_calls(monkeypatch):
    monkeypatch.setattr(deployed, "ALL_AT_ONCE", 3)
    predict, sizes = answers(FIRST)
    assert np.array_equal(deployed.in_batches(predict)(TEST.images), FIRST)
    assert sizes == [3, 1]


def test_the_latency_of_calls_is_their_median_and_what_95_in_a_hundred_take():
    assert of_calls(list(range(101))) == Latency(50.0, 95.0)


LATENCIES = {1: Latency(0.001, 0.002), 128: Latency(0.064, 0.0701)}
ROWS = (
    Figures("float32", 0.75, 4, 4, 0.0, 2_000_000, LATENCIES),
    Figures("int8", 0.5, 3, 4, 0.25, 500_000, LATENCIES),
    Figures("jax", 0.5, 4, 4, 2e-7, None, LATENCIES),
)


def test_the_table_shows_losing_cells_too():
    assert deployed.table(ROWS).splitlines()[2:] == [
        "| float32 | 75.00% | 2,000.0 | 1.00 | 1, 2 | 64, 70.1 | 2,000 | 4 of 4 | 0.0e+00 |",
        "| int8 | 50.00% | 500.0 | 0.25 | 1, 2 | 64, 70.1 | 2,000 | 3 of 4 | 2.5e-01 |",
        "| jax | 50.00% | - | - | 1, 2 | 64, 70.1 | 2,000 | 4 of 4 | 2.0e-07 |",
    ]


def test_a_runtime_that_is_not_at_hand_is_named_and_one_that_differs_too(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    opened = {"a": lambda: Way(answers(FIRST)[0], 1), "b": lambda: Way(answers(-FIRST)[0], 1)}
    case = runtimes.run_all("float32", opened | {"openvino": lambda: runtimes.open_openvino(Path("none"))}, TEST, 0)
    said = runtimes.table([case])
    assert said.startswith("float32, 4 test images, ")
    assert "b differs: 4 classes, logits by 2.0e+00." in said and "a differs" not in said
    (values,) = json.loads(json.dumps(as_json("runtimes", [case]), allow_nan=False))["cases"]
    assert [(row["name"], row["same"]) for row in values["figures"]] == [("a", 4), ("b", 0)]
    assert set(values["figures"][0]["latencies"]) == {"1", "128"} and list(values["missing"]) == ["openvino"]
    assert "openvino was not at hand: it is not installed. Install it with: pip install -e '.[openvino]'" in said


def test_what_nothing_beats_in_both_is_best():
    assert best_of_both([1.0, 2.0, 2.0, 3.0, 3.0], [0.5, 0.7, 0.6, 0.7, 0.8]) == [True, True, False, False, True]


def test_the_picture_has_every_version_but_no_size_where_there_is_no_file(tmp_path):
    points = [Point("a$b", 0.5, 1.0, 20.0), Point("in JAX", 0.6, 2.0, None)]
    path = draw_trade_off(points, "$any", 1, tmp_path / "deep" / "variants.png")
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "needs a trained network: --workdir DIR"), (["--workdir", "x", "--images", "0"], "--images = 0 is not")],
)
def test_what_the_suite_cannot_do_is_told(arguments, message):
    parser = argparse.ArgumentParser()
    runtimes.add_options(parser)
    with pytest.raises(ConfigError, match=message):
        next(runtimes.measure(parser.parse_args(arguments)))


@pytest.mark.parametrize("asked", [["int8", "float32"], ["int8", "int8", "float32", "float32"]])
def test_each_precision_has_its_own_file_in_any_order(monkeypatch, asked):
    def as_file(text):
        return SimpleNamespace(SerializeToString=text.encode)

    def to_int8(model, _):
        return SimpleNamespace(model=as_file(f"int8 of {model.SerializeToString().decode()}"))

    def run_all(precision, openers, test, seconds):
        ran.append((precision, openers["openvino"].args[0].read_text(), "jax" in openers))
        return runtimes.Runtimes(precision, {})

    ran, splits = [], SimpleNamespace(test=TEST)
    run = SimpleNamespace(splits=lambda folder: splits, network=SimpleNamespace(spec=None), logits=None)
    monkeypatch.setattr(runtimes, "load_run", lambda *_, **__: run)
    monkeypatch.setattr(runtimes, "make_twin", lambda run: None)
    monkeypatch.setattr(runtimes, "network_openers", lambda *_: {"jax": None})
    monkeypatch.setattr(runtimes, "run_all", run_all)
    monkeypatch.setattr(runtimes.export, "to_onnx", lambda *_: as_file("float32"))
    monkeypatch.setattr(runtimes.quantize, "TrainingImages", lambda splits: splits)
    monkeypatch.setattr(runtimes.quantize, "to_int8", to_int8)
    parser = argparse.ArgumentParser()
    runtimes.add_options(parser)
    assert len(list(runtimes.measure(parser.parse_args(["--workdir", "x", "--precision", *asked])))) == len(asked)
    rows = {"float32": ("float32", "float32", True), "int8": ("int8", "int8 of float32", False)}
    assert ran == [rows[precision] for precision in asked]


@pytest.mark.slow
def test_one_network_gives_one_answer_in_every_runtime_that_is_there(finished_run, monkeypatch):
    once = {name: Latency(1.0, 1.0) for name in runtimes.RUNTIMES}
    monkeypatch.setattr(deployed, "measure_latencies", lambda ways, seconds: once)
    parser = argparse.ArgumentParser()
    runtimes.add_options(parser)
    chosen = ["--runtimes", "jax", "torch", "onnxruntime", "--precision", "float32", "--images", "30"]
    (case,) = runtimes.measure(parser.parse_args(["--workdir", str(finished_run.workdir), "--seconds", "0", *chosen]))
    assert [row.name for row in case.figures] == ["jax", "torch", "onnxruntime"]
    assert all(row.same == 30 and row.gap <= runtimes.AGREEMENT for row in case.figures)
    assert case.figures[0].accuracy == case.figures[2].accuracy
