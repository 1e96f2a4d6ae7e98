"""Images of one's own: folders of pictures and .npz files, divided or not; every fault is one message."""

import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jax_cifar.config import DataConfig
from jax_cifar.data import Dataset, Splits, cache, divide_whole, load_data, read_npz
from jax_cifar.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def user_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder for every test."""
    folder = tmp_path_factory.mktemp("xdg")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "jax_cifar" / "decoded"


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was decoded, in order: whoever decodes tries to write what it found."""
    decoded, original = [], cache.write_entry
    monkeypatch.setattr(cache, "write_entry", lambda path, entry: decoded.append(entry.source) or original(path, entry))
    return decoded


def write_picture(path: Path, level: int, size: tuple[int, int] = (5, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level, 0, 0)).save(path)


def write_classes(folder: Path, counts: dict[str, int], first: int = 0) -> None:
    """Pictures whose red tells them apart."""
    for name, count in counts.items():
        for index in range(count):
            write_picture(folder / name / f"{index:02d}.png", first := first + 1)


def reds(part: Dataset | None) -> list[int]:
    assert part is not None
    assert (part.images == part.images[:, :1, :1]).all()
    return part.images[:, 0, 0, 0].tolist()


def pairs(part: Dataset | None) -> list[tuple[int, int]]:
    assert part is not None
    return list(zip(reds(part), part.labels.tolist(), strict=True))


def folder_config(path: Path, **fields: Any) -> DataConfig:
    return DataConfig(name="folder", dir=str(path), **fields)


def test_a_divided_folder_keeps_its_parts(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"rose": 3, "aster": 2})
    write_classes(tmp_path / "test", {"rose": 1, "aster": 1}, first=100)
    (tmp_path / "notes.txt").write_text("beside the folders")
    splits = load_data(folder_config(tmp_path))
    assert splits.label_names == ("aster", "rose")
    assert (reds(splits.train), splits.train.labels.tolist()) == ([4, 5, 1, 2, 3], [0, 0, 1, 1, 1])
    assert (reds(splits.test), splits.test.labels.tolist()) == ([102, 101], [0, 1])
    assert splits.train.images.shape == (5, 32, 32, 3)
    assert splits.validation is None
    assert (splits.name, splits.source) == ("folder", f"7 pictures in {tmp_path}")
    write_classes(tmp_path / "val", {"rose": 1, "aster": 1}, first=200)
    splits = load_data(folder_config(tmp_path, image_size=8, subset=2))
    assert (reds(splits.validation), splits.train.images.shape) == ([202, 201], (2, 8, 8, 3))
    with pytest.raises(ConfigError, match=r"data\.val_fraction = 0\.5 .* a validation part of its own"):
        load_data(folder_config(tmp_path, val_fraction=0.5))
    with pytest.raises(ConfigError, match=r"data\.test_fraction = 0\.5 .* a test part of their own"):
        load_data(folder_config(tmp_path, test_fraction=0.5))


def test_an_undivided_folder_is_divided_by_the_seed_class_by_class(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 10, "b": 20, "c": 4})
    first, again, other = (load_data(folder_config(tmp_path, test_fraction=0.3, seed=seed)) for seed in (1, 1, 2))
    assert np.bincount(first.test.labels).tolist() == [3, 6, 1]
    assert sorted(reds(first.train) + reds(first.test)) == list(range(1, 35))
    assert reds(first.test) == reds(again.test) != reds(other.test)
    # A validation part is drawn of what is left, by a stream of its own.
    divided = load_data(folder_config(tmp_path, test_fraction=0.3, seed=1, val_fraction=0.5, subset=None))
    assert reds(divided.test) == reds(first.test)
    assert sorted(reds(divided.train) + reds(divided.validation)) == sorted(reds(first.train))


