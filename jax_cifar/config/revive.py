"""Configurations read back from their JSON form; nothing of a user's own is run, unless the caller has its code."""

import dataclasses
import functools
import importlib
import re
import types
from collections.abc import Callable, Mapping, Set
from typing import Any

from jax_cifar.config.checks import annotations, is_idle
from jax_cifar.config.placeholder import Recorded
from jax_cifar.config.record import KINDS, LOADED_AS, TRANSFORMS, to_dict
from jax_cifar.config.sections import Config, ModelConfig
from jax_cifar.errors import ConfigError, UserError, check

Namespace = types.ModuleType | Mapping[str, Any]
# What comes with this library; code of a run's own that the user trusts may be from any module of it.
INSTALLED = ("jax", "flax", "optax", "numpy", "jax_cifar")
# What a name in a run folder may lead to without anybody's leave: linen modules, and functions of arrays. No module is
# imported because a run folder names it, and nothing here reads or writes files or runs text.
LAYERS = ("flax.linen", "jax_cifar.models", "jax_cifar.models.layers")
FUNCTIONS = ("jax.nn", "jax.nn.initializers", "flax.linen.pooling", "jax_cifar.models.layers")
ELEMENTWISE = (  # of jax.numpy
    *("abs", "arctan", "clip", "cos", "exp", "log1p", "maximum", "minimum", "negative", "reciprocal", "sign", "sin"),
    *("sinh", "sqrt", "square", "tan", "tanh"),
)
# These change what a run shows and keeps, not what it computes, so a resumed run may set them anew; but see
# `computed_fields`.
FREE_TO_CHANGE = re.compile(
    r"(log|checkpoint|eval)\..*|data\.dir|train\.(compilation_cache|debug_nans)|distributed\..*"
)
# Of these sets `data.dir` says which images they are; the others are the same wherever they lie.
OWN_DATA = ("folder", "npz")


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
    except UserError:
        raise
    except Exception as error:  # of a class that is not ours, any
        raise ConfigError(f"{where}: {kind.__name__} cannot be made from what is recorded: {error}.") from None


def revive(recorded: Any, namespaces: Mapping[str, Namespace], trust_installed: bool = False) -> Any:
    """The object that `recorded` stands for, built with code that the caller trusts, by its origin.

    Layers of Flax, activations of JAX and the parts of this library's networks need no trust (`LAYERS`, `FUNCTIONS`);
    with `trust_installed` anything of JAX, Flax, Optax, NumPy and this library may be imported.

    Raises:
        ConfigError: no code is given for an origin, or it has no class or function of that name and fields.
    """
    if isinstance(recorded, tuple):
        return tuple(revive(item, namespaces, trust_installed) for item in recorded)
    if isinstance(recorded, Mapping):
        return {name: revive(item, namespaces, trust_installed) for name, item in recorded.items()}
    if not isinstance(recorded, Recorded):
        return recorded
    fields = {name: revive(item, namespaces, trust_installed) for name, item in recorded.fields}
    if recorded.kind == "dtype":
        return _dtype(recorded.name)
    if recorded.origin is None:
        return _library_transform(dataclasses.replace(recorded, fields=tuple(fields.items())), recorded.name)
    code = _find(recorded, namespaces, trust_installed)
    if recorded.kind in ("function", "class"):
        return functools.partial(code, **fields) if fields else code
    return _instance(code, fields, recorded.name)


def is_installed(origin: str) -> bool:
    """Whether code from there comes with the library or what it stands on."""
    return _package(origin) in INSTALLED and not origin.endswith(".py")


def _dtype(name: str) -> Any:
    """The number type of this name, and no other notation that NumPy takes, such as "O" or "f4,f4"."""
    numpy = importlib.import_module("jax.numpy")
    if not (re.fullmatch("[a-z0-9_]+", name) and getattr(getattr(numpy, name, None), "dtype", None) == name):
        raise ConfigError(f"{name!r} is no number type of JAX.")
    return numpy.dtype(name)


