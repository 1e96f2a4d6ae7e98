"""Pictures of one's own: a folder with a subfolder a class, divided into train/ and test/ or not.

    flowers/train/rose/1.jpg        flowers/rose/1.jpg
    flowers/train/tulip/2.png       flowers/tulip/2.png
    flowers/test/rose/3.webp
    flowers/test/tulip/4.gif

On the left, `val/` may hold a validation part. On the right, a seeded share of every class is taken for testing. The
labels are the subfolders' names in the order of their characters. Below a class's folder, files are looked for at any
depth, each has to be a picture, and hidden ones are passed over. A link may lead to a file in the same folder.
"""

import mimetypes
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from jax_cifar.config import DataConfig
from jax_cifar.data.cache import Source, entry_path, load_decoded
from jax_cifar.data.dataset import Dataset, Decoded, Splits
from jax_cifar.data.pictures import read_pictures
from jax_cifar.data.splits import WHOLE, with_test_part
from jax_cifar.errors import DataError, print_warning

_PARTS = {"train": "train", "test": "test", "val": "validation"}  # by the name of the subfolder
_PARTS_ELSEWHERE = {"train", "training", "test", "testing", "val", "valid", "validation"}  # in any case
_HIDDEN = ("thumbs.db", "desktop.ini")  # as Windows hides them
_DEFAULT_SIZE = 32

Files = list[tuple[Path, int]]  # a picture and its label


def load_folder(folder: Path, config: DataConfig) -> Splits:
    """The pictures below `folder` at `config.image_size`, read once and cached, like CIFAR's.

    Raises:
        DataError: the folder is missing or not made of class folders, a class has no picture, or a file is none.
        ConfigError: `data.test_fraction` cannot be met.
    """
    if not folder.is_dir():
        fault = "is a file, not a folder" if folder.exists() else "does not exist"
        raise DataError(f"data.dir = {str(folder)!r}: {folder.absolute()} {fault}. Name the folder with the pictures.")
    size = config.image_size or _DEFAULT_SIZE
    names, parts = _find_pictures(folder)
    files = tuple(path for found in parts.values() for path, _ in found)
    source = Source("folder", f"{len(files):,} pictures in {folder}", files, partial(_read, parts, names, size))
    decoded, origin = load_decoded(source, entry_path(f"folder-{size}", folder))
    splits = with_test_part("folder", decoded, origin, config)
    _tell_the_same(folder, splits)
    return splits


def _find_pictures(folder: Path) -> tuple[tuple[str, ...], dict[str, Files]]:
    """The label names and the files of every part; nothing is opened yet."""
    subfolders = _class_names(folder)
    _check_part_names(folder, subfolders)
    if not {"train", "test"} <= set(subfolders):
        if subfolders and set(subfolders) <= set(_PARTS):
            raise DataError(
                f"{folder} holds {subfolders[0]}/ but not both train/ and test/. Add what is missing, or name the "
                "folder of the class folders itself, of which data.test_fraction is then taken for testing."
            )
        _tell_unread(folder, {folder: subfolders})
        return tuple(subfolders), {WHOLE: _part_files(folder, subfolders, folder)}
    present = [name for name in _PARTS if name in subfolders]
    names = _class_names(folder / "train")
    for part in present[1:]:
        other = _class_names(folder / part)
        if other != names:
            odd = ", ".join(sorted(set(names) ^ set(other)))
            raise DataError(f"{folder}: train/ and {part}/ hold different classes: {odd} in one of them only.")
    _tell_unread(folder, {folder: present} | {folder / part: names for part in present})
    return tuple(names), {_PARTS[part]: _part_files(folder / part, names, folder) for part in present}


def _tell_unread(root: Path, read: dict[Path, list[str]]) -> None:
    """Warn of folders and pictures that lie where only the subfolders of these names are `read`."""
    unread = [
        f"{path.relative_to(root)}{'/' if path.is_dir() else ''}"
        for folder, names in read.items()
        for path in sorted(folder.iterdir())
        if path.name not in names and not _is_hidden(path.name) and (path.is_dir() or _is_named_as_picture(path))
    ]
    if unread:
        more = f" and {len(unread) - 3} more" if len(unread) > 3 else ""
        print_warning(f"{root}: not read, as they lie in no folder of a class: {', '.join(unread[:3])}{more}.")


