"""Whether the fields of a dataclass are of their types and in their ranges."""

import math
import re
import types
import typing
from collections.abc import Callable
from dataclasses import fields
from typing import Any, Literal

from jax_cifar.errors import ConfigError, check


def has_type(value: object, expected: Any) -> bool:
    """Whether `value` is of the annotated type; an int passes for a float, a bool for nothing but a bool."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin is Callable:
        return callable(value)
    if origin is Literal:
        return value in arguments
    if origin in (typing.Union, types.UnionType):
        return any(has_type(value, option) for option in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        items = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
        return len(items) == len(value) and all(map(has_type, value, items))
    if isinstance(value, bool):
        return expected is bool
    return isinstance(value, (int, float) if expected is float else expected)


def type_name(expected: Any) -> str:
    """The annotated type in words, for messages."""
    if typing.get_origin(expected) is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(expected)))
    return expected.__name__ if type(expected) is type else str(expected)


def check_types(obj: Any, section: str) -> None:
    """Raise `ConfigError` for the first field of a dataclass whose value is not of its annotated type."""
    hints = typing.get_type_hints(type(obj))
    for item in fields(obj):
        value, expected = getattr(obj, item.name), hints[item.name]
        name = f"{section}.{item.name}" if section else item.name
        check(has_type(value, expected), name, value, f"it must be {type_name(expected)}")


def check_at_least(obj: object, section: str, **bounds: float) -> None:
    for name, bound in bounds.items():
        value = getattr(obj, name)
        if value is not None:
            check(math.isfinite(value) and value >= bound, f"{section}.{name}", value, f"it must be at least {bound}")


def check_positive(obj: object, section: str, *names: str) -> None:
    for name in names:
        value = getattr(obj, name)
        if value is not None:
            check(math.isfinite(value) and value > 0, f"{section}.{name}", value, "it must be greater than 0")


def check_fraction(obj: object, section: str, *names: str) -> None:
    for name in names:
        value = getattr(obj, name)
        check(0 <= value <= 1, f"{section}.{name}", value, "it must lie between 0 and 1")


def check_below_one(obj: object, section: str, *names: str) -> None:
    for name in names:
        value = getattr(obj, name)
        check(0 <= value < 1, f"{section}.{name}", value, "it must be at least 0 and less than 1")


def check_patterns(rules: tuple[tuple[str, float], ...], name: str) -> None:
    for pattern, factor in rules:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"{name}: {pattern!r} is not a regular expression ({error}).") from None
        check(math.isfinite(factor) and factor >= 0, name, factor, "a multiplier must be at least 0")
