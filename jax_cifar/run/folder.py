"""The folder of a run: where it lies, whether it may be resumed, and the JSON files in it."""

import dataclasses
import time
from pathlib import Path
from typing import Any

from jax_cifar import files
from jax_cifar.config import Config
from jax_cifar.config.files import differing_fields, from_dict, to_dict
from jax_cifar.config.source import record_source
from jax_cifar.data import Splits
from jax_cifar.errors import CheckpointError, ConfigError, check
from jax_cifar.files import write_json
from jax_cifar.models.network import InputSpec

CHECKPOINTS = "checkpoints"
NETWORK = "network.json"  # what the network sees


def default_workdir(config: Config) -> Path:
    """A new folder runs/<config name>/<time> below the current one."""
    base = Path("runs") / config.name / time.strftime("%Y%m%d-%H%M%S")
    taken = (Path(f"{base}-{i}") for i in range(1, 1000))
    return base if not base.exists() else next(path for path in taken if not path.exists())


def choose_folder(config: Config, workdir: str | Path | None) -> Path:
    """The run folder, not yet made; raises `CheckpointError` where it holds checkpoints of another configuration."""
    folder = (Path(workdir) if workdir is not None else default_workdir(config)).absolute()
    if has_checkpoints(folder):
        differing = differing_fields(read_json(folder / "config.json"), to_dict(config))
        if differing:
            shown = "\n  ".join(differing[:8])
            raise CheckpointError(
                f"{folder} holds checkpoints of another configuration:\n  {shown}\n"
                "Choose another --workdir, or give the same configuration to resume."
            )
    return folder


def make_folder(folder: Path, config: Config, spec: InputSpec, data_name: str | None) -> None:
    """Make the run folder with all that it needs to stand on its own: configuration, its source, what the network sees.

    `data_name` is the set that `config.data` loads; None for images that were given in Python. Raises `ConfigError`
    where the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", to_dict(config))
        write_json(folder / NETWORK, {**dataclasses.asdict(spec), "data_name": data_name})
        record_source(folder, config)
    except OSError as error:
        message = f"The run folder {folder} cannot be written: {error.strerror}. Choose another --workdir."
        raise ConfigError(message) from None


def input_spec(config: Config, splits: Splits) -> InputSpec:
    """What the network of a run sees of these images; raises `ConfigError` for a resolution that they have not."""
    mean, std = splits.train.channel_statistics
    height, width, channels = splits.train.images.shape[1:]
    resolutions = config.train.resolutions
    for side, _ in resolutions:
        check(side <= height, "train.resolutions", side, f"the images have {height} pixels a side")
    last = resolutions[-1][0] if resolutions else None
    # A channel that is the same in all images stays 0 after its mean is taken away, whatever it is divided by.
    mean, std = tuple(map(float, mean)), tuple(float(value) or 1.0 for value in std)
    return InputSpec((height, width, channels), mean, std, last, splits.label_names)


def read_spec(folder: Path) -> tuple[InputSpec, str | None] | None:
    """What the network of a run sees, and the name of its data set (None: given in Python).

    None for a run of an earlier version, which did not record it. Raises `CheckpointError` for a damaged file.
    """
    path = folder / NETWORK
    if not path.exists():
        return None
    values = read_json(path)
    try:
        data_name = values.pop("data_name")
        check(data_name is None or isinstance(data_name, str), "data_name", data_name, "it must be a name, or null")
        tuples = {name: tuple(values.pop(name)) for name in ("image_shape", "mean", "std", "label_names")}
        return InputSpec(**tuples, **values), data_name
    except (TypeError, KeyError, ConfigError) as error:
        raise CheckpointError(f"{path} does not say what the network sees ({str(error).rstrip('.')}).") from None


def has_checkpoints(folder: Path) -> bool:
    """Whether the folder holds anything that may be a checkpoint."""
    return any((folder / CHECKPOINTS).glob("*"))


def read_config(folder: Path) -> Config:
    """The configuration of an existing run; raises `CheckpointError` where the folder is none."""
    return from_dict(read_json(folder / "config.json"))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a run folder; raises `CheckpointError` where it is missing or damaged."""
    try:
        values = files.read_json(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} is not a run folder: it holds no {path.name}.") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}).") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds no table of fields.")
    return values