def test_the_same_pictures_are_read_once(tmp_path: Path, decodes: list[str], user_cache: Path) -> None:
    write_classes(tmp_path, {"a": 4, "b": 4})
    first = load_data(folder_config(tmp_path))
    second = load_data(folder_config(tmp_path, seed=3, test_fraction=0.5))
    assert len(decodes) == 1 and "decoded cache" in second.source
    assert sorted(reds(first.train) + reds(first.test)) == sorted(reds(second.train) + reds(second.test))
    load_data(folder_config(tmp_path, image_size=16))
    assert len(decodes) == 2 and len(list(user_cache.iterdir())) == 2
    load_data(folder_config(tmp_path))
    assert len(decodes) == 2


def test_what_lies_beside_the_folders_that_are_read_is_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for first, part in enumerate(("train", "test")):
        write_classes(tmp_path / part, {"a": 2, "b": 2}, 100 * first)
    (tmp_path / "README.txt").write_text("")
    (tmp_path / ".cache").mkdir()
    load_data(folder_config(tmp_path))
    assert not capsys.readouterr().err
    write_picture(tmp_path / "test" / "lost.JPG", 7)
    load_data(folder_config(tmp_path))
    told = rf"warning: {tmp_path}: not read, as they lie in no folder of a class: test/lost\.JPG\.\n"
    assert re.fullmatch(told, capsys.readouterr().err)
    write_classes(tmp_path, {"extra": 2, "more": 1, "unlabeled": 1})
    load_data(folder_config(tmp_path))
    assert "of a class: extra/, more/, unlabeled/ and 1 more.\n" in capsys.readouterr().err
    write_picture(tmp_path / "train" / "a" / "c.png", 7)
    load_data(folder_config(tmp_path / "train"))
    assert not capsys.readouterr().err
    write_picture(tmp_path / "train" / "lost.png", 7)
    load_data(folder_config(tmp_path / "train"))
    assert "of a class: lost.png.\n" in capsys.readouterr().err


def test_test_pictures_that_are_trained_on_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_classes(tmp_path / "train", {"a": 4, "b": 3})
    write_classes(tmp_path / "test", {"a": 3, "b": 2}, 5)
    load_data(folder_config(tmp_path))
    told = rf"warning: {tmp_path}: 2 of 5 test pictures are, at \d+ x \d+ pixels, the same as training pictures\."
    assert re.match(told, capsys.readouterr().err)


def change_content(folder: Path) -> None:
    write_picture(folder / "a" / "00.png", 77)


def change_time(folder: Path) -> None:
    os.utime(folder / "a" / "00.png", ns=(0, 1))


def add(folder: Path) -> None:
    write_picture(folder / "b" / "new.png", 77)


def remove(folder: Path) -> None:
    (folder / "a" / "00.png").unlink()


def move(folder: Path) -> None:
    (folder / "a" / "00.png").rename(folder / "b" / "moved.png")


@pytest.mark.parametrize("change", [change_content, change_time, add, remove, move])
def test_a_changed_folder_is_read_again(change: Callable[[Path], None], tmp_path: Path, decodes: list[str]) -> None:
    write_classes(tmp_path, {"a": 4, "b": 4})
    load_data(folder_config(tmp_path))
    change(tmp_path)
    splits = load_data(folder_config(tmp_path))
    assert len(decodes) == 2
    assert len(splits.train) + len(splits.test) == 8 + (change is add) - (change is remove)


def test_a_link_has_the_label_of_its_own_place(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 4, "b": 4})
    write_picture(tmp_path / ".pool" / "x.png", 99)
    (tmp_path / "a" / "link.png").symlink_to("../.pool/x.png")
    for place, name in (("a", "a"), ("b", "b"), ("c", "c")):
        if place == "b":
            (tmp_path / "a" / "link.png").rename(tmp_path / "b" / "link.png")
        elif place == "c":
            (tmp_path / "b").rename(tmp_path / "c")
        splits = load_data(folder_config(tmp_path))
        labels = {red: splits.label_names[label] for part in (splits.train, splits.test) for red, label in pairs(part)}
        assert labels[99] == name