def _is_named_as_picture(path: Path) -> bool:
    return (mimetypes.guess_type(path.name)[0] or "").startswith("image/")


def _tell_the_same(folder: Path, splits: Splits) -> None:
    """Warn of test pictures that were trained on too: they are no test."""
    known = {hash(image.tobytes()) for image in splits.train.images}
    count, size = sum(hash(image.tobytes()) in known for image in splits.test.images), splits.test.images.shape[1]
    if count:
        print_warning(
            f"{folder}: {count:,} of {len(splits.test):,} test pictures are, at {size} x {size} pixels, the same as"
            " training pictures. Leave each in one part only."
        )


def _check_part_names(folder: Path, subfolders: list[str]) -> None:
    """Raise `DataError` for parts under names that are not ours, which would be left out, or taken for classes."""
    alike = [name for name in subfolders if name.casefold() in _PARTS_ELSEWHERE]
    odd = [name for name in alike if name not in _PARTS]
    divided = {"train", "test"} <= set(subfolders) or len(alike) == len(subfolders) > 1
    if odd and divided:
        raise DataError(
            f"{folder} holds {odd[0]}/, which is no name of a part. Rename its folders to train/, test/ and, for a"
            " validation part, val/."
        )


def _class_names(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir() if path.is_dir() and not _is_hidden(path.name))
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror}).") from None


def _part_files(folder: Path, names: list[str], root: Path) -> Files:
    if len(names) < 2:
        found = f"only {names[0]}/" if names else "no folder"
        raise DataError(f"{folder} holds {found}; expected a subfolder with pictures for each of two classes or more.")
    files = [(path, label) for label, name in enumerate(names) for path in _class_files(folder / name, root)]
    empty = sorted(set(range(len(names))) - {label for _, label in files})
    if empty:
        raise DataError(f"{folder / names[empty[0]]} holds no picture. Add some, or remove the folder.")
    return files


def _class_files(folder: Path, root: Path) -> list[Path]:
    """All files below `folder`, as `find_files` has them; raises the first error."""
    found = []
    _check_within(folder, root)
    for path, error in find_files(folder, root):
        if error is not None:
            raise error
        found.append(path)
    return found


def find_files(folder: Path, root: Path) -> Iterator[tuple[Path, DataError | None]]:
    """All files below `folder` that are not hidden, a folder's own before its subfolders', by the order of their names.

    With an error stands what is not to be read: a folder that cannot be, a link to a folder, a link that leads out of
    `root`.
    """
    unreadable: list[OSError] = []
    for place, subfolders, names in os.walk(folder, onerror=unreadable.append):
        yield from _not_read(unreadable)
        subfolders[:] = sorted(name for name in subfolders if not _is_hidden(name))
        for path in (Path(place) / name for name in subfolders):
            if path.is_symlink():
                yield path, DataError(f"{path} is a link to a folder, which is not followed. Put the folder there.")
        for path in (Path(place) / name for name in sorted(names) if not _is_hidden(name)):
            error = None
            if path.is_symlink():
                try:
                    _check_within(path, root)
                except DataError as raised:
                    error = raised
            yield path, error
    yield from _not_read(unreadable)


def _not_read(errors: list[OSError]) -> Iterator[tuple[Path, DataError]]:
    while errors:
        path, reason = Path(errors[0].filename), errors.pop(0).strerror
        yield path, DataError(f"{path} cannot be read ({reason}).")


def _check_within(path: Path, root: Path) -> None:
    target = Path(os.path.realpath(path))
    if not target.is_relative_to(os.path.realpath(root)):
        raise DataError(f"{path} is a link that leads out of {root}, to {target}. Put a copy in its place.")


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _HIDDEN


def _read(parts: dict[str, Files], names: tuple[str, ...], size: int) -> Decoded:
    """Read all pictures of all parts in one go."""
    files = [item for found in parts.values() for item in found]
    images, labels = read_pictures([path for path, _ in files], size), np.array([label for _, label in files], np.int32)
    decoded, start = {}, 0
    for part, found in parts.items():
        place = slice(start, start := start + len(found))
        decoded[part] = Dataset(images[place], labels[place])
    return Decoded(decoded, names)
