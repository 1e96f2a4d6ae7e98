"""Config files, command-line overrides, and the JSON form that a run folder keeps."""

import contextlib
import dataclasses
import difflib
import importlib
import io
import json
import re
import runpy
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jax_cifar.config import Config
from jax_cifar.config.checks import type_name
from jax_cifar.errors import ConfigError, check

TRANSFORMS = "jax_cifar.augment"
# These change what a run shows and keeps, not what it computes, so a resumed run may set them anew.
FREE_TO_CHANGE = re.compile(
    r"(log|checkpoint|eval)\..*|data\.dir|train\.(compilation_cache|debug_nans)|distributed\.devices"
)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The `Config` of a config file, with command-line overrides such as `["--optim.lr", "0.1"]` applied.

    A file may describe several experiments, `get_config(variant: Literal["a", "b"] = "a")`: `file.py:b` is the second.

    Raises `ConfigError` for a file that is missing, fails or returns something else, for a variant that it does not
    have, and for an override that names an unknown field, has the wrong type or is out of range.
    """
    name, _, variant = str(path).rpartition(":")
    path = Path(name if name.endswith(".py") else path)
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], n=1, cutoff=0.5)
        hint = f" Did you mean {path.parent / near[0]}?" if near else ""
        raise ConfigError(f"There is no config file {path}.{hint}")
    try:
        get_config = runpy.run_path(str(path))["get_config"]
        config = get_config(*_variant(get_config, variant if name.endswith(".py") else None))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except KeyError:
        raise ConfigError(f"{path} defines no function get_config().") from None
    except Exception as error:
        raise ConfigError(f"{path} failed with {type(error).__name__}: {error}") from error
    if not isinstance(config, Config):
        raise ConfigError(f"{path}: get_config() returned {type(config).__name__}, not a jax_cifar Config.")
    return apply_overrides(config, overrides)


def _variant(get_config: Callable[..., Any], variant: str | None) -> list[str]:
    """The arguments for `get_config`; raises `ConfigError` for a variant that it does not name."""
    if variant is None:
        return []
    choices = typing.get_args(typing.get_type_hints(get_config).get("variant"))
    known = f"choose one of {', '.join(choices)}" if choices else "the file describes one experiment only"
    check(variant in choices, "variant", variant, known)
    return [variant]


def field_types(kind: Any = Config, prefix: str = "") -> dict[str, Any]:
    """Every settable field as `{"optim.lr": float, ...}`, in the order of declaration."""
    result: dict[str, Any] = {}
    for name, expected in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(expected):
            result |= field_types(expected, f"{prefix}{name}.")
        else:
            result[prefix + name] = expected
    return result


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    last = name.rpartition(".")[2]
    same = [field for field in known if field.rpartition(".")[2] == last]
    near = same or difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"Did you mean --{near[0]}?" if near else "--help lists every field."


def _split(argument: str, known: Mapping[str, Any]) -> tuple[str, list[str]]:
    """`--config.optim.lr=0.1` -> the field `optim.lr` and its words `["0.1"]`; `--x.no-flag` is `--x.flag=False`."""
    flag, equals, value = argument.removeprefix("--").partition("=")
    name = flag.removeprefix("config.").replace("-", "_")
    section, _, last = name.rpartition(".")
    positive = f"{section}.{last.removeprefix('no_')}"
    if name == "augment":
        raise ConfigError("--augment cannot be set here: transforms are chosen in the config file.")
    if name not in known and known.get(positive) is bool:
        return positive, ["False"]
    if name not in known:
        raise ConfigError(f"--{flag} is not a field of the configuration. {_nearest(name, known)}")
    return name, [value] if equals else []


def _parse(words: list[str], expected: Any) -> Any:
    """The value of annotated type `expected` that the words spell; raises ValueError where they spell none."""
    origin, options = typing.get_origin(expected), typing.get_args(expected)
    if origin is tuple:
        kind = options[0]
        size = max(1, len(typing.get_args(kind)))
        groups = [words[i : i + size] for i in range(0, len(words), size)]
        return (
            tuple(_parse(group, kind) for group in groups)
            if options[1:] == (...,)
            else tuple(_parse([word], option) for word, option in zip(words, options, strict=True))
        )
    if type(None) in options:
        return None if words == ["None"] else _parse(words, options[0])
    if expected is bool:
        return {"true": True, "1": True, "false": False, "0": False}[(words or ["true"])[0].lower()]
    (word,) = words
    return expected(word) if expected in (int, float) else word


def apply_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """`config` with `["--optim.lr", "0.1", ...]` applied; raises `ConfigError` in one short message."""
    known, rest = field_types(), list(overrides)
    changes: dict[str, dict[str, Any]] = {}
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--"):
            raise ConfigError(f"Unexpected argument {argument!r}: give options as --section.field VALUE.")
        name, words = _split(argument, known)
        while rest and not rest[0].startswith("--"):
            words.append(rest.pop(0))
        try:
            value = _parse(words, known[name])
        except (ValueError, KeyError):
            shown = " ".join(words) or "nothing"
            raise ConfigError(f"{name} = {shown} is not allowed: it must be {type_name(known[name])}.") from None
        section, _, last = name.rpartition(".")
        changes.setdefault(section, {})[last] = value
    # All at once, so that only the result has to be valid, whatever the order on the command line.
    top = changes.pop("", {})
    sections = {name: dataclasses.replace(getattr(config, name), **values) for name, values in changes.items()}
    return dataclasses.replace(config, **sections, **top)


def help_text(config: Config, program: str) -> str:
    """What every field means, with its type and its value in `config`."""
    import tyro

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        tyro.cli(Config, default=config, prog=program, args=["--help"], config=(tyro.conf.SuppressFixed,))
    return printed.getvalue()


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as JSON values; a transform becomes `{"transform": "RandomCrop", ...}`, also inside a group."""
    values = dataclasses.asdict(dataclasses.replace(config, augment=()))
    return json.loads(json.dumps({**values, "augment": _plain(config.augment)}))


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(map(_plain, value))
    if not dataclasses.is_dataclass(value):
        return value
    fields = {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return {"transform": type(value).__name__, **fields}


def _revived(value: Any) -> Any:
    """What `_plain` was given, for what it gave."""
    if isinstance(value, list):
        return tuple(map(_revived, value))
    if not isinstance(value, Mapping):
        return value
    library = importlib.import_module(TRANSFORMS)
    fields = {name: _revived(field) for name, field in value.items()}
    name = fields.pop("transform")
    if name not in library.__all__:
        raise ConfigError(f"The transform {name} is not part of {TRANSFORMS}.")
    return getattr(library, name)(**fields)


def _build(kind: Any, values: Mapping[str, Any], where: str) -> Any:
    hints = typing.get_type_hints(kind)
    for name in values:
        if name not in hints:
            raise ConfigError(f"{where}{name} is not a field of the configuration of this version.")
    return kind(
        **{
            name: _build(hints[name], value, f"{where}{name}.")
            if dataclasses.is_dataclass(hints[name])
            else _revived(value)
            for name, value in values.items()
        }
    )


def from_dict(values: Mapping[str, Any]) -> Config:
    """The `Config` that `to_dict` wrote; raises `ConfigError` for a field or transform this version does not have."""
    return _build(Config, {"augment": [], **values}, "")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in values.items():
        result |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return result


def differing_fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Lines such as `optim.lr: 0.1 there, 0.2 here` for the fields that change what is computed."""
    before, after = _flat(old), _flat(new)
    return [
        f"{name}: {before.get(name)!r} there, {after.get(name)!r} here"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name) and not FREE_TO_CHANGE.fullmatch(name)
    ]
