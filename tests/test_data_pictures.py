"""Pictures of every kind become square RGB arrays: upright, on white, antialiased; what cannot be read is named."""

import io
import struct
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from jax_cifar.data import pictures
from jax_cifar.data.pictures import Picture, picture_to_array, read_pictures, try_pictures
from jax_cifar.errors import DataError

ORIENTATION = 0x0112  # EXIF's tag


def scene(width: int = 48, height: int = 48) -> np.ndarray:
    """A smooth picture without any symmetry: red rises to the right, green downwards, blue in one corner."""
    down, right = np.mgrid[:height, :width]
    blue = 200 * (down < height // 2) * (right < width // 2)
    return np.stack([right * 250 // width, down * 250 // height, blue], axis=-1).astype(np.uint8)


def averages(array: np.ndarray, size: int) -> np.ndarray:
    """The means of square blocks, which any antialiased shrinking comes close to."""
    block = len(array) // size
    return array.reshape(size, block, size, block, -1).mean(axis=(1, 3))


@pytest.mark.parametrize(
    ("suffix", "options", "tolerance"),
    [
        ("png", {}, 0),
        ("bmp", {}, 0),
        ("tiff", {}, 0),
        ("ppm", {}, 0),
        ("webp", {"lossless": True}, 0),
        ("jpg", {"quality": 95}, 12),
        ("gif", {}, 40),
    ],
)
def test_every_format_gives_the_picture(suffix: str, options: dict[str, Any], tolerance: int, tmp_path: Path) -> None:
    path = tmp_path / f"picture.{suffix}"
    Image.fromarray(scene()).save(path, **options)
    expected = picture_to_array(Image.fromarray(scene()), 16)
    (found,) = read_pictures([path], 16)
    assert found.dtype == np.uint8 and found.shape == (16, 16, 3)
    assert np.abs(found.astype(int) - expected).max() <= tolerance
    # The order of the colours is that of the picture, by a margin that no compression covers.
    assert np.abs(found[..., ::-1].astype(int) - expected).max() > 100


def test_a_picture_of_the_wanted_size_is_taken_as_it_is() -> None:
    array = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    np.testing.assert_array_equal(picture_to_array(Image.fromarray(array), 32), array)


def test_shrinking_averages_what_a_pixel_covers() -> None:
    """Fine stripes turn grey; without antialiasing they would stay black or white."""
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    picture = Image.fromarray(stripes)

    def is_grey(array: np.ndarray) -> bool:
        return bool((np.abs(array[1:-1, 1:-1].astype(int) - 127) < 10).all())

    assert is_grey(picture_to_array(picture, 16))
    assert not is_grey(np.asarray(picture.resize((16, 16), Image.Resampling.NEAREST)))
    smooth = scene(64, 64)[..., :2]
    found = picture_to_array(Image.fromarray(scene(64, 64)), 16)[..., :2]
    np.testing.assert_allclose(found[1:-1, 1:-1], averages(smooth, 16)[1:-1, 1:-1], atol=3)


@pytest.mark.parametrize(("width", "height"), [(96, 48), (48, 96), (97, 48), (49, 48)])
def test_the_central_square_is_kept(width: int, height: int) -> None:
    array = scene(width, height)
    side, left, top = min(width, height), (width - 48) // 2, (height - 48) // 2
    expected = array[top : top + side, left : left + side]
    np.testing.assert_array_equal(picture_to_array(Image.fromarray(array), 48), expected)


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (1, 500)])
def test_tiny_and_narrow_pictures_are_enlarged(shape: tuple[int, int]) -> None:
    array = np.full((*shape, 3), 77, np.uint8)
    assert (picture_to_array(Image.fromarray(array), 32) == 77).all()


# How a picture has to be stored so that the orientation turns it upright.
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: np.rot90(upright.transpose(1, 0, 2), 2),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
@pytest.mark.parametrize("orientation", STORED)
def test_pictures_are_turned_upright_by_exif(orientation: int, suffix: str, tmp_path: Path) -> None:
    upright = scene(64, 48)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / f"picture.{suffix}"
    options = {"jpg": {"quality": 95}, "webp": {"lossless": True}}.get(suffix, {})
    Image.fromarray(np.ascontiguousarray(STORED[orientation](upright))).save(path, exif=exif, **options)
    (found,) = read_pictures([path], 24)
    expected = picture_to_array(Image.fromarray(upright), 24).astype(int)
    # JPEG blurs edges of colour; a picture turned the wrong way is tens of levels off everywhere.
    assert np.abs(found - expected).mean() < 2


def test_the_check_of_orientations_notices_exif_being_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageOps, "exif_transpose", lambda image: image)
    for orientation in range(2, 9):
        with pytest.raises(AssertionError):
            test_pictures_are_turned_upright_by_exif(orientation, "png", tmp_path)


