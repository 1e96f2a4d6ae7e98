"""The folder of a run: where it lies, whether it may be resumed, and the JSON files in it."""

import json
import time
from pathlib import Path
from typing import Any

from jax_cifar.config import Config
from jax_cifar.config.files import differing_fields, from_dict, to_dict
from jax_cifar.errors import CheckpointError, ConfigError
from jax_cifar.files import write_json

CHECKPOINTS = "checkpoints"


def default_workdir(config: Config) -> Path:
    """A new folder runs/<config name>/<time> below the current one."""
    base = Path("runs") / config.name / time.strftime("%Y%m%d-%H%M%S")
    taken = (Path(f"{base}-{i}") for i in range(1, 1000))
    return base if not base.exists() else next(path for path in taken if not path.exists())


def choose_folder(config: Config, workdir: str | Path | None) -> Path:
    """The run folder, not yet made; raises `CheckpointError` where it holds checkpoints of another configuration."""
    folder = (Path(workdir) if workdir is not None else default_workdir(config)).absolute()
    if has_checkpoints(folder):
        differing = differing_fields(_read_json(folder / "config.json"), to_dict(config))
        if differing:
            shown = "\n  ".join(differing[:8])
            raise CheckpointError(
                f"{folder} holds checkpoints of another configuration:\n  {shown}\n"
                "Choose another --workdir, or give the same configuration to resume."
            )
    return folder


def make_folder(folder: Path, config: Config) -> None:
    """Make the run folder and write config.json; raises `ConfigError` where that cannot be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", to_dict(config))
    except OSError as error:
        message = f"The run folder {folder} cannot be written: {error.strerror}. Choose another --workdir."
        raise ConfigError(message) from None


def has_checkpoints(folder: Path) -> bool:
    """Whether the folder holds anything that may be a checkpoint."""
    return any((folder / CHECKPOINTS).glob("*"))


def read_config(folder: Path) -> Config:
    """The configuration of an existing run; raises `CheckpointError` where the folder is none."""
    return from_dict(_read_json(folder / "config.json"))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} is not a run folder: it holds no {path.name}.") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}).") from None
