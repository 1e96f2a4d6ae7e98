"""Command-line overrides of a configuration, and the help that lists them.

Parsed by our own code: a mistake is one line that shows the value and the nearest name, only the result of all options
has to be valid, and it takes no time. tyro, which would print a page for each of these, lays out `--help` only.
"""

import contextlib
import dataclasses
import difflib
import functools
import io
import operator
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

from jax_cifar.config.checks import fault, type_name
from jax_cifar.config.placeholder import Recorded
from jax_cifar.config.record import LOADED_AS
from jax_cifar.config.revive import without_idle
from jax_cifar.config.sections import Config, ModelConfig
from jax_cifar.errors import ConfigError, check

# What is not set here but in the config file, and the word for it.
_IN_FILE = "is chosen in the config file, not on the command line"


def field_types(config: Config | None = None) -> dict[str, Any]:
    """Every field as `{"optim.lr": float, ...}`, in the order of declaration; with the own network's where one stands.

    Of a network of one's own those fields are listed that a command line can spell: numbers, strings, flags, tuples.
    """
    result: dict[str, Any] = {}
    for name, expected in _types(Config).items():
        if name == "model" and config is not None and not isinstance(config.model, ModelConfig):
            result |= {f"model.{field}": kind for field, kind in _own_fields(config.model).items()}
        elif dataclasses.is_dataclass(kind := ModelConfig if name == "model" else expected):
            result |= {f"{name}.{field}": hint for field, hint in _types(kind).items()}
        elif name != LOADED_AS:
            result[name] = expected
    return result


_types = functools.cache(typing.get_type_hints)


def _own_fields(network: Any) -> dict[str, Any]:
    """The fields of a user's network that are of a simple type; none where it cannot be told."""
    if isinstance(network, Recorded):
        return {}
    try:
        hints = typing.get_type_hints(type(network))
    except (NameError, TypeError, AttributeError):
        hints = {}
    names = [item.name for item in dataclasses.fields(network) if item.init and item.name not in ("parent", "name")]
    return {name: hints[name] for name in names if name in hints and _is_simple(hints[name])}


def _is_simple(expected: Any) -> bool:
    options = typing.get_args(expected)
    if typing.get_origin(expected) is Literal:
        return all(isinstance(option, str) for option in options)
    if typing.get_origin(expected) is tuple:
        return bool(options) and all(option is ... or _is_simple(option) for option in options)
    if type(None) in options:
        return len(options) == 2 and all(option is type(None) or _is_simple(option) for option in options)
    return expected in (int, float, bool, str)


def _spelled(expected: Any) -> Any:
    """What of a type can be spelled: in the union of names and functions, the names; None where nothing can."""
    origin, options = typing.get_origin(expected), typing.get_args(expected)
    if origin in (None, Literal, Callable):
        return None if origin is Callable else expected
    if origin is tuple:
        return expected if _spelled(options[0]) is not None else None
    kept = [option for option in options if typing.get_origin(option) is not Callable]
    return functools.reduce(operator.or_, kept) if kept and kept != [type(None)] else None


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    if f"{name}.name" in known:
        return f"Did you mean --{name}.name?"
    section, _, last = name.rpartition(".")
    same = [field for field in known if field.rpartition(".")[2] == last]
    near = difflib.get_close_matches(name, same or list(known), n=1, cutoff=0.6) if section or not same else same
    return f"Did you mean {' or '.join(f'--{field}' for field in near)}?" if near else "--help lists every field."


def _split(argument: str, known: Mapping[str, Any], config: Config) -> tuple[str, list[str]]:
    """`--config.optim.lr=0.1` -> the field `optim.lr` and its words `["0.1"]`; `--x.no-flag` is `--x.flag=False`."""
    flag, equals, value = argument.removeprefix("--").partition("=")
    name = flag.removeprefix("config.").replace("-", "_")
    section, _, last = name.rpartition(".")
    positive = f"{section}.{last.removeprefix('no_')}"
    if name in known:
        if _spelled(known[name]) is None:
            raise ConfigError(f"--{flag} {_IN_FILE}.")
        return name, [value] if equals else []
    if known.get(positive) is bool and last.startswith("no_"):
        if equals:
            raise ConfigError(f"--{flag} takes no value: say --{positive} true or --{positive} false.")
        return positive, ["False"]
    if section == "model" and not isinstance(config.model, ModelConfig):
        own = ", ".join(f"--{field}" for field in known if field.startswith("model.")) or "none"
        network = config.model if isinstance(config.model, Recorded) else type(config.model).__name__
        raise ConfigError(
            f"--{flag} cannot be set: the network is {network}, of the config file's own; what can be set of it: {own}."
        )
    raise ConfigError(f"--{flag} is not a field of the configuration. {_nearest(name, known)}")


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
        kind = next(option for option in options if option is not type(None))
        return None if words == ["None"] else _parse(words, kind)
    if expected is bool:
        (word,) = words or ["true"]
        return {"true": True, "1": True, "false": False, "0": False}[word.lower()]
    (word,) = words
    return expected(word) if expected in (int, float) else word