def test_hidden_files_are_passed_over_and_subfolders_of_a_class_are_not(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 2, "b": 2})
    write_picture(tmp_path / "a" / "more" / "deep.png", 9)
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", ".hidden/x.txt", "../.git/config"):
        (tmp_path / "a" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "a" / name).write_text("no picture")
    splits = load_data(folder_config(tmp_path))
    assert splits.label_names == ("a", "b")
    assert sorted(reds(splits.train) + reds(splits.test)) == [1, 2, 3, 4, 9]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write_classes(tmp_path, {"train": 3, "plane": 3})
    assert load_data(folder_config(tmp_path)).label_names == ("plane", "train")


def test_the_folder_that_one_is_in_may_have_a_name_that_is_no_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes text alone")
    write_classes(folder / "own", {"a": 3, "b": 3})
    monkeypatch.chdir(folder)
    first, second = (load_data(folder_config(Path("own"))) for _ in range(2))
    assert reds(first.train) == reds(second.train) and "decoded cache" in second.source


def no_folder(folder: Path) -> None:
    (folder / "a.txt").write_text("")


FOLDER_FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda folder: None, r"holds no folder; expected a subfolder with pictures for each"),
    "only files": (no_folder, r"holds no folder; expected a subfolder"),
    "one class": (lambda folder: write_classes(folder, {"a": 3}), r"holds only a/; expected"),
    "empty class": (
        lambda folder: (write_classes(folder, {"a": 3, "c": 3}), (folder / "b").mkdir()),
        r"/b holds no picture\. Add some, or remove the folder",
    ),
    "text": (
        lambda folder: (write_classes(folder, {"a": 3, "b": 3}), (folder / "b" / "notes.txt").write_text("x")),
        r"b/notes\.txt cannot be read as a picture: it is no picture of a known format; .*Repair it, or take it out",
    ),
    "no test": (
        lambda folder: write_classes(folder / "train", {"a": 3, "b": 3}),
        r"holds train/ but not both train/ and test/",
    ),
    "Training and Testing": (
        lambda folder: [write_classes(folder / name, {"a": 3, "b": 3}) for name in ("Training", "Testing")],
        r"holds Testing/, which is no name of a part\. Rename its folders to train/, test/ and",
    ),
    "validation": (
        lambda folder: [write_classes(folder / name, {"a": 3, "b": 3}) for name in ("train", "test", "validation")],
        r"holds validation/, which is no name of a part",
    ),
    "other classes": (
        lambda folder: (
            write_classes(folder / "train", {"a": 3, "b": 3, "d": 1}),
            write_classes(folder / "test", {"a": 3, "c": 3, "d": 1}),
        ),
        r"train/ and test/ hold different classes: b, c in one of them only",
    ),
    "single picture": (
        lambda folder: write_classes(folder, {"a": 3, "b": 1}),
        r"data\.test_fraction = 0\.2 .* of class 'b' there is a single image",
    ),
}


@pytest.mark.parametrize("fault", FOLDER_FAULTS)
def test_a_faulty_folder_is_told_in_one_message(fault: str, tmp_path: Path, user_cache: Path) -> None:
    write, message = FOLDER_FAULTS[fault]
    write(tmp_path)
    with pytest.raises((DataError, ConfigError), match=message) as caught:
        load_data(folder_config(tmp_path))
    assert "\n" not in str(caught.value)
    assert fault == "single picture" or not user_cache.exists()


