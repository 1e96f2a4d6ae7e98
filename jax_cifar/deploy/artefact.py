"""Exported files: where one may be written, and how it is, so that only what was proved bears its name."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from jax_cifar.deploy.agreement import Agreement, Expected, require_agreement
from jax_cifar.deploy.onnx import load_onnx
from jax_cifar.deploy.verify import ALL, logits_elsewhere
from jax_cifar.errors import ConfigError, ExportError, UserError
from jax_cifar.files import atomic_write, expand

SUFFIXES = (".onnx", ".stablehlo")


def check_destination(path: str | Path) -> Path:
    """The path to write to, found writable before minutes are spent; raises `ConfigError` where it is not."""
    path = expand(path)
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{path} ends in neither {' nor '.join(SUFFIXES)}.")
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name a file in it.")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            return path
    except OSError as error:
        raise _unwritable(path, error) from None


def require_ours(path: Path, config: Mapping[str, Any], overwrite: bool) -> None:
    """Raise `ConfigError` where a file would be replaced that was not made of a run of this configuration.

    Args:
        path: the file to be written.
        config: the run's, as it is recorded.
        overwrite: the user does not mind.
    """
    if overwrite or not path.exists():
        return
    try:
        made_of = _recorded_config(path)
    except (UserError, ValueError):
        made_of = None
    if made_of != config:
        whose = "was made of another run" if made_of else "is no export of this run"
        raise ConfigError(f"{path} is there already and {whose}. Choose another name, or say --overwrite.")


def _recorded_config(path: Path) -> Any:
    if path.suffix == ".onnx":
        return json.loads(load_onnx(path).metadata.get("config", "null"))
    from jax_cifar.deploy.stablehlo import read_metadata

    return read_metadata(path).get("config")


def write_verified(
    path: Path, content: bytes, images: UInt8[np.ndarray, "n height width channel"], expected: Expected
) -> tuple[Agreement, Float32[np.ndarray, "n classes"]]:
    """Write a file, have another process load it and predict, and give it its name if the logits are right.

    Until then it lies under another name beside its place; whatever fails removes it, and an older file stays.

    Args:
        path: from `check_destination`.
        content: of the file.
        images: real ones; all are predicted.
        expected: what the network gives for them.

    Returns:
        How well they agree, and the file's own logits.

    Raises:
        ExportError: the file cannot be loaded, or does not compute what the network computes.
        ConfigError: it cannot be written, as where the disk is full.
    """
    try:
        with atomic_write(path) as file:
            file.write(content)
            file.flush()
            found = logits_elsewhere(Path(file.name), path.suffix, images)
            for size, logits in found.items():
                require_agreement(logits, expected, f" at batch size {size}" if size else "")
    except ExportError as error:
        raise ExportError(f"{error} It was removed.") from None
    except OSError as error:
        raise _unwritable(path, error) from None
    return require_agreement(found[ALL], expected), found[ALL]


def _unwritable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{path} cannot be written: {error.strerror}. Choose another place.")
