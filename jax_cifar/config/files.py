"""Config files. What other rooms need of overrides and of the JSON form is had from here too."""

import contextlib
import dataclasses
import difflib
import inspect
import sys
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jax_cifar.config.modules import running
from jax_cifar.config.overrides import apply_overrides, field_types, help_text
from jax_cifar.config.record import check_recordable, to_dict, to_record
from jax_cifar.config.revive import FREE_TO_CHANGE, OWN_DATA, differing_fields, experiment_fields, flat, from_dict
from jax_cifar.config.sections import Config
from jax_cifar.errors import ConfigError, check
from jax_cifar.files import expand, shipped

__all__ = [
    "FREE_TO_CHANGE",
    "OWN_DATA",
    "apply_overrides",
    "check_recordable",
    "differing_fields",
    "experiment_fields",
    "field_types",
    "flat",
    "from_dict",
    "help_text",
    "known_figure",
    "load_config",
    "split_variant",
    "to_dict",
    "to_record",
    "variants_of",
]


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The `Config` of a config file, with command-line overrides such as `["--optim.lr", "0.1"]` applied.

    A file may describe several experiments, `get_config(variant: Literal["a", "b"] = "a")`: `file.py:b` is the second.
    It may import files beside it, at its top or in `get_config`. The experiments that ship are found by their names
    alone, from any folder: `quickstart`, `cifar10_speedrun:72`.

    Raises:
        ConfigError: a file is missing, fails or returns something else, has no such variant, or an override names an
            unknown field, has the wrong type or is out of range.
    """
    file, variant = split_variant(path)
    file = expand(file)
    _check_file(file)
    with running(file) as module:
        config = (get_config := _get_config(module))(*_variant(get_config, variant))
        if not isinstance(config, Config):
            raise ConfigError(f"get_config() returned {type(config).__name__}, not a jax_cifar Config.")
    return apply_overrides(dataclasses.replace(config, loaded_as=module.__name__), overrides)


def split_variant(path: str | Path) -> tuple[Path, str | None]:
    """`file.py:b` -> the file, which need not be there, and the name of the experiment in it if one is given.

    What ships needs no more than its name: `cifar10_speedrun:72`.
    """
    name, colon, variant = str(path).partition(":")
    if "/" not in name and (file := shipped("configs") / f"{name}.py").is_file() and not Path(path).exists():
        return file, variant if colon else None
    name, _, variant = str(path).rpartition(":")
    return (Path(name), variant) if name.endswith(".py") else (Path(path), None)


def variants_of(path: str | Path) -> tuple[str, ...]:
    """The names of the experiments in a config file; none where it describes one only. Raises as `load_config`."""
    file = expand(split_variant(path)[0])
    _check_file(file)
    with running(file) as module:
        return _choices(_get_config(module))


def known_figure(config: Config) -> str | None:
    """What its config file says in `REACHES`, by name, that an experiment reaches; None once a field is another one.

    Seeds may differ, and what changes nothing that is computed (`FREE_TO_CHANGE`).
    """
    module = sys.modules.get(config.loaded_as or "")
    figures = getattr(module, "REACHES", None)
    if module is None or not isinstance(figures, dict) or not isinstance(figures.get(config.name), str):
        return None
    get_config, ours = _get_config(module), to_dict(config)
    for variant in _choices(get_config) or (None,):
        with contextlib.suppress(Exception):  # another experiment of the file may ask for what is not here
            one = get_config() if variant is None else get_config(variant)
            one = dataclasses.replace(one, train=dataclasses.replace(one.train, seed=config.train.seed))
            if not differing_fields(to_dict(one), ours):
                return figures[config.name]
    return None


def _get_config(module: types.ModuleType) -> Callable[..., Any]:
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise ConfigError("it defines no function get_config().")
    return get_config


def _choices(get_config: Callable[..., Any]) -> tuple[str, ...]:
    named = typing.get_type_hints(get_config).get("variant")
    return typing.get_args(named) if typing.get_origin(named) is typing.Literal else ()


def _check_file(path: Path) -> None:
    """Raise `ConfigError` unless there is a Python file; what there is instead is said, or what is near."""
    expected = "A config file is a Python file that defines get_config(), such as configs/quickstart.py."
    if path.is_dir():
        files = ", ".join(sorted(str(file) for file in path.glob("*.py"))[:3])
        raise ConfigError(f"{path} is a folder. {f'Name one of its files, such as {files}.' if files else expected}")
    if not path.is_file():
        known = [file for folder in (path.parent, Path("configs")) for file in sorted(folder.glob("*.py"))]
        known += [Path(file.stem) for file in sorted(shipped("configs").glob("*.py"))]
        near = difflib.get_close_matches(path.stem, [file.stem for file in known], n=1, cutoff=0.7)
        hint = next((f"Did you mean {file}?" for file in known if file.stem in near and file != path), expected)
        raise ConfigError(f"There is no config file {path}. {hint}")
    try:
        start = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"The config file {path} cannot be read: {error.strerror}.") from None
    kinds = {b"PK\x03\x04": "a zip archive", b"\x1f\x8b": "a gzip archive", b"\x89PNG": "a picture", b"{": "JSON"}
    kind = next((kind for magic, kind in kinds.items() if start.startswith(magic)), None)
    if kind is not None or b"\0" in start or path.suffix != ".py":
        other = "a binary file" if b"\0" in start else "no Python file: its name does not end in .py"
        raise ConfigError(f"{path} is {kind or other}. {expected}")


def _variant(get_config: Callable[..., Any], variant: str | None) -> list[str]:
    """The arguments for `get_config`; raises `ConfigError` for a variant that it does not name."""
    choices = _choices(get_config)
    parameters = inspect.signature(get_config).parameters
    known = "the file describes one experiment only"
    if choices:
        known = f"choose one of {', '.join(choices)}"
    elif parameters:
        literal = 'get_config(variant: Literal["a", "b"] = "a")'
        known = f"get_config({', '.join(parameters)}) does not say which there are; write {literal}"
    check(variant is None or variant in choices, "variant", variant, known)
    needed = [
        name
        for name, given in parameters.items()
        if given.default is given.empty and given.kind not in (given.VAR_POSITIONAL, given.VAR_KEYWORD)
    ]
    if needed == ["variant"] and choices and variant is None:
        raise ConfigError(f"name one of its experiments: {', '.join(f'FILE.py:{choice}' for choice in choices)}.")
    if needed and not (needed == ["variant"] and choices):
        shown = ", ".join(needed)
        raise ConfigError(f"get_config({shown}) is called without arguments: give {shown} a default.")
    return [] if variant is None else [variant]