@pytest.mark.parametrize("name", ["folder", "npz"])
def test_the_place_of_ones_own_images_has_to_be_given_and_exist(name: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.dir = None .* has to be told where the files are"):
        load_data(DataConfig(name=name))
    with pytest.raises(DataError, match="missing does not exist"):
        load_data(DataConfig(name=name, dir=str(tmp_path / "missing")))
    (tmp_path / "file").write_text("text")
    with pytest.raises(DataError, match=r"is a file, not a folder|file is no \.npz file"):
        load_data(DataConfig(name=name, dir=str(tmp_path / "file")))


# .npz

LABELS = np.arange(20) % 2
IMAGES = (np.arange(20, dtype=np.uint8)[:, None, None, None] + np.zeros((4, 4, 3), np.uint8)).astype(np.uint8)


def save(path: Path, **arrays: Any) -> DataConfig:
    np.savez(path, **({"images": IMAGES, "labels": LABELS} | arrays))
    return DataConfig(name="npz", dir=str(path))


def test_one_file_is_divided_by_the_seed(tmp_path: Path) -> None:
    splits = load_data(save(tmp_path / "a.npz"))
    assert (splits.name, splits.label_names) == ("npz", ("0", "1"))
    assert splits.source == f"arrays in {tmp_path / 'a.npz'}"
    assert sorted(reds(splits.train) + reds(splits.test)) == list(range(20))
    assert np.bincount(splits.test.labels).tolist() == [2, 2]


def test_a_file_or_a_folder_may_hold_a_test_part(tmp_path: Path) -> None:
    both = save(tmp_path / "a.npz", test_images=IMAGES[:3] + 100, test_labels=LABELS[:3], label_names=["x", "y"])
    save(tmp_path / "train.npz", label_names=["x", "y"])
    save(tmp_path / "test.npz", images=IMAGES[:3] + 100, labels=LABELS[:3])
    for config in (both, DataConfig(name="npz", dir=str(tmp_path))):
        splits = load_data(config)
        assert (reds(splits.train), reds(splits.test)) == (list(range(20)), [100, 101, 102])
        assert splits.label_names == ("x", "y")
    save(tmp_path / "test.npz", label_names=["y", "x"])
    with pytest.raises(DataError, match=r"different label names, \('x', 'y'\) and \('y', 'x'\)"):
        load_data(DataConfig(name="npz", dir=str(tmp_path)))
    (tmp_path / "test.npz").unlink()
    with pytest.raises(DataError, match=r"test\.npz does not exist"):
        load_data(DataConfig(name="npz", dir=str(tmp_path)))


def test_classes_without_a_training_image_are_told_once(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    load_data(save(tmp_path / "a.npz", labels=LABELS + 1))
    expected = r"warning: npz, .*a\.npz: there is no training image of class '0', of 3 classes\. Are .* from 0\?\n"
    assert re.fullmatch(expected, capsys.readouterr().err)
    load_data(save(tmp_path / "a.npz", labels=LABELS * 9))
    assert "of class '1', '2', '3' and 5 more, of 10 classes" in capsys.readouterr().err
    whole = Dataset(IMAGES, LABELS.astype(np.int32))
    given = Splits("mine", whole, whole, None, ("a", "b", "c"))
    divide_whole(given, DataConfig())
    assert "mine, arrays made in Python: there is no training image of class 'c'" in capsys.readouterr().err
    with pytest.raises(DataError, match="are of class 'a'"):
        divide_whole(dataclasses.replace(given, train=whole.with_wrong_labels(whole.labels * 0)), DataConfig())
    divide_whole(dataclasses.replace(given, label_names=("a", "b")), DataConfig(subset=4, imbalance=2.0))
    assert not capsys.readouterr().err


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_from_0_to_1_are_rounded_to_levels(dtype: type, tmp_path: Path) -> None:
    levels = np.arange(256).reshape(4, 8, 8)
    save(tmp_path / "a.npz", images=(levels / 255).astype(dtype), labels=[0, 1, 0, 1])
    dataset, names = read_npz(tmp_path / "a.npz")
    np.testing.assert_array_equal(dataset.images[..., 0], levels)
    assert names is None


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 1), (4, 4, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint64])
def test_one_or_three_channels_and_any_integers_as_labels(shape: tuple[int, ...], dtype: type, tmp_path: Path) -> None:
    save(tmp_path / "a.npz", images=np.full((20, *shape), 7, np.uint8), labels=LABELS.astype(dtype))
    dataset, _ = read_npz(tmp_path / "a.npz")
    assert dataset.images.shape == (20, 4, 4, shape[2] if len(shape) == 3 else 1)
    assert dataset.labels.dtype == np.int32


