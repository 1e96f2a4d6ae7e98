"""Pictures: that they are drawn, of a sensible size, and from the right figures."""

import json
import math

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from jax_cifar.telemetry import plots
from jax_cifar.telemetry.plots import draw_confusion_matrix, draw_curves, draw_plots
from jax_cifar.telemetry.run_log import RunLog


def make_run(workdir, loss=lambda step: 2 / step, splits=("train", "test")):
    workdir.mkdir(exist_ok=True)
    (workdir / "config.json").write_text(json.dumps({"name": "my_run"}))
    with RunLog(workdir, False, None) as log:
        for step in range(1, 9):
            for split in splits:
                record = {"step": step, "epoch": step / 4, "split": split, "loss": loss(step), "accuracy": step / 10}
                log.write({**record, **({"lr": 0.1 / step} if split == "train" else {})})


@pytest.fixture
def drawn(monkeypatch):
    """Figures by file name, kept instead of written."""
    figures = {}

    def keep(figure, path):
        figures[path.name] = figure
        return path

    monkeypatch.setattr(plots, "save", keep)
    return figures


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_a_run_gets_three_pictures(tmp_path):
    make_run(tmp_path)
    paths = draw_plots(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        "plots/loss.png",
        "plots/accuracy.png",
        "plots/learning_rate.png",
    ]
    for path in paths:
        with Image.open(path) as image:
            assert (image.format, image.mode) == ("PNG", "RGBA")
            assert 1000 < image.width < 1400
            assert 600 < image.height < 900
            assert len(set(image.convert("L").tobytes())) > 20
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == sorted(path.name for path in paths)


def test_curves_are_the_logged_figures_in_epochs_and_per_cent(tmp_path, drawn):
    make_run(tmp_path, splits=("train", "validation", "test"))
    draw_plots(tmp_path)
    axes = drawn["accuracy.png"].axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "accuracy (%)")
    assert axes.get_title(loc="left") == "my_run: accuracy"
    assert texts(drawn["accuracy.png"])[0] == "last: train 80.00 %, validation 80.00 %, test 80.00 %"
    assert len(axes.lines) == 3
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [(s / 4, 10 * s) for s in range(1, 9)])
    rate = drawn["learning_rate.png"].axes[0]
    np.testing.assert_allclose(rate.lines[0].get_ydata(), [0.1 / s for s in range(1, 9)])


def test_curves_are_drawn_of_records_alone(tmp_path, drawn):
    records = [{"step": 4, "split": "test", "loss": 0.5}, {"step": 8, "split": "test", "loss": None}]
    assert draw_curves(records, "any", tmp_path) == [tmp_path / "loss.png"]
    assert drawn["loss.png"].axes[0].get_title(loc="left") == "any: loss"
    np.testing.assert_equal(drawn["loss.png"].axes[0].lines[0].get_xydata(), [(4, 0.5), (8, np.nan)])


@pytest.mark.parametrize("heights", [[0.5, 0.5, 0.5], [1.0, 0.99, 0.97], [0.0, 0.01, 0.0], [0.2, 0.9, 0.5]])
def test_names_at_the_ends_of_close_curves_stay_apart_and_in_order(heights):
    moved = plots.apart(np.array(heights))
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert np.diff(np.sort(moved)).min() > 0.05
    assert np.argsort(moved, kind="stable").tolist() == np.argsort(heights, kind="stable").tolist()
    if np.diff(np.sort(heights)).min() > 0.1:
        np.testing.assert_allclose(moved, heights)


def test_every_curve_is_named_at_its_end(tmp_path, drawn):
    make_run(tmp_path, splits=("train", "validation", "test"))
    draw_plots(tmp_path)
    assert texts(drawn["loss.png"])[1:] == ["train", "validation", "test"]


@pytest.mark.parametrize(("loss", "scale"), [(lambda step: 2 / step, "linear"), (lambda step: 10.0**-step, "log")])
def test_a_loss_of_many_magnitudes_gets_a_log_axis(tmp_path, drawn, loss, scale):
    make_run(tmp_path, loss)
    draw_plots(tmp_path)
    assert drawn["loss.png"].axes[0].get_yscale() == scale


