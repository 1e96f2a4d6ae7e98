"""The one language in which fields are checked, of configurations and of transforms: type and bounds stand beside them.

@dataclass(frozen=True)
class Cutout(Transform):
    length: Annotated[int, at_least(1)] = 8  # side of the square in pixels

    def __post_init__(self) -> None:
        check_fields(self)

`Cutout(length=0)` then says "Cutout.length = 0 is not allowed: it must be at least 1." Every number has to be finite
and in the range of float32. A bound on a tuple sees the tuple; one on its items is written inside,
`tuple[Annotated[int, at_least(1)], ...]`.
"""

import dataclasses
import functools
import math
import re
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from jax_cifar.errors import check

SMALLEST, LARGEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127  # normal numbers of float32


@dataclass(frozen=True)
class Bound:
    """What a value of the right type must fulfil, and how that is told: "it must be at least 1"."""

    holds: Callable[[Any], bool]
    expected: str


@dataclass(frozen=True)
class OnlyFor:
    """The field does something for these values of the section's `name` only; for others it must keep its default."""

    names: tuple[Any, ...]


def at_least(least: float) -> Bound:
    """A number from `least` on."""
    return Bound(lambda value: value >= least, f"it must be at least {least}")


def above(limit: float) -> Bound:
    """A number greater than `limit`."""
    return Bound(lambda value: value > limit, f"it must be greater than {limit}")


def between(low: float, high: float) -> Bound:
    """A number from `low` to `high`, both included."""
    return Bound(lambda value: low <= value <= high, f"it must lie between {low} and {high}")


def at_least_below(low: float, high: float) -> Bound:
    """A number from `low` up to, but not including, `high`."""
    return Bound(lambda value: low <= value < high, f"it must be at least {low} and less than {high}")


def only_for(*names: Any) -> OnlyFor:
    """Mark a field that only these values of the section's `name` read."""
    return OnlyFor(names)


def _ascends(pair: tuple[float, float]) -> bool:
    return pair[0] <= pair[1]


def _differ(pairs: tuple[tuple[str, int], ...]) -> bool:
    return len(dict(pairs)) == len(pairs)


each_once = Bound(_differ, "each name stands there once")
not_empty = Bound(bool, "it must not be empty")
address = Bound(lambda text: re.fullmatch(r"\S+:\d+", text) is not None, "it must be HOST:PORT")
ascending = Bound(_ascends, "it must be a pair (least, most), the smaller one first")


def _are_patterns(rules: tuple[tuple[str, float], ...]) -> bool:
    try:
        return all(re.compile(pattern) is not None and factor >= 0 for pattern, factor in rules)
    except (re.error, OverflowError, RecursionError):
        return False


multipliers = Bound(_are_patterns, "each must be a regular expression and a factor of at least 0")

Probability = typing.Annotated[float, between(0, 1)]


def fault(value: object, expected: Any) -> str | None:
    """What `value` fails to be for an annotation with its bounds, in words; None where it is all right."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin is typing.Annotated:
        wrong = fault(value, arguments[0])
        if wrong is None and value is not None:
            bounds = [bound for bound in arguments[1:] if isinstance(bound, Bound)]
            wrong = next((bound.expected for bound in bounds if not bound.holds(value)), None)
        return wrong
    if origin in (typing.Union, types.UnionType):
        faults = [fault(value, option) for option in arguments]
        if None in faults:
            return None
        # Of a number out of range the range is told, not that it is no None either.
        telling = [wrong for wrong, option in zip(faults, arguments, strict=True) if _is_a(value, option)]
        return telling[0] if telling else f"it must be {type_name(expected)}"
    if origin is tuple and isinstance(value, tuple):
        items = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
        if len(items) == len(value):
            faults = [fault(item, option) for item, option in zip(value, items, strict=True)]
            return next((wrong for wrong in faults if wrong is not None), None)
    if not _is_a(value, expected):
        return f"it must be {type_name(expected)}"
    return _number_fault(value) if isinstance(value, int | float) and expected is float else None


def _number_fault(value: float) -> str | None:
    """What a number lacks to be one of float32, in which everything is computed."""
    if isinstance(value, float) and not math.isfinite(value):
        return "it must be a finite number"
    if value and not SMALLEST <= abs(value) <= LARGEST:
        return f"it must be 0, or between {SMALLEST:.2g} and {LARGEST:.2g} in size, as float32 has it"
    if isinstance(value, int) and abs(value) >= 2**31:
        return f"it is too large for a whole number: write {float(value)!r}"
    return None


def _is_a(value: object, expected: Any) -> bool:
    """Whether `value` is of the annotated type, whatever the bounds; an int passes for a float, a bool for a bool."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if expected is Any:
        return True
    if origin is typing.Annotated:
        return _is_a(value, arguments[0])
    if origin is Callable:
        return callable(value)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in arguments)
    if origin in (typing.Union, types.UnionType):
        return any(_is_a(value, option) for option in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        items = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
        return len(items) == len(value) and all(map(_is_a, value, items))
    if isinstance(value, bool):
        return expected is bool
    return isinstance(value, (int, float) if expected is float else origin or expected)


def type_name(expected: Any) -> str:
    """The annotated type in words, for messages."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin is typing.Annotated:
        return type_name(arguments[0])
    if origin is Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if origin is Callable:
        return "a function"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(type_name, arguments))
    if origin is tuple and arguments[1:] == (...,):
        return f"a tuple, each of its items {type_name(arguments[0])}"
    if origin is tuple:
        return f"({', '.join(map(type_name, arguments))})"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "None"}
    return words.get(expected) or getattr(expected, "__name__", str(expected))


@functools.cache
def annotations(kind: type) -> dict[str, Any]:
    """The annotation of every field of a dataclass, bounds included."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {item.name: hints[item.name] for item in dataclasses.fields(kind)}


def is_idle(kind: type, field: str, name: object) -> bool:
    """Whether a field of a section does nothing where the section's `name` is this."""
    marks = typing.get_args(annotations(kind)[field])[1:]
    return any(isinstance(mark, OnlyFor) and name not in mark.names for mark in marks)


def check_fields(obj: Any, section: str | None = None) -> None:
    """Raise `ConfigError` for the first field of a dataclass that is not what its annotation says.

    `section` is the field's prefix in messages; default: the name of the class. A field marked `only_for` other names
    than the object's own must keep its default.
    """
    prefix = type(obj).__name__ if section is None else section
    for item in dataclasses.fields(obj):
        value, expected = getattr(obj, item.name), annotations(type(obj))[item.name]
        name = f"{prefix}.{item.name}" if prefix else item.name
        wrong = fault(value, expected)
        check(wrong is None, name, value, wrong or "")
        if value != item.default and is_idle(type(obj), item.name, chosen := getattr(obj, "name", None)):
            mark = next(mark for mark in typing.get_args(expected)[1:] if isinstance(mark, OnlyFor))
            with_name = f"with {prefix}.name = {getattr(chosen, '__name__', chosen)}"
            check(False, name, value, f"it does nothing {with_name}, only with {', '.join(map(str, mark.names))}")
