"""What scripts/visualize.py draws: draws of augmentation, one filter in many settings, a first layer."""

import re
import runpy
from pathlib import Path
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from small_runs import Perceptron, untrained_run

from jax_cifar.augment import Cutout, HorizontalFlip, RandomCrop, ToGray
from jax_cifar.config import Config, MixConfig, ModelName
from jax_cifar.errors import ConfigError, UserError
from jax_cifar.lab.pictures import augmentation_rows, describe, edge_kernel, filter_panels, first_layer_panels
from jax_cifar.models.network import normalize
from jax_cifar.ops.conv import conv2d
from jax_cifar.telemetry.images import draw_rows, draw_sections

SCRIPT = Path(__file__).parents[1] / "scripts" / "visualize.py"
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)


def rows_of(augment: Any = (), columns=6, **mix):
    return augmentation_rows(Config(name="rows", augment=augment, mix=MixConfig(**mix)), IMAGES, columns)


@pytest.mark.slow
def test_a_row_for_every_transform_and_for_all():
    rows = rows_of((RandomCrop(padding=4), HorizontalFlip(), Cutout()), mixup_alpha=1.0)
    assert [row.label for row in rows] == ["RandomCrop", "HorizontalFlip", "Cutout", "mixing", "all together"]
    for i, row in enumerate(rows):
        np.testing.assert_allclose(row.original, IMAGES[i % 5] / 255, atol=1e-6)
        assert row.results.shape == (6, 32, 32, 3)
    crops, flips = rows[0].results, rows[1].results
    assert len({crop.tobytes() for crop in crops}) > 3  # independent draws of one image
    flipped = [np.allclose(result, rows[1].original[:, ::-1]) for result in flips]
    assert {True, False} == set(flipped)
    assert all(result or np.allclose(flips[i], rows[1].original) for i, result in enumerate(flipped))


def test_mixing_shows_the_image_and_different_partners():
    (mixing, whole) = rows_of(mixup_alpha=1.0)
    own, shares = IMAGES[0] / 255, set()
    for column, result in enumerate(mixing.results):
        apart = IMAGES[(column + 1) % 5] / 255 - own
        share = np.sum((result - own) * apart) / max(np.sum(apart**2), 1e-9)  # column 4 is mixed with itself
        np.testing.assert_allclose(result, own + share * apart, atol=1e-5)
        shares.add(round(float(share), 3))
    assert len(shares) == 6  # every column draws its own
    assert whole.label == "all together"


def test_all_together_mixes_transformed_images_as_training_does():
    *_, mixing, whole = rows_of((ToGray(p=1.0),), cutmix_alpha=1.0)
    assert np.ptp(mixing.results, axis=-1).max() > 0.2
    np.testing.assert_allclose(np.ptp(whole.results, axis=-1), 0, atol=1e-6)
    assert min(np.abs(result - whole.results[0]).max() for result in whole.results[1:]) > 0.1


def test_without_augmentation_images_are_shown_as_they_are():
    (row,) = rows_of()
    np.testing.assert_array_equal(row.results, np.repeat(row.original[None], 6, 0))


def test_groups_are_described_with_their_members():
    class Group:
        transforms = (Cutout(), HorizontalFlip())

    assert describe(Group()) == "Group(Cutout, HorizontalFlip)"


def test_the_filter_answers_to_vertical_edges_only():
    step = np.zeros((32, 32, 3), np.uint8)
    step[:, 16:] = 255
    kernel = edge_kernel(5)
    np.testing.assert_allclose(kernel, -kernel[:, ::-1], atol=1e-15)
    assert np.abs(kernel).sum() == pytest.approx(1)
    for image, answers in ((step, True), (step.transpose(1, 0, 2).copy(), False)):
        unpadded = next(panel for panel in filter_panels(image) if panel.title.startswith("5x5, stride 1, padding 0"))
        assert (np.abs(unpadded.image).max() > 0.4) == answers


def test_every_setting_has_the_size_it_says():
    first, *others = filter_panels(IMAGES[0])
    assert first.title == "image, 32 x 32"
    assert len(others) == 12
    for panel in others:
        kernel, _, stride, padding, *_ = map(int, re.findall(r"\d+", panel.title))
        size = (32 + 2 * padding - kernel) // stride + 1
        assert panel.image.shape == (size, size)
        assert panel.title.endswith(f"{size} x {size}")


@pytest.mark.parametrize(
    ("name", "path"), [("tiny_cnn", ("conv1",)), ("speedrun_net", ("whiten",)), ("cifar_cnn", ("block1", "conv1"))]
)
def test_the_first_layer_and_its_maps(tmp_path, name, path):
    dropout = None if name == "speedrun_net" else 0.0
    trained = untrained_run(tmp_path, model={"name": cast(ModelName, name), "width": 2, "dropout": dropout})
    network, variables = trained.network, trained.variables
    filters, maps = first_layer_panels(trained, IMAGES[0])
    layer: Any = variables["params"]
    for part in path:
        layer = layer[part]
    kernel = jnp.asarray(layer["kernel"])
    assert len(filters) == len(maps) == kernel.shape[-1]
    assert all(
        panel.image.shape == kernel.shape[:3] and 0 <= panel.image.min() <= panel.image.max() <= 1 for panel in filters
    )
    pixels = normalize(jnp.asarray(IMAGES[:1], jnp.float32) / 255, network.spec.mean, network.spec.std)
    padding = (kernel.shape[0] - 1) // 2
    expected = conv2d(pixels, kernel, (1, 1), ((padding, padding), (padding, padding)))[0]
    expected = np.asarray(expected) + np.asarray(layer.get("bias", 0.0))
    for i, panel in enumerate(maps):
        np.testing.assert_allclose(panel.image, expected[..., i], atol=1e-5)
    draw_sections([("filters", filters), ("maps", maps)], tmp_path / "maps.png")
    assert (tmp_path / "maps.png").stat().st_size > 5000