def test_a_loss_of_ones_own_is_not_called_cross_entropy(tmp_path, drawn):
    make_run(tmp_path)
    draw_plots(tmp_path)
    assert drawn["loss.png"].axes[0].get_ylabel() == "cross-entropy (nats)"
    (tmp_path / "config.json").write_text('{"name": "a", "train": {"loss": {"function": "brier", "from": "a.py"}}}')
    draw_plots(tmp_path)
    assert drawn["loss.png"].axes[0].get_ylabel() == "train: brier; else cross-entropy (nats)"


def test_a_negative_loss_lies_inside_its_axes(tmp_path, drawn):
    make_run(tmp_path, lambda step: -1.0 * step)
    draw_plots(tmp_path)
    lowest, highest = drawn["loss.png"].axes[0].get_ylim()
    assert lowest < -8 and highest == 1


def test_a_diverged_run_is_drawn_up_to_its_last_finite_figure(tmp_path, drawn):
    make_run(tmp_path, lambda step: 2.0 if step < 5 else math.nan)
    draw_plots(tmp_path)
    assert texts(drawn["loss.png"])[0] == "last: train 2.0000, test 2.0000"


def test_what_was_never_finite_is_left_out(tmp_path, drawn):
    make_run(tmp_path, lambda step: math.nan)
    assert [path.name for path in draw_plots(tmp_path)] == ["accuracy.png", "learning_rate.png"]
    assert draw_plots(tmp_path / "nothing") == []


def test_a_noisy_curve_is_smoothed_without_lag():
    ramp = np.arange(100.0)
    np.testing.assert_allclose(plots.running_mean(ramp, 5)[5:-5], ramp[5:-5])
    gap = np.where(ramp == 50, np.nan, ramp)
    assert np.flatnonzero(np.isnan(plots.running_mean(gap, 5))).tolist() == [50]


@pytest.mark.parametrize(
    ("classes", "smallest", "largest"), [(3, 900, 1800), pytest.param(100, 1900, 2800, marks=pytest.mark.slow)]
)
def test_confusion_matrix_of_few_and_many_classes(tmp_path, classes, smallest, largest):
    matrix = np.random.default_rng(0).integers(0, 10, (classes, classes)) + 50 * np.eye(classes, dtype=int)
    path = draw_confusion_matrix(matrix, [f"class_{i}" for i in range(classes)], tmp_path / "new" / "matrix.png")
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert smallest < image.height < image.width < largest


def test_names_in_letters_that_the_font_lacks_warn_of_nothing(tmp_path):
    names = ["\u65e5\u672c", "\u05e9\u05dc\u05d5\u05dd", "\u0928\u092e", "plain"]
    path = draw_confusion_matrix(np.eye(4, dtype=int)[[1, 0, 2, 3]], names, tmp_path / "matrix.png")
    assert path.stat().st_size > 1000


def test_a_font_of_this_machine_is_fallen_back_on_where_a_name_needs_one(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "MORE_FONTS", ("No Such Font", "DejaVu Serif"))
    figure = Figure()
    figure.text(0, 0, "plain")
    figure.text(0, 0.5, "\u65e5\u672c")
    before = figure.texts[0].get_fontfamily()
    plots.save(figure, tmp_path / "names.png")
    assert [text.get_fontfamily() for text in figure.texts] == [before, [*before, "DejaVu Serif"]]


def test_confusion_matrix_has_true_classes_in_rows_and_lists_the_worst_pairs(tmp_path, drawn):
    matrix = np.array([[90, 10, 0], [0, 50, 0], [20, 6, 24]])
    draw_confusion_matrix(matrix, ["ant", "bee", "cat"], tmp_path / "matrix.png", "my_run, test")
    grid, side = drawn["matrix.png"].axes[:2]
    assert grid.get_title(loc="left") == "my_run, test: 82.00% of 200 images right"
    assert (grid.get_xlabel(), grid.get_ylabel()) == ("predicted class", "true class")
    np.testing.assert_allclose(grid.images[0].get_array(), [[90, 10, 0], [0, 100, 0], [40, 12, 48]])
    assert {(t.get_position(), t.get_text()) for t in grid.texts} >= {((1, 0), "10"), ((0, 2), "20")}
    listed = [text.get_text() for text in side.texts[2:]]
    assert listed == ["cat → ant", "40.0%", "cat → bee", "12.0%", "ant → bee", "10.0%"]


def test_a_class_without_images_is_drawn(tmp_path):
    matrix = np.array([[3, 1], [0, 0]])
    assert draw_confusion_matrix(matrix, ["a", "b"], tmp_path / "matrix.png").stat().st_size > 1000
