"""The JSON form of a configuration that a run folder keeps, with what is a user's own in it named, never pickled.

A network of one's own is `{"network": "MyNet", "from": "my_experiment.py", "hidden": 64}`; "from" is the file beside
the config file, or the module it is imported by. Nothing else than top-level classes and functions has such a name.
"""

import dataclasses
import functools
import math
import sys
from collections.abc import Mapping
from typing import Any

from jax_cifar.config.modules import origin_of
from jax_cifar.config.placeholder import Recorded
from jax_cifar.config.sections import Config, is_network
from jax_cifar.errors import ConfigError
from jax_cifar.files import expand

KINDS = ("transform", "network", "function", "class", "dataclass", "dtype")
TRANSFORMS = "jax_cifar.augment"
# Config's field that is not of the experiment but tells where it came from.
LOADED_AS = "loaded_as"


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as JSON values; a transform becomes `{"transform": "RandomCrop", ...}`, also inside a group.

    Raises:
        ConfigError: a part of one's own cannot be recorded: it is no top-level class or function, or holds an array.
    """
    return _encode_config(config, {})


def to_record(config: Config) -> dict[str, Any]:
    """As `to_dict`, with `data.dir` absolute: as it was typed it would mean another place elsewhere.

    Raises:
        ConfigError: as `to_dict`, or a variable in `data.dir` is not set.
    """
    values = to_dict(config)
    if config.data.dir is not None:
        values["data"]["dir"] = str(expand(config.data.dir).absolute())
    return values


def check_recordable(config: Config) -> None:
    """Raise `ConfigError` for the first part of one's own that `to_dict` cannot record."""
    to_dict(config)


def code_of(config: Config) -> dict[str, str]:
    """The modules that a configuration's own parts come from: `{"my_experiment.py": "file_1_my_experiment"}`."""
    modules: dict[str, str] = {}
    _encode_config(config, modules)
    return modules


def _encode_config(config: Config, modules: dict[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if item.name == LOADED_AS:
            continue
        if dataclasses.is_dataclass(value) and type(value).__module__ == Config.__module__:
            names = [field.name for field in dataclasses.fields(value)]
            values[item.name] = {name: _encode(getattr(value, name), f"{item.name}.{name}", modules) for name in names}
        else:
            values[item.name] = _encode(value, item.name, modules)
    return values


def _encode(value: Any, where: str, modules: dict[str, str]) -> Any:
    """The JSON form of a value found at the field `where`; the modules of the user's own code are noted."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, tuple | list):
        return [_encode(item, f"{where}[{i}]", modules) for i, item in enumerate(value)]
    if isinstance(value, Recorded):
        origin = {} if value.origin is None else {"from": value.origin}
        return _named(value.kind, value.name, origin, dict(value.fields), where, modules)
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value) and not value.keys() & set(KINDS):
        return {key: _encode(item, f"{where}.{key}", modules) for key, item in value.items()}
    if (dtype := _dtype_name(value)) is not None:
        return {"dtype": dtype, "from": "numpy"}
    if isinstance(value, functools.partial) and hasattr(value.func, "__qualname__"):
        if value.args:
            raise ConfigError(f"{where} = {_shown(value)} cannot be recorded: give its arguments by keyword.")
        return _encode_code(value.func, value.keywords, where, modules)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _encode_instance(value, where, modules)
    if callable(value) and hasattr(value, "__qualname__"):
        return _encode_code(value, {}, where, modules)
    raise _unrecordable(value, where)


def _encode_code(code: Any, arguments: Mapping[str, Any], where: str, modules: dict[str, str]) -> Any:
    """A function or class by its name, with the arguments that `functools.partial` gives it."""
    kind = "class" if isinstance(code, type) else "function"
    return _named(kind, code.__qualname__, _origin(code, code, where, modules), arguments, where, modules)


def _encode_instance(value: Any, where: str, modules: dict[str, str]) -> Any:
    """A transform, a network or another dataclass by its class and fields."""
    kind = "network" if is_network(value) else "transform" if callable(value) else "dataclass"
    fields = {}
    for item in dataclasses.fields(value):  # type: ignore[arg-type]
        field = getattr(value, item.name)
        # Linen gives its modules two fields; a name decides what parameters are called, the parent is nobody yet.
        if not item.init or (kind == "network" and (item.name == "parent" or (item.name, field) == ("name", None))):
            continue
        try:
            fields[item.name] = _encode(field, f"{where}.{item.name}", modules)
        except ConfigError:
            # A default such as linen's `kernel_init` may be any object: the class has it anyway.
            if field is not item.default:
                raise
    library = type(value).__module__.startswith(f"{TRANSFORMS}.")
    origin = {} if library else _origin(type(value), value, where, modules)
    return _tagged(kind, type(value).__qualname__, origin, fields)


def _named(
    kind: str, name: str, origin: Mapping[str, str], fields: Mapping[str, Any], where: str, modules: dict[str, str]
) -> dict[str, Any]:
    encoded = {key: _encode(item, f"{where}.{key}", modules) for key, item in fields.items()}
    if kind in ("function", "class"):
        return {kind: name, **origin, **({"arguments": encoded} if encoded else {})}
    return _tagged(kind, name, origin, encoded)


def _tagged(kind: str, name: str, origin: Mapping[str, str], fields: Mapping[str, Any]) -> dict[str, Any]:
    """`{"transform": name, ...}`; a field that is called as the kind is, such as that of `Sometimes`, gets a `_`."""
    return {kind: name, **origin, **{key + "_" * (key == kind): item for key, item in fields.items()}}


def _origin(code: Any, value: Any, where: str, modules: dict[str, str]) -> dict[str, str]:
    """`{"from": ...}` for a class or function; raises `ConfigError` where its name does not lead back to it."""
    name = getattr(code, "__module__", None) or ""
    found: Any = sys.modules.get(name)
    for part in code.__qualname__.split("."):
        found = getattr(found, part, None)
    if found is not code:
        raise _unrecordable(value, where)
    modules[origin_of(name)] = name
    return {"from": origin_of(name)}


def _dtype_name(value: Any) -> str | None:
    """The name of a NumPy or JAX dtype, or of the scalar type that stands for one."""
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return None
    scalar = isinstance(value, type) and issubclass(value, numpy.generic)
    if scalar or isinstance(value, numpy.dtype) or type(value).__name__ == "_ScalarMeta":
        return numpy.dtype(value).name
    return None


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else f"{text[:97]}..."


def _unrecordable(value: Any, where: str) -> ConfigError:
    """What to do about a value that has no name to be recorded by."""
    if callable(value) and hasattr(value, "__qualname__"):
        way_out = "define it at the top level of the file, so that it can be found by its name"
    elif callable(value) and not dataclasses.is_dataclass(value):
        way_out = "make its class a dataclass at the top level of the file, so that its parameters are known"
    elif callable(value):
        way_out = "define its class at the top level of the file, so that it can be found by its name"
    elif isinstance(value, float):
        way_out = "give a finite number"
    else:
        way_out = (
            "give numbers, strings, tuples, dtypes, functions, classes or dataclasses, and make the rest from them"
        )
    return ConfigError(f"{where} = {_shown(value)} cannot be recorded with the run: {way_out}.")