def test_rows_are_drawn(tmp_path):
    path = draw_rows(rows_of((RandomCrop(),)), tmp_path / "rows.png", "title")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_one_channel_is_drawn_grey_and_as_bright_as_it_is(tmp_path):
    dark = np.linspace(0, 0.2, 64, dtype=np.float32).reshape(8, 8, 1)
    draw_rows([("dark", dark, dark[None])], tmp_path / "rows.png", "t")
    draw_sections([("s", [("dark", dark)])], tmp_path / "sections.png", columns=1)
    for name in ("rows", "sections"):
        drawn = np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB"), np.int32)
        colourless = np.ptp(drawn, axis=-1) == 0
        assert (np.ptp(drawn, axis=-1) < 40).all()  # text is a little blue
        assert (colourless & (drawn[..., 0] <= 51)).mean() > 0.2  # the image, at most a fifth bright


def test_filters_larger_than_the_image_are_left_out(tmp_path):
    titles = [panel.title for panel in filter_panels(IMAGES[0, :4, :4, :1])]
    sizes = [int(title[0]) for title in titles if "padding 0" in title]
    assert sizes == [3, 3] and titles[-1].startswith("9x9, stride 2, padding 4")
    draw_sections([("filters", filter_panels(IMAGES[0, :4, :4, :1]))], tmp_path / "small.png")


@pytest.fixture
def main():
    """The script's `main`, called in this process."""
    return runpy.run_path(str(SCRIPT))["main"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["augment", "--out", "picture.jpg"], r"must be a \.png file"),
        (["augment", "--out", "missing/picture.png"], "in a folder that exists"),
        (["augment", "--out", "x.png", "--image", "-1"], "--image = -1 is not allowed"),
        (["augment", "--out", "x.png", "--columns", "0"], "--columns = 0 is not allowed"),
        (["augment", "--out", "x.png", "--columns", "101"], "--columns = 101 is not allowed"),
        (["augment", "--out", "x.png", "--optim.lrr", "1"], "--optim.lrr is not a field"),
    ],
)
def test_bad_arguments_are_refused(main, monkeypatch, tmp_path, arguments, message):
    config = str(SCRIPT.parents[1] / "configs" / "quickstart.py")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        main([*arguments, "--config", config])
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("augment --workdir run --config other.py", "--config other.py: with --workdir the run's own"),
        ("filters --workdir run --optim.lr 1", "--optim.lr 1: with --workdir the run's own"),
        ("augment --split test", "--split does nothing with augment, only with layers"),
        ("filters --images 9", "--images does nothing with filters, only with layers"),
        ("filters --columns 9", "--columns does nothing with filters, only with augment"),
        ("layers --workdir run --image 1", "--image does nothing with layers, only with augment and filters"),
        ("augment --trust-code", "--trust-code does nothing without --workdir"),
    ],
)
def test_options_that_nothing_is_shown_of_are_refused(main, arguments, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        main([*arguments.split(), "--out", str(tmp_path / "x.png")])


@pytest.mark.parametrize("what", ["augment", pytest.param("filters", marks=pytest.mark.slow)])
def test_the_script_writes_the_picture(what, main, tmp_path, capsys):
    options = ["--config", str(SCRIPT.parents[1] / "configs" / "quickstart.py"), "--out", str(tmp_path / "a.png")]
    main([what, *options, *(["--columns", "2"] if what == "augment" else [])])
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.split() == [str(tmp_path / "a.png")]


def test_layers_of_a_run_are_told_and_drawn(main, monkeypatch, tmp_path, capsys):
    looked_at = untrained_run(tmp_path, model=Perceptron())
    monkeypatch.setattr("jax_cifar.run.load.load_run", lambda *_, **__: looked_at)
    out = tmp_path / "layers.png"
    arguments = ["layers", "--workdir", "run", "--out", str(out), "--images", "70"]
    main([*arguments, "--split", "test"])
    head, _, *rows, told = capsys.readouterr().out.splitlines()
    assert [row.split("|")[1].strip() for row in rows] == ["body", "norm", "head"] and told == str(out)
    assert all(row.count("|") == head.count("|") and "nan" not in row for row in rows)
    assert out.read_bytes().startswith(b"\x89PNG")
    for wrong, message in ((["--images", "0"], "--images = 0"), (["--split", "val"], "held no validation images")):
        with pytest.raises(UserError, match=message):
            main([*[word for word in arguments if word not in ("--images", "70")], *wrong])
    with pytest.raises(ConfigError, match="say --workdir DIR"):
        main(["layers", "--out", str(out)])