NPZ_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "channels first": ({"images": np.zeros((20, 3, 4, 4), np.uint8)}, r"a\.npz: images has shape \[20, 3, 4, 4\]"),
    "two channels": ({"images": IMAGES[..., :2]}, "channels last"),
    "not square": ({"images": IMAGES[:, :3]}, r"has shape \[20, 3, 4, 3\]; expected square images"),
    "flat": ({"images": IMAGES.reshape(20, -1)}, r"has shape \[20, 48\]"),
    "none": ({"images": IMAGES[:0], "labels": LABELS[:0]}, "holds no image"),
    "integers": ({"images": IMAGES.astype(np.int64)}, r"images is int64; expected uint8"),
    "too bright": ({"images": IMAGES.astype(np.float32)}, r"images runs from 0\.0 to 19\.0; expected"),
    "below zero": ({"images": IMAGES / 19 - 0.5}, r"images runs from -0\.5 to 0\.5"),
    "not a number": ({"images": np.full((20, 4, 4), np.nan)}, "images runs from nan to nan"),
    "objects": ({"images": np.array([{}, 1], object)}, "holds Python objects, which are not read"),
    "count": ({"labels": LABELS[:19]}, "20 images and 19 labels; expected one for each"),
    "float labels": ({"labels": LABELS / 1}, r"labels is float64 \[20\]; expected integers"),
    "one-hot labels": ({"labels": np.eye(2, dtype=int)[LABELS]}, r"labels is int64 \[20, 2\]"),
    "negative labels": ({"labels": LABELS - 1}, "labels runs from -1 to 0; expected labels from 0 on"),
    "huge labels": ({"labels": LABELS.astype(np.uint64) + 2**40}, "expected labels from 0 on"),
    "identifiers": ({"labels": LABELS + 2_000_000_000}, r"the labels run to 2,000,000,001, .* numpy\.unique"),
    "number as name": ({"label_names": [1, 2]}, r"label_names is int64 \[2\]; expected text"),
    "names as objects": ({"label_names": np.array(["a", "b"], object)}, "holds Python objects"),
    "few names": ({"label_names": ["a"]}, "labels of npz run from 0 to 1; expected 0 to 0"),
    "stray label": (
        {"labels": [*LABELS[:19], 255], "label_names": ["a", "b"]},
        "The labels of npz run from 0 to 255; expected 0 to 1",
    ),
    "one class": ({"labels": LABELS * 0}, r"npz, arrays in .*a\.npz: all 16 training images are of class '0'\. Give"),
    "no name": ({"label_names": ["a", ""]}, "hold '' for class 1; every class needs a name"),
    "blank name": ({"label_names": [" ", "b"]}, "hold ' ' for class 0; every class needs a name"),
    "names twice": ({"label_names": ["a", "a"]}, "hold 'a' twice"),
    "test labels alone": ({"test_labels": LABELS}, "holds no array 'test_images', only images, labels, test_labels"),
    "test shape": (
        {"test_images": np.zeros((20, 8, 8, 3), np.uint8), "test_labels": LABELS},
        r"test images of npz have shape \[8, 8, 3\]",
    ),
}


@pytest.mark.parametrize("fault", NPZ_FAULTS)
def test_faulty_arrays_are_told_in_one_message(fault: str, tmp_path: Path) -> None:
    arrays, message = NPZ_FAULTS[fault]
    with pytest.raises(DataError, match=message) as caught:
        load_data(save(tmp_path / "a.npz", **arrays))
    assert "\n" not in str(caught.value)


def test_files_that_are_no_npz_are_told_in_one_message(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    save(path)
    whole = path.read_bytes()
    np.savez(tmp_path / "labels.npz", labels=LABELS)
    np.save(tmp_path / "a.npy", IMAGES)
    middle = len(whole) // 4
    contents = {
        "text": b"no archive",
        "empty": b"",
        "cut off": whole[:-100],
        "damaged": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "an array": (tmp_path / "a.npy").read_bytes(),
    }
    for content in contents.values():
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.npz is no \.npz file that can be read \(.+\)\. Make it with numpy"):
            read_npz(path)
    with pytest.raises(DataError, match=r"labels\.npz holds no array 'images', only labels"):
        read_npz(tmp_path / "labels.npz")