def _find(recorded: Recorded, namespaces: Mapping[str, Namespace], trust_installed: bool) -> Any:
    """The class or function that is named; never another one that merely can be reached from its module."""
    origin, name = recorded.origin or "", recorded.name
    namespace = namespaces.get(origin)
    if namespace is not None:
        found = _member(namespace, name)
    elif not is_installed(origin):
        recorded._refuse()
    else:
        found = _public(origin, name) or _imported(recorded, trust_installed)
    needs_fields = recorded.kind in ("transform", "network", "dataclass")
    if not callable(found) or (needs_fields and not _has_fields(found)):
        kept = "The source of a Python session is not kept with a run: define it there again, or in a file."
        hint = f" {kept}" if origin == "__main__" else ""
        raise ConfigError(f"{origin} has no {recorded.kind} {name}.{hint}")
    return found


def _member(namespace: Namespace, name: str) -> Any:
    """What a module defines at its top level, or in a class there, under this name; not what it has imported."""
    members = namespace if isinstance(namespace, Mapping) else vars(namespace)
    first, *others = name.split(".")
    found = members.get(first)
    for part in others:
        found = vars(found).get(part) if isinstance(found, type) else None
    own = getattr(found, "__module__", None) == members.get("__name__")
    return found if own and getattr(found, "__qualname__", None) == name else None


def _public(origin: str, name: str) -> Any:
    """What needs no trust and is called so, if it is of that package (modules move between versions); else None."""
    names = [(module, _is_layer) for module in LAYERS] + [(module, callable) for module in FUNCTIONS]
    names += [("jax.numpy", callable)] * (name in ELEMENTWISE)
    offered = ((vars(importlib.import_module(module)).get(name), fits) for module, fits in names)
    return next((code for code, fits in offered if fits(code) and _package(code.__module__) == _package(origin)), None)


def _package(module: str) -> str:
    return module.partition(".")[0]


def _is_layer(code: Any) -> bool:
    return isinstance(code, type) and issubclass(code, importlib.import_module("flax.linen").Module)


def _imported(recorded: Recorded, trust_installed: bool) -> Any:
    origin, name = recorded.origin or "", recorded.name
    if not trust_installed:
        recorded._refuse()
    try:
        return _member(importlib.import_module(origin), name)
    except ImportError as error:
        raise ConfigError(f"{name} is from {origin}, which cannot be imported: {error}.") from None


def _has_fields(found: Any) -> bool:
    return isinstance(found, type) and dataclasses.is_dataclass(found)


def revive_all(config: Config, namespaces: Mapping[str, Namespace]) -> Config:
    """`config` with every placeholder replaced by what it stands for, all that is installed trusted.

    Raises `ConfigError` as `revive` does.
    """

    def revived(section: Any, *names: str) -> dict[str, Any]:
        return {name: revive(getattr(section, name), namespaces, True) for name in names}

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


def computed_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that change what is computed, flat, as `from_dict` reads them: one not named counts by its default.

    How often validation images are looked at is one of them where `train.patience` ends a run by what they say.
    """
    fields = flat(to_dict(from_dict(values)))
    decides = ("eval.every",) if fields["train.patience"] else ()
    return {name: value for name, value in fields.items() if name in decides or not FREE_TO_CHANGE.fullmatch(name)}


def experiment_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """As `computed_fields` of what `to_record` gives, and of images of one's own the place: it says which they are."""
    fields = computed_fields(values)
    return fields | ({"data.dir": values["data"].get("dir")} if fields["data.name"] in OWN_DATA else {})


def differing_fields(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    fields_of: Callable[[Mapping[str, Any]], Mapping[str, Any]] = computed_fields,
) -> list[str]:
    """Lines such as `optim.lr: 0.1 there, 0.2 here` for the fields that change what is computed."""
    before, after = fields_of(old), fields_of(new)
    # What decides by another field in one of the two alone: the line of that field says all.
    idle = {name for name in before.keys() ^ after.keys() if FREE_TO_CHANGE.fullmatch(name)}
    return [
        f"{name}: {before.get(name)!r} there, {after.get(name)!r} here"
        for name in sorted((before.keys() | after.keys()) - idle)
        if before.get(name) != after.get(name)
    ]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one: `{"optim.lr": 0.1, ...}`."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        result |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return result
