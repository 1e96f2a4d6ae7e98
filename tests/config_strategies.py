"""Configurations for hypothesis: any value that the annotation of a field allows, in any section."""

import dataclasses
import functools
import inspect
import operator
import types
import typing
from collections.abc import Callable
from typing import Any, Literal

from hypothesis import assume
from hypothesis import strategies as st

import jax_cifar.augment as library
from jax_cifar.config import Config
from jax_cifar.config.checks import OnlyFor, address, annotations, each_once, fault, multipliers
from jax_cifar.config.revive import without_idle
from jax_cifar.errors import ConfigError

SECTIONS: dict[str, Any] = {
    name: kind for name, kind in typing.get_type_hints(Config).items() if dataclasses.is_dataclass(kind)
}
SECTIONS["model"] = type(Config(name="x").model)
FIELDS = [(section, field) for section, kind in SECTIONS.items() for field in annotations(kind) if field != "loss"]


def allowed(expected: Any) -> st.SearchStrategy[Any]:
    """Values that an annotation with its bounds allows."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin is typing.Annotated:
        if multipliers in arguments:
            factors = st.just(0.0) | st.floats(1e-9, 10)
            return st.lists(st.tuples(st.sampled_from(["norm", "bias$", "^head/"]), factors)).map(tuple)
        if address in arguments:
            return st.sampled_from([None, "localhost:1234"])
        if each_once in arguments:
            return st.sampled_from([(), (("conv1", 3),)])
        return allowed(arguments[0]).filter(lambda value: fault(value, expected) is None)
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (typing.Union, types.UnionType):
        spelled = [option for option in arguments if typing.get_origin(option) is not Callable]
        return functools.reduce(operator.or_, map(allowed, spelled))
    if origin is tuple and arguments[1:] == (...,):
        return st.lists(allowed(arguments[0]), max_size=2).map(tuple)
    if origin is tuple:
        return st.tuples(*map(allowed, arguments))
    numbers = st.floats(0, 1) | st.floats(1e-9, 1e9) | st.floats(1, 100)
    simple = {float: numbers, int: st.integers(1, 3) | st.integers(0, 2**32 - 1), bool: st.booleans(), str: st.text()}
    return st.none() if expected is type(None) else simple[expected]


# What a transform cannot be made without.
NEEDED = {"degrees": 15.0}
GROUPS = {"OneOf", "Sometimes", "Normalize"}


def transforms() -> list[Any]:
    """One of every transform of the library, and groups of them."""
    kinds: list[Any] = [
        kind for name in set(library.__all__) - GROUPS if inspect.isclass(kind := getattr(library, name))
    ]
    plain = []
    for kind in sorted(kinds, key=lambda kind: kind.__name__):
        if issubclass(kind, library.Transform) and dataclasses.is_dataclass(kind):
            needed = [item.name for item in dataclasses.fields(kind) if item.default is dataclasses.MISSING]
            plain.append(kind(**{name: NEEDED[name] for name in needed}))
    return [
        *plain,
        library.Sometimes(library.RandomCrop(padding=3), p=0.25),
        library.OneOf((library.Sometimes(library.OneOf(tuple(plain[:2]))), plain[-1]), weights=(1.0, 2.0)),
    ]


TRANSFORMS = transforms()


@st.composite
def configs(draw: st.DrawFn) -> Config:
    """Any valid configuration of the library's parts; every field of one or two sections is drawn."""
    made = {}
    for section in draw(st.sets(st.sampled_from(sorted(SECTIONS)), max_size=2)):
        kind = SECTIONS[section]
        fields = {name: draw(allowed(expected)) for name, expected in annotations(kind).items()}
        try:
            made[section] = kind(**without_idle(kind, fields))
        except ConfigError:
            assume(False)
    try:
        return Config(name="drawn", augment=tuple(draw(st.lists(st.sampled_from(TRANSFORMS), max_size=3))), **made)
    except ConfigError:
        assume(False)
        raise


@st.composite
def overrides(draw: st.DrawFn) -> tuple[str, str, Any, list[str]]:
    """Section, field, a value that it may have, and the words of a command line that say so."""
    section, field = draw(st.sampled_from(FIELDS))
    expected = annotations(SECTIONS[section])[field]
    value = draw(allowed(expected))
    # A word None is no string, and a string that a command line cannot hold is none either.
    assume(value != "None" and "\0" not in str(value))
    marks = [mark for mark in typing.get_args(expected) if isinstance(mark, OnlyFor)]
    words = [f"--{section}.name={marks[0].names[0]}"] if marks else []
    name = f"--{section}.{field}"
    if isinstance(value, tuple):
        return section, field, value, [*words, name, *map(str, flat(value))]
    return section, field, value, [*words, f"{name}={value}"]


def flat(value: Any) -> list[Any]:
    return [leaf for item in value for leaf in flat(item)] if isinstance(value, tuple) else [value]