def test_grey_becomes_three_equal_channels() -> None:
    grey = scene()[..., 0]
    for picture in (Image.fromarray(grey), Image.fromarray(grey).convert("LA")):
        np.testing.assert_array_equal(picture_to_array(picture, 48), np.repeat(grey[..., None], 3, axis=2))
    black_and_white = Image.fromarray(grey > 100)
    assert black_and_white.mode == "1"
    np.testing.assert_array_equal(picture_to_array(black_and_white, 48)[..., 0], np.where(grey > 100, 255, 0))


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_are_scaled_to_eight(suffix: str, tmp_path: Path) -> None:
    values = np.arange(48 * 48, dtype=np.uint16).reshape(48, 48) * 28
    values[0, 0], values[0, 1], values[0, 2] = 65535, 128, 129
    path = tmp_path / f"picture.{suffix}"
    Image.fromarray(values).save(path)
    (found,) = read_pictures([path], 48)
    np.testing.assert_array_equal(found[..., 0], np.rint(values / 257).astype(np.uint8))
    assert (found[0, 0] == 255).all() and (found == found[..., :1]).all()


# By the bits of a level, and whether it is grey: the rows of a half that shows, of one that does not, and the key.
KEYED = {
    "1-bit grey": (1, 0, b"\xff", b"\x00", [0], 255),
    "2-bit grey": (2, 0, b"\xaa" * 2, b"\x55" * 2, [1], 170),
    "4-bit grey": (4, 0, b"\x88" * 4, b"\x33" * 4, [3], 136),
    "8-bit grey": (8, 0, b"\x80" * 8, b"\x12" * 8, [0x12], 128),
    "16-bit grey": (16, 0, b"\x12\x33" * 8, b"\x12\x34" * 8, [0x1234], 18),
    "8-bit RGB": (8, 2, b"\x80" * 24, b"\x12\x56\x9a" * 8, [0x12, 0x56, 0x9A], 128),
    "16-bit RGB": (16, 2, b"\x80" * 48, b"\x12\x34\x56\x78\x9a\xbc" * 8, [0x1234, 0x5678, 0x9ABC], 128),
    "dark 16-bit RGB": (16, 2, b"\x80" * 48, b"\x00\x63" * 24, [99] * 3, 128),
}


