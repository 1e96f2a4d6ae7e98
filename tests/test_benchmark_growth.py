"""benchmarks/growth.py: what grows is what is trained, and how the growth of its cost is told."""

import argparse
import functools

import pytest

from benchmarks import growth, machine, timing
from benchmarks.machine import Condition
from benchmarks.timing import Timing


@pytest.mark.slow
def test_growth_is_measured_for_every_value(monkeypatch):
    trained = []
    monkeypatch.setattr(growth, "train_many", lambda configs, splits: trained.append(len(configs)))
    monkeypatch.setattr(machine, "observe", lambda work: (work(), Condition()))
    monkeypatch.setattr(timing, "_repeats", lambda work, seconds: work(1) or 1)
    axes = {"side": growth.Axis((4, 8), lambda side: side**2), "seeds": growth.Axis((1, 3), float)}
    monkeypatch.setattr(growth, "AXES", axes)
    monkeypatch.setattr(growth, "Point", functools.partial(growth.Point, images=16, batch=8, width=2, classes=3))
    options = argparse.Namespace(axes=list(axes), model="simple_cnn", rounds=1)
    side, _ = growth.measure(options)
    assert growth.cases(options) == 2
    assert trained == [1, 3] * 2  # what is not timed, and what is
    assert (side.name, list(side.timings), list(side.memory)) == ("simple_cnn, side", ["4", "8"], ["4", "8"])
    assert side.memory["8"] > side.memory["4"] > 0


def test_growth_is_seconds_over_work_since_the_smallest_value():
    timings = {"16": Timing((0.5, 1.0)), "32": Timing((4.0, 4.0))}
    case = growth.Growth("simple_cnn, side", timings, axis="side", memory={"16": 1e6, "32": 2.5e6})
    assert growth.table([case]).splitlines()[2:] == [
        "| side | 16 | 750 ms (500-1000) | **1.00** (1.00-1.00) | 1.0 MB |",
        "| side | 32 | 4 s (4-4) | **1.50** (1.00-2.00) | 2.5 MB |",
    ]
    (kept,) = growth.as_json("growth", [case])["cases"]
    assert (kept["of_linear"], kept["ratio"], kept["memory"]) == ({"16": 1.0, "32": 1.5}, None, case.memory)


def test_what_grows_is_what_is_trained():
    for axis, (least, *_) in {name: axis.values for name, axis in growth.AXES.items()}.items():
        point = growth.Point(**{axis: least})
        config = growth.experiment("simple_cnn", point)
        splits = growth.random_images(point.images, point.side, point.classes)
        found = {
            "images": len(splits.train),
            "side": splits.train.images.shape[1],
            "width": config.model.width,
            "batch": config.train.batch_size,
            "classes": splits.num_classes,
        }
        assert found.get(axis, least) == least
