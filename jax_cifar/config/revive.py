"""Configurations read back from their JSON form; nothing of a user's own is run, unless the caller has its code."""

import dataclasses
import functools
import importlib
import re
import types
from collections.abc import Mapping, Set
from typing import Any

from jax_cifar.config.checks import annotations, is_idle
from jax_cifar.config.placeholder import Recorded
from jax_cifar.config.record import KINDS, LOADED_AS, TRANSFORMS, to_dict
from jax_cifar.config.sections import Config, ModelConfig
from jax_cifar.errors import ConfigError, check

Namespace = types.ModuleType | Mapping[str, Any]
# What is installed with this library may be imported for the sake of a name in a run folder.
INSTALLED = ("jax", "flax", "optax", "numpy", "jax_cifar")
# These change what a run shows and keeps, not what it computes, so a resumed run may set them anew.
FREE_TO_CHANGE = re.compile(
    r"(log|checkpoint|eval)\..*|data\.dir|train\.(compilation_cache|debug_nans)|distributed\.devices"
)


def from_dict(values: Mapping[str, Any]) -> Config:
    """The `Config` that `to_dict` wrote, with a `Recorded` in place of everything that is not the library's own.

    What an earlier version did not have gets its default, or the value that means what it did; what did nothing with
    the run's optimizer, schedule or network gets its default too.

    Raises:
        ConfigError: a field or transform that this version does not have, or a value of another shape.
    """
    check(isinstance(values, Mapping), "the configuration", values, "it must be a table of sections")
    check("name" in values, "name", None, "every configuration has one")
    known = annotations(Config).keys() - {LOADED_AS}
    sections = {name: _section(name, value, known) for name, value in values.items()}
    return Config(**sections)


def _section(name: str, value: Any, known: Set[str]) -> Any:
    """A section of its fields, or what stands in the place of one."""
    _check_known(name, known)
    kind = ModelConfig if name == "model" else annotations(Config)[name]
    if not dataclasses.is_dataclass(kind) or (name == "model" and isinstance(value, Mapping) and "network" in value):
        return _decode(value, name)
    check(isinstance(value, Mapping), name, value, "it must be a table of fields")
    for field in value:
        _check_known(f"{name}.{field}", {f"{name}.{known}" for known in annotations(kind)})
    fields = {field: _decode(item, f"{name}.{field}") for field, item in value.items()}
    if name == "optim" and fields.get("ema_decay"):
        fields = {"ema_warmup": False} | fields  # averages that were recorded without it had none
    return kind(**without_idle(kind, fields))


def _check_known(name: str, known: Set[str]) -> None:
    if name not in known:
        raise ConfigError(f"{name} is not a field of the configuration of this version.")


def without_idle(kind: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a section without those that do nothing with its `name`."""
    chosen = fields.get("name", getattr(kind, "name", None))
    return {field: value for field, value in fields.items() if not is_idle(kind, field, chosen)}


def _decode(value: Any, where: str) -> Any:
    """The value that was recorded; a placeholder where it needs code that is not the library's."""
    if isinstance(value, list):
        return tuple(_decode(item, f"{where}[{i}]") for i, item in enumerate(value))
    if not isinstance(value, Mapping):
        return value
    kind = next((kind for kind in KINDS if kind in value), None)
    if kind is None:
        return {name: _decode(item, f"{where}.{name}") for name, item in value.items()}
    name, origin = value[kind], value.get("from")
    good = isinstance(name, str) and (isinstance(origin, str) or (origin is None and kind == "transform"))
    check(good, where, value, f"it must name the {kind} and where it is from")
    fields = {key: item for key, item in value.items() if key not in (kind, "from")}
    if kind in ("function", "class"):
        fields = fields.get("arguments", {})
    check(isinstance(fields, Mapping), f"{where}.arguments", fields, "it must be a table")
    plain = tuple((key.removesuffix("_") if key == f"{kind}_" else key, item) for key, item in fields.items())
    recorded = Recorded(kind, name, origin, tuple((key, _decode(item, f"{where}.{key}")) for key, item in plain))
    # A group of the library's stays a placeholder for as long as one of its members is.
    return recorded if origin is not None or _is_pending(recorded.fields) else _library_transform(recorded, where)


def _is_pending(value: Any) -> bool:
    return isinstance(value, Recorded) or (isinstance(value, tuple) and any(map(_is_pending, value)))


def _library_transform(recorded: Recorded, where: str) -> Any:
    library = importlib.import_module(TRANSFORMS)
    kind = getattr(library, recorded.name, None) if recorded.name in library.__all__ else None
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind) and issubclass(kind, library.Transform)):
        raise ConfigError(f"The transform {recorded.name} is not part of {TRANSFORMS}.")
    return _instance(kind, dict(recorded.fields), where)


