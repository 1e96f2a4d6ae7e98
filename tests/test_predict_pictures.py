"""Pictures are classified in order, whatever they are: what a network is shown, and what is said of what is none."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from jax_cifar.data import pictures
from jax_cifar.data.pictures import grey
from jax_cifar.errors import ConfigError, DataError
from jax_cifar.evaluation.classify import predict_pictures, softmax


class Recorder:
    """Keeps what it is shown, and says how bright the channels are."""

    def __init__(self, side: int = 8, channels: int = 3, names: tuple[str, ...] = ("red", "green", "blue")) -> None:
        self.image_shape, self.label_names = (side, side, channels), names
        self.shown: list[np.ndarray] = []

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        self.shown.append(images)
        means = images.mean(axis=(1, 2), dtype=np.float32) / np.float32(25)
        return softmax(np.broadcast_to(means, (len(images), 3)))


def told(model: Any, *sources: Any, **options: Any) -> list[str]:
    """The label of every picture, or its error."""
    return [str(found.error or found.predictions[0].label) for found in predict_pictures(model, sources, **options)]


def plain(path: Path, colour: str = "red", side: int = 8) -> Path:
    Image.new("RGB", (side, side), colour).save(path)
    return path


def upright_scene() -> np.ndarray:
    """RGBA 80 x 48 without any symmetry: colours rise across it, and to the right more of the ground shows through."""
    down, right = np.mgrid[:48, :80]
    colours = [40 + right * 2, 20 + down * 4, 200 - right * 2, 255 - right]
    return np.stack(colours, axis=-1).astype(np.uint8)


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """`upright_scene` with fine stripes, lying on its side as EXIF says."""
    exif = Image.Exif()
    exif[0x0112] = 6
    striped = upright_scene()
    striped[:, ::2, :3] -= 20
    striped[:, 1::2, :3] += 20
    Image.fromarray(np.rot90(striped).copy()).save(tmp_path / "scene.png", exif=exif)
    return tmp_path / "scene.png"


def check_shown(scene: Path) -> None:
    """What a network is shown of `scene`, against means of its pixels; the border is left out, as filters differ."""
    model = Recorder(side=12)
    assert len(told(model, scene)) == 1
    square = upright_scene()[:, 16:64].astype(float)
    share = square[..., 3:] / 255
    on_white = share * square[..., :3] + (1 - share) * 255
    expected = on_white.reshape(12, 4, 12, 4, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(model.shown[0][0, 1:-1, 1:-1], expected[1:-1, 1:-1], atol=6)


def test_a_network_is_shown_the_upright_central_square_on_white_antialiased(scene: Path) -> None:
    check_shown(scene)


def swapped(image: Image.Image, convert: Callable[[Image.Image], Image.Image] = pictures._to_rgb) -> Image.Image:
    return Image.merge("RGB", convert(image).split()[::-1])


def nearest(image: Image.Image, size: Any, filter: Any, resize: Any = Image.Image.resize) -> Image.Image:
    return resize(image, size, Image.Resampling.NEAREST)


def corner(image: Image.Image, box: Any, crop: Any = Image.Image.crop) -> Image.Image:
    return crop(image, (0, 0, box[2] - box[0], box[3] - box[1]))


def black(mode: str, size: Any, colour: Any = 0, new: Any = Image.new) -> Image.Image:
    return new(mode, size, "black" if colour == "white" else colour)


@pytest.mark.parametrize(
    ("owner", "name", "fault"),
    [
        (pictures, "_to_rgb", swapped),
        (Image.Image, "resize", nearest),
        (Image.Image, "crop", corner),
        (ImageOps, "exif_transpose", lambda image: image),
        (Image, "new", black),
    ],
    ids=["RGB as BGR", "no antialiasing", "crop off-centre", "EXIF ignored", "alpha on black"],
)
def test_the_check_of_what_is_shown_notices(
    owner: Any, name: str, fault: Any, scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, fault)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check_shown(scene)


def test_for_a_network_of_one_channel_pictures_turn_grey_as_pillow_does_it(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    Image.fromarray(colours[0]).save(tmp_path / "1.png")
    Image.fromarray(colours[1]).convert("L").save(tmp_path / "2.png")
    model = Recorder(channels=1)
    assert len(told(model, tmp_path)) == 2
    expected = [np.asarray(Image.fromarray(each).convert("L"))[..., None] for each in colours]
    np.testing.assert_array_equal(model.shown[0], expected)
    levels = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None, None], 3, axis=-1)
    np.testing.assert_array_equal(grey(levels), levels[..., :1])


def test_predictions_are_the_most_probable_classes_with_their_index_and_the_picture(tmp_path: Path) -> None:
    path = plain(tmp_path / "a.png", "#103000", side=20)
    (found,) = predict_pictures(Recorder(), [path])
    assert (found.file, found.error) == (str(path), None)
    assert [(guess.label, guess.index) for guess in found.predictions] == [("green", 1), ("red", 0), ("blue", 2)]
    shares = [guess.probability for guess in found.predictions]
    np.testing.assert_allclose(shares, np.exp([48 / 25, 16 / 25, 0]) / np.exp([48 / 25, 16 / 25, 0]).sum(), rtol=1e-5)
    assert found.picture is not None and (found.picture.width, found.picture.height) == (20, 20)
    assert found.picture.pixels.shape == (8, 8, 3) and not found.picture.has_frames
    (found,) = predict_pictures(Recorder(), [path], top=1)
    assert [guess.label for guess in found.predictions] == ["green"]


def test_order_is_kept_over_batches_and_errors_stop_nothing(tmp_path: Path) -> None:
    colours = ["red", "green", "blue"]
    for number in range(7):
        plain(tmp_path / f"{number}.png", colours[number % 3], side=400 if number == 0 else 8)
    (tmp_path / "3.png").write_bytes(b"")
    model = Recorder()
    found = told(model, tmp_path, tmp_path / "gone.png", (tmp_path / "1.png").read_bytes(), batch_size=4)
    assert [len(images) for images in model.shown] == [4, 4, 1]
    assert found == [
        *("red", "green", "blue", f"{tmp_path}/3.png cannot be read as a picture: it is empty."),
        *("green", "blue", "red", f"{tmp_path}/gone.png cannot be read as a picture: No such file or directory."),
        "green",
    ]


def test_pictures_are_read_a_batch_at_a_time(tmp_path: Path) -> None:
    asked = []

    def sources():
        for number in range(10**9):
            asked.append(number)
            yield tmp_path / "gone.png"

    found = predict_pictures(Recorder(), sources(), batch_size=3)
    assert asked == []
    assert [next(found).file for _ in range(4)] == [str(tmp_path / "gone.png")] * 4
    assert len(asked) == 6


def test_of_a_folder_all_is_read_that_is_its_own_and_not_hidden(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    (folder / "b" / "deep").mkdir(parents=True)
    for name in ("c.png", "a.png", "b/1.png", "b/deep/2.png", ".hidden.png", "Thumbs.db"):
        plain(tmp_path / "x.png").rename(folder / name)
    plain(tmp_path / "secret.png")
    (folder / "d.png").symlink_to(tmp_path / "secret.png")
    (folder / "e.png").symlink_to("a.png")
    (folder / "z").symlink_to(tmp_path)
    os.mkfifo(folder / "f.png")
    (folder / "g").mkdir()
    found = list(predict_pictures(Recorder(), [folder]))
    names = [found.file.removeprefix(f"{folder}/") for found in found]
    assert names == ["z", "a.png", "c.png", "d.png", "e.png", "f.png", "b/1.png", "b/deep/2.png"]
    errors = {name: str(each.error) for name, each in zip(names, found, strict=True) if each.error}
    assert set(errors) == {"z", "d.png", "f.png"}
    assert "is a link to a folder" in errors["z"] and "leads out of" in errors["d.png"] and "pipe" in errors["f.png"]
    assert told(Recorder(), folder / "g") == [f"{folder}/g holds no picture."]
    # What is named is meant, wherever it leads.
    assert told(Recorder(), folder / "d.png", folder / "z" / "secret.png") == ["red", "red"]


def test_names_that_lead_nowhere_are_errors_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    named, missing, odd, nul, picture = told(
        Recorder(), "~nobody-of-this-name/a.png", "$NOT_SET/a.png", "\udcff.png", "a\0.png", plain(tmp_path / "a.png")
    )
    assert "is no home folder here" in named and "NOT_SET is not set" in missing and "is no text" in odd
    assert "cannot be read as a picture" in nul and picture == "red"


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "locked").mkdir()
    plain(tmp_path / "a.png")
    scandir = os.scandir

    def refuses(path: Any) -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuses)
    assert told(Recorder(), tmp_path) == ["red", f"{tmp_path}/locked cannot be read (Permission denied)."]


def test_animations_are_known_by_their_format_and_a_damaged_rest_spoils_nothing(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    for suffix in ("gif", "png", "webp", "tiff"):
        frames[0].save(tmp_path / f"moves.{suffix}", save_all=True, append_images=frames[1:])
        frames[0].save(tmp_path / f"still.{suffix}")
    frames[0].save(tmp_path / "still.mpo", save_all=True, append_images=frames[1:])
    whole = (tmp_path / "moves.gif").read_bytes()
    second = whole.rindex(b"\x21\xf9\x04", 0, whole.rindex(b"\x21\xf9\x04"))
    (tmp_path / "still-cut.gif").write_bytes(whole[: second + 5])
    found = list(predict_pictures(Recorder(), [tmp_path]))
    assert [each.error for each in found] == [None] * len(found)
    assert all(each.predictions[0].label == "red" for each in found)
    moves = {Path(each.file).name for each in found if each.picture is not None and each.picture.has_frames}
    assert moves == {"moves.gif", "moves.png", "moves.webp", "moves.tiff"}


def test_files_that_are_larger_than_any_picture_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "sparse.webp").open("wb") as file:
        file.write(b"RIFF\xff\xff\xff\x7fWEBPVP8 ")
        file.truncate(1 << 33)
    (found,) = told(Recorder(), tmp_path / "sparse.webp")
    assert "it has 8,589,934,592 bytes, expected at most 1,073,741,824" in found


def test_what_is_not_finite_is_an_error_of_that_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Recorder()
    good = model.probabilities
    monkeypatch.setattr(model, "probabilities", lambda images: np.where([[True], [False]], good(images), np.nan))
    path = plain(tmp_path / "a.png")
    assert told(model, path, path) == ["red", f"{path}: what the network says of it is not finite."]


def test_networks_that_take_no_pictures_and_impossible_numbers_are_refused_at_once() -> None:
    for shape, message in [((8, 9, 3), "8 x 9 pixels with 3"), ((8, 8, 2), "8 x 8 pixels with 2 channels")]:
        model = Recorder()
        model.image_shape = shape
        with pytest.raises(DataError, match=message):
            predict_pictures(model, [])
    for options, message in [({"top": 0}, "top = 0 is"), ({"batch_size": 0}, "batch_size = 0 is")]:
        with pytest.raises(ConfigError, match=message):
            predict_pictures(Recorder(), [], **options)


def test_softmax_of_large_logits_is_finite() -> None:
    logits = np.array([[1000.0, 999.0, -1000.0], [-1e4, -1e4, -1e4]], np.float32)
    expected = [[1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1)), 0], [1 / 3] * 3]
    np.testing.assert_allclose(softmax(logits), expected, rtol=1e-6)
