"""What is looked at before Orbax and TensorStore see a checkpoint that somebody else may have made.

They open whatever path a name leads to, and set memory aside for whatever shape a file claims.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from jax_cifar.allocator import machine_memory
from jax_cifar.errors import CheckpointError
from jax_cifar.files import require_regular

Leaves = Mapping[str, Any]  # by path: shape, dtype and SHA-256, as the manifest has them


def check_manifest(manifest: Any) -> None:
    """Raise `ValueError` unless it has the form in which manifests are written, and no name in it leads elsewhere."""
    if not isinstance(manifest, dict) or type(manifest.get("step")) is not int:
        raise ValueError("it does not say which step it is")
    leaves = manifest.get("leaves")
    if not (isinstance(leaves, dict) and isinstance(manifest.get("extra"), dict)):
        raise ValueError("it lists no arrays")
    for name, leaf in leaves.items():
        if not _is_below(name):
            raise ValueError(f"it names {name!r}, which is not in its folder")
        if not _describes_array(leaf):
            raise ValueError(f"of {name} it does not say shape, dtype and sha256")
    files = manifest.get("files", {})
    if not isinstance(files, dict) or type(manifest.get("format", 1)) is not int:
        raise ValueError("it lists no files")
    for name, file in files.items():
        if not (_is_below(name) and isinstance(file, list) and [type(item) for item in file] == [int, str]):
            raise ValueError(f"it names {name!r}, which is not in its folder, or no size and sha256 of it")


def _is_below(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return name.isprintable() and bool(parts) and not name.startswith("/") and ".." not in parts


def _describes_array(leaf: Any) -> bool:
    if not (isinstance(leaf, list) and [type(item) for item in leaf] == [list, str, str]):
        return False
    return all(type(size) is int and size >= 0 for size in leaf[0]) and _bytes(leaf) is not None


def _bytes(leaf: Any) -> int | None:
    """What an array takes in memory; None where its type is none of numbers."""
    try:
        dtype = np.dtype(leaf[1])
    except (TypeError, ValueError, SyntaxError):
        return None
    return None if dtype.hasobject or dtype.names else math.prod(leaf[0]) * dtype.itemsize


def check_state(path: Path, leaves: Leaves) -> None:
    """Raise `CheckpointError` where a checkpoint's folder holds links, pipes or devices, or more than memory does."""
    for folder, subfolders, names in os.walk(path):
        for entry in (Path(folder, name) for name in [*subfolders, *names]):
            if entry.is_symlink():
                raise CheckpointError(f"{entry} is a link, which is not followed: put the file itself there.")
            if entry.name in names:
                _check_file(entry)
    claimed, memory = sum(_bytes(leaf) or 0 for leaf in leaves.values()), machine_memory()
    if claimed > memory:
        sizes = f"{claimed / 1e9:,.1f} GB of arrays; this machine has {memory / 1e9:,.1f} GB of memory"
        raise CheckpointError(f"{path} claims to hold {sizes}.")


def _check_file(path: Path) -> None:
    try:
        require_regular(path)
    except FileNotFoundError:
        pass  # the run that owns it was quicker
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None


def check_claims(found: Mapping[str, Any], leaves: Leaves) -> None:
    """Raise `ValueError` unless what Orbax is about to read has the names, shapes and types that the manifest lists.

    `found` is Orbax's metadata by path: each with shape, dtype, and the shape of its chunks in `storage`.
    """
    if found.keys() != leaves.keys():
        raise ValueError(f"it holds {next(iter(found.keys() ^ leaves.keys()))!r} or lacks it")
    for name, array in found.items():
        shape, dtype = leaves[name][:2]
        if list(array.shape) != shape or str(np.dtype(array.dtype)) != dtype:
            raise ValueError(f"{name} is not what was saved")
        chunk = getattr(array.storage, "chunk_shape", None) or ()
        if math.prod(chunk) > max(1, math.prod(shape)):
            raise ValueError(f"{name} claims chunks of {list(chunk)}")