def _read(overrides: Sequence[str], known: Mapping[str, Any], config: Config) -> dict[str, dict[str, Any]]:
    """The values that the command line gives, by section and field."""
    rest, changes = list(map(str, overrides)), {}
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--"):
            raise ConfigError(f"Unexpected argument {argument!r}: give options as --section.field VALUE.")
        name, words = _split(argument, known, config)
        while rest and not rest[0].startswith("--"):
            words.append(rest.pop(0))
        expected = _spelled(known[name])
        try:
            value = _parse(words, expected)
        except (ValueError, KeyError):
            shown, kind = " ".join(words) or "nothing", type_name(known[name])
            way = ", as words without brackets or commas" if typing.get_origin(expected) is tuple else ""
            raise ConfigError(f"{name} = {shown} is not allowed: it must be {kind}{way}.") from None
        section, _, last = name.rpartition(".")
        if last in changes.setdefault(section, {}):
            raise ConfigError(f"--{name} is given twice: {changes[section][last]!r}, then {value!r}.")
        changes[section][last] = value
    return changes


def of_other_fields(overrides: Sequence[str], config: Config, names: Collection[str]) -> list[str]:
    """Those overrides that set none of these fields, as they were given."""
    known, kept, keep = field_types(config), [], False
    for word in overrides:
        if word.startswith("--"):
            keep = _split(word, known, config)[0] not in names
        kept += [word] if keep else []
    return kept


def apply_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """`config` with `["--optim.lr", "0.1", ...]` applied; raises `ConfigError` in one short message.

    Where another `name` is chosen, fields of the config file that do nothing with it fall back to their defaults; those
    given here are refused.
    """
    changes = _read(overrides, field_types(config), config)
    # All at once, so that only the result has to be valid, whatever the order on the command line.
    top = changes.pop("", {})
    sections = {name: _changed(getattr(config, name), name, values) for name, values in changes.items()}
    return dataclasses.replace(config, **sections, **top)


def _changed(section: Any, name: str, values: dict[str, Any]) -> Any:
    """A section, or a network of one's own, with some fields changed."""
    if type(section).__module__ == Config.__module__:
        given = {item.name: getattr(section, item.name) for item in dataclasses.fields(section)}
        return type(section)(**(without_idle(type(section), given | values) | values))
    hints = _own_fields(section)
    for field, value in values.items():
        check((wrong := fault(value, hints[field])) is None, f"{name}.{field}", value, wrong or "")
    try:
        return section.clone(**values)
    except Exception as error:
        shown = ", ".join(f"{name}.{field} = {value!r}" for field, value in values.items())
        raise ConfigError(f"{shown} is refused by {type(section).__name__}: {type(error).__name__}: {error}") from None


def help_text(config: Config, program: str) -> str:
    """What every field that can be set means, with its type and its value in `config`."""
    import tyro

    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def _(field: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
        # Of a union of names and functions the names are shown, and the function that stands there.
        options = () if typing.get_origin(field.type) is tuple else typing.get_args(field.type)
        if not any(typing.get_origin(option) is Callable for option in options):
            return None
        choices = ["None"] if (names := _spelled(field.type)) is None else list(map(str, typing.get_args(names)))
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar=f"{{{','.join(choices)}}}",
            instance_from_str=lambda words: words[0],
            is_instance=lambda value: True,
            str_from_instance=lambda value: [str(getattr(value, "__name__", value))],
        )

    # A config that shows what can be set of its network; what tyro cannot spell, such as the transforms, it leaves out.
    shown = object.__new__(Config)
    model = config.model if isinstance(config.model, ModelConfig) else _stand_in(config.model)
    vars(shown).update(vars(config) | {"model": model, LOADED_AS: _stand_in})
    printed = io.StringIO()
    with registry, contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        tyro.cli(Config, default=shown, prog=program, args=["--help"], config=(tyro.conf.SuppressFixed,))
    return printed.getvalue()


def _stand_in(network: Any) -> Any:
    """A dataclass with what can be set of a user's network."""
    kinds = _own_fields(network).items()
    kind = dataclasses.make_dataclass(type(network).__name__, kinds)
    return kind(**{name: getattr(network, name) for name, _ in kinds})