def _instance(kind: Any, fields: Mapping[str, Any], where: str) -> Any:
    """`kind(**fields)`; raises `ConfigError` where it has no such fields."""
    for field in fields.keys() - {item.name for item in dataclasses.fields(kind) if item.init}:
        raise ConfigError(f"{where}: {kind.__name__} has no field {field} in this version.")
    try:
        return kind(**fields)
    except TypeError as error:
        raise ConfigError(f"{where}: {kind.__name__} cannot be made from what is recorded: {error}.") from None


def revive(recorded: Any, namespaces: Mapping[str, Namespace]) -> Any:
    """The object that `recorded` stands for, built with code that the caller trusts, by its origin.

    JAX, Flax, Optax, NumPy and this library are imported without asking.

    Raises:
        ConfigError: no code is given for an origin, or it has no class or function of that name and fields.
    """
    if isinstance(recorded, tuple):
        return tuple(revive(item, namespaces) for item in recorded)
    if isinstance(recorded, Mapping):
        return {name: revive(item, namespaces) for name, item in recorded.items()}
    if not isinstance(recorded, Recorded):
        return recorded
    fields = {name: revive(item, namespaces) for name, item in recorded.fields}
    if recorded.kind == "dtype":
        return importlib.import_module("jax.numpy").dtype(recorded.name)
    if recorded.origin is None:
        return _library_transform(dataclasses.replace(recorded, fields=tuple(fields.items())), recorded.name)
    code = _find(recorded, namespaces)
    if recorded.kind in ("function", "class"):
        return functools.partial(code, **fields) if fields else code
    return _instance(code, fields, recorded.name)


def is_installed(origin: str) -> bool:
    """Whether code from there comes with the library or what it stands on."""
    return origin.partition(".")[0] in INSTALLED and not origin.endswith(".py")


def _find(recorded: Recorded, namespaces: Mapping[str, Namespace]) -> Any:
    """The class or function that is named; never another one that merely can be reached from that module."""
    origin, name = recorded.origin or "", recorded.name
    namespace = namespaces.get(origin)
    if namespace is None and not is_installed(origin):
        recorded._refuse()
    try:
        found: Any = importlib.import_module(origin) if namespace is None else namespace
    except ImportError as error:
        raise ConfigError(f"{name} is from {origin}, which cannot be imported: {error}.") from None
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else getattr(found, part, None)
    foreign = namespace is None and not is_installed(str(getattr(found, "__module__", "")))
    needs_fields = recorded.kind in ("transform", "network", "dataclass")
    if not callable(found) or foreign or (needs_fields and not _has_fields(found)):
        kept = "The source of a Python session is not kept with a run: define it there again, or in a file."
        hint = f" {kept}" if origin == "__main__" else ""
        raise ConfigError(f"{origin} has no {recorded.kind} {name}.{hint}")
    return found


def _has_fields(found: Any) -> bool:
    return isinstance(found, type) and dataclasses.is_dataclass(found)


def revive_all(config: Config, namespaces: Mapping[str, Namespace]) -> Config:
    """`config` with every placeholder replaced by what it stands for; raises `ConfigError` as `revive` does."""

    def revived(section: Any, *names: str) -> dict[str, Any]:
        return {name: revive(getattr(section, name), namespaces) for name in names}

    return dataclasses.replace(
        config,
        **revived(config, "augment", "model"),
        optim=dataclasses.replace(config.optim, **revived(config.optim, "name")),
        schedule=dataclasses.replace(config.schedule, **revived(config.schedule, "name")),
        train=dataclasses.replace(config.train, **revived(config.train, "loss")),
    )


def has_placeholders(config: Config) -> bool:
    """Whether anything in a configuration has to be revived before it can be used."""
    own = (config.augment, config.model, config.optim.name, config.schedule.name, config.train.loss)
    return _is_pending(own)


def differing_fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Lines such as `optim.lr: 0.1 there, 0.2 here` for the fields that change what is computed.

    Both are read as `from_dict` reads them, so that a field which only one of them names counts by its default.
    """
    before, after = (flat(to_dict(from_dict(values))) for values in (old, new))
    return [
        f"{name}: {before.get(name)!r} there, {after.get(name)!r} here"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name) and not FREE_TO_CHANGE.fullmatch(name)
    ]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one: `{"optim.lr": 0.1, ...}`."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        result |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return result