@pytest.mark.parametrize("kind", KEYED)
def test_the_colour_that_a_png_names_transparent_shows_white(kind: str) -> None:
    bits, colour, shown, hidden, key, level = KEYED[kind]
    header = struct.pack(">IIBBBBB", 8, 8, bits, colour, 0, 0, 0)
    rows = zlib.compress((b"\0" + shown) * 4 + (b"\0" + hidden) * 4)
    parts = chunk(b"IHDR", header), chunk(b"tRNS", struct.pack(f">{len(key)}H", *key)), chunk(b"IDAT", rows)
    (picture,) = try_pictures([b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")], 8)
    assert isinstance(picture, Picture)
    assert np.unique(picture.pixels[:4]).tolist() == [level] and np.unique(picture.pixels[4:]).tolist() == [255]


def test_pixels_of_no_known_range_are_refused(tmp_path: Path) -> None:
    for dtype, value in ((np.float32, 0.5), (np.int32, 70_000), (np.int32, -1)):
        path = tmp_path / "picture.tiff"
        Image.fromarray(np.full((8, 8), value, dtype)).save(path)
        with pytest.raises(DataError, match=r"picture\.tiff cannot be read .*: its pixels are .* 8 or 16 bits"):
            read_pictures([path], 8)


def test_what_is_transparent_shows_white() -> None:
    rgba = np.dstack([scene(), np.zeros((48, 48), np.uint8)])
    rgba[:, 16:32, 3], rgba[:, 32:, 3] = 128, 255
    found = picture_to_array(Image.fromarray(rgba), 48).astype(int)
    assert (found[:, :16] == 255).all()
    half = np.rint(255 + (scene().astype(float) - 255) * 128 / 255)
    assert np.abs(found[:, 16:32] - half[:, 16:32]).max() <= 1
    np.testing.assert_array_equal(found[:, 32:], scene()[:, 32:])


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_palettes_are_looked_up_and_may_hold_a_transparent_colour(suffix: str, tmp_path: Path) -> None:
    indices = np.arange(48 * 48).reshape(48, 48) // 12 % 3
    picture = Image.fromarray(indices.astype(np.uint8))
    picture.putpalette([250, 10, 20, 30, 240, 50, 60, 70, 230])
    colours = np.array([[250, 10, 20], [30, 240, 50], [60, 70, 230]])
    on_white = np.array([colours[0], [255] * 3, colours[2]])
    cases: list[tuple[dict[str, Any], np.ndarray]] = [({}, colours), ({"transparency": 1}, on_white)]
    for options, expected in cases:
        path = tmp_path / f"picture.{suffix}"
        picture.save(path, **options)
        np.testing.assert_array_equal(read_pictures([path], 48)[0], expected[indices])


def test_print_colours_become_rgb(tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    Image.fromarray(scene()).convert("CMYK").save(path, quality=95)
    assert np.abs(read_pictures([path], 48)[0].astype(int) - scene()).mean() < 5


def test_of_an_animation_the_first_frame_counts(tmp_path: Path) -> None:
    path = tmp_path / "picture.gif"
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert read_pictures([path], 8)[0, 0, 0].tolist() == [255, 0, 0]


def test_pictures_come_in_the_order_of_their_paths(tmp_path: Path) -> None:
    paths = []
    for level in range(40):
        # The first ones take longest.
        side = 800 if level < 4 else 4
        paths.append(tmp_path / f"{level}.png")
        Image.fromarray(np.full((side, side, 3), level, np.uint8)).save(paths[-1])
    assert read_pictures(paths, 2)[:, 0, 0, 0].tolist() == list(range(40))


def png_of(picture: Image.Image, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG", **options)
    return stream.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def huge_png(side: int) -> bytes:
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


GOOD = png_of(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"roses are red\n", "no picture of a known format"),
        (b"<html>sorry</html>", "no picture of a known format"),
        (GOOD[:20], ""),
        (GOOD[: len(GOOD) // 2], "truncated|Truncated"),
        (GOOD[:200] + bytes(50) + GOOD[250:], ""),
        # Pillow only warns of the first.
        (huge_png(10_000), "it has more than 89,478,485 pixels"),
        (huge_png(20_000), "it has more than 89,478,485 pixels"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n", "a drawing without pixels"),
    ],
    ids=["empty", "text", "web page", "cut in the header", "cut off", "damaged", "huge", "bomb", "drawing"],
)
def test_what_cannot_be_read_is_named_without_a_warning(content: bytes, message: str, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    good.write_bytes(GOOD)
    bad.write_bytes(content)
    with warnings.catch_warnings(record=True) as caught, pytest.raises(DataError) as error:
        warnings.simplefilter("always")
        read_pictures([good, bad, good], 8)
    assert str(error.value).startswith(f"{bad} cannot be read as a picture: ")
    assert caught == []
    assert any(part in str(error.value) for part in message.split("|"))
    assert error.value.__cause__ is None and "\n" not in str(error.value)


def test_after_a_bad_picture_the_rest_is_not_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    read = []

    def slow(source: Path, size: int) -> DataError:
        read.append(source)
        time.sleep(0.01)
        return DataError(f"{source} is bad.")

    monkeypatch.setattr(pictures, "_try_picture", slow)
    with pytest.raises(DataError, match=r"0\.png is bad\. Repair it"):
        pictures.read_pictures([tmp_path / f"{i}.png" for i in range(500)], 4)
    assert len(read) < 250


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png cannot be read as a picture: No such file or directory\. "):
        read_pictures([tmp_path / "gone.png"], 8)


def test_reading_leaves_the_filters_of_warnings_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(GOOD)
    before = list(warnings.filters)
    pictures.read_pictures([tmp_path / "good.png"], 8)
    assert list(warnings.filters) == before
