"""The space of a sweep: which fields of a configuration vary, and over what.

optim.lr=log(0.005,0.2)              any number between the two, its logarithm evenly spread
schedule.warmup=uniform(0,3)         any number between the two
model.width=int(16,64)               any whole number between the two, both included
optim.momentum=[0.8,0.9,0.95]        one of these: numbers, words, true or false, anything that the field takes
optim.lr=log(0.005,0.2,5)            five values, both ends included, with equal ratios (uniform, int: differences)

Several fields stand in one text, separated by blanks. An item of a list is what would stand on the command line after
the field, words and all: `schedule.milestones=[5 8, 6 9]` are two values of two epochs each.
"""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jax_cifar.config import Config
from jax_cifar.config.files import FREE_TO_CHANGE, apply_overrides, flat, to_dict
from jax_cifar.errors import ConfigError, check
from jax_cifar.training.many import check_for_lots, check_momentum

Value = float | int | str
Setting = Mapping[str, Value]

_AXIS = re.compile(r"\s*(?P<field>[^\s=]+)\s*=\s*(?P<kind>log|uniform|int|)(?P<values>\([^()]*\)|\[[^\[\]]*\])(?=\s|$)")
_LARGEST_GRID = 10_000  # combinations
# What all settings are judged on, and by: a sweep that changed it would compare what cannot be compared.
_JUDGE = re.compile(r"name|data\.(name|dir|val_fraction|test_fraction|seed|image_size)")


@dataclass(frozen=True)
class Axis:
    """One field and what it may be: a range from `low` to `high`, or `values` as they are typed."""

    field: str
    kind: str  # "log", "uniform", "int"; "" for values
    low: float = 0.0
    high: float = 0.0
    values: tuple[str, ...] = ()

    def __str__(self) -> str:
        inside = f"[{', '.join(self.values)}]" if self.values else f"{self.kind}({self.low!r}, {self.high!r})"
        return f"{self.field}={inside}"

    @property
    def ends(self) -> tuple[Value, ...]:
        """What is tried before anything is trained: every value, or both ends."""
        return self.values or (self.low, self.high)


def parse_space(texts: Sequence[str], config: Config) -> tuple[Axis, ...]:
    """The axes that texts such as `"optim.lr=log(0.005,0.2) optim.momentum=[0.8,0.9]"` describe.

    Raises:
        ConfigError: a text that is none, or a value that the configuration does not take, in combination with the first
            value of every other field.
    """
    axes = tuple(axis for text in texts for axis in _parse(text))
    check(len(axes) > 0, "--space", " ".join(texts), "name at least one field, such as optim.lr=log(0.005,0.2)")
    fields = [axis.field for axis in axes]
    twice = next((field for field in fields if fields.count(field) > 1), None)
    check(twice is None, "--space", twice, "a field stands there once")
    first = {axis.field: axis.ends[0] for axis in axes}
    for axis in axes:
        _check_field(axis.field)
        _check_values(axis, first, config)
    return axes


def with_setting(config: Config, setting: Setting) -> Config:
    """`config` with the values of a setting, checked as the command line's are; raises `ConfigError`."""
    return apply_overrides(config, command_line(setting))


def command_line(setting: Setting) -> list[str]:
    """A setting as options: `["--optim.lr", "0.02", ...]`."""
    return [word for field, value in setting.items() for word in (f"--{field}", *_words(value))]


def grid_of(axes: Sequence[Axis], config: Config) -> list[Setting]:
    """Every combination; raises `ConfigError` for a range without a number of points, or a combination refused."""
    for axis in axes:
        way_out = f"{axis.kind}({axis.low:g},{axis.high:g},5) takes five values of it, a list those you name"
        check(bool(axis.values), f"--grid with {axis.field}", str(axis), f"a range has no end of values; {way_out}")
    count = int(np.prod([len(axis.values) for axis in axes]))
    check(count <= _LARGEST_GRID, "--grid", count, f"at most {_LARGEST_GRID:,} combinations can be trained")
    values = itertools.product(*(axis.values for axis in axes))
    settings: list[Setting] = [dict(zip([axis.field for axis in axes], each, strict=True)) for each in values]
    for setting in settings:
        with_setting(config, setting)
    return settings


def _parse(text: str) -> list[Axis]:
    axes, place = [], 0
    while text[place:].strip():
        found = _AXIS.match(text, place)
        if found is None:
            raise ConfigError(
                f"--space cannot be read from {text[place:].strip()!r} on: it must be FIELD=log(low,high),"
                " FIELD=uniform(low,high), FIELD=int(low,high) or FIELD=[value, value, ...], separated by blanks."
            )
        field = found["field"].removeprefix("--").removeprefix("config.").replace("-", "_")
        axes.append(_axis(field, found["kind"], found["values"]))
        place = found.end()
    return axes


def _axis(field: str, kind: str, text: str) -> Axis:
    items = [" ".join(item.split()) for item in text[1:-1].split(",")]
    shown = f"{kind}{text}"
    if text[0] == "[":
        check(not kind and all(items), field, shown, "a list is written [value, value, ...]")
        return Axis(field, "", values=tuple(items))
    try:
        low, high, *points = [int(item) if kind == "int" else float(item) for item in items]
    except ValueError:
        low, high, points = 0.0, 0.0, [0, 0]
    expected = f"a range is written {kind or 'uniform'}(low,high), in numbers, or with a number of points after them"
    check(bool(kind) and len(points) <= 1 and math.isfinite(low) and math.isfinite(high), field, shown, expected)
    check(low < high, field, shown, "the lower end comes first")
    check(kind != "log" or low > 0, field, shown, "a logarithm needs both ends above 0")
    if not points:
        return Axis(field, kind, low, high)
    count = points[0]
    check(count >= 2 and count == int(count), field, shown, "give at least 2 points")
    if kind == "int":
        there = int(high - low) + 1
        check(count <= there, field, shown, f"only {there} whole numbers lie in it; give at most {there} points")
    values = _points(kind, low, high, int(count))
    check(len(set(values)) == count, field, shown, "float64 has fewer numbers in it; give fewer points")
    return Axis(field, "", values=values)


def _points(kind: str, low: float, high: float, count: int) -> tuple[str, ...]:
    """Both ends as they are given, and between them numbers of four digits, or as many as even spacing takes."""
    if kind == "int":
        return tuple(str(round(value)) for value in np.linspace(low, high, count).tolist())
    values = (np.geomspace if kind == "log" else np.linspace)(low, high, count)
    gaps, inner = np.diff(values), values[1:-1]
    texts: list[str] = []
    for digits in range(4, 18):  # 17 write any float64 exactly
        texts = [f"{value:.{digits}g}" for value in inner.tolist()]
        if np.all(np.abs(np.array(texts, float) - inner) <= np.minimum(gaps[:-1], gaps[1:]) / 100):
            break
    return (repr(low).removesuffix(".0"), *texts, repr(high).removesuffix(".0"))


def _words(value: Value) -> list[str]:
    return value.split() if isinstance(value, str) else [repr(value)]


def _check_field(field: str) -> None:
    """Raise `ConfigError` for a field that no sweep is over."""
    check(field != "train.seed", "--space", field, "the best seed is luck; the winner is trained with several")
    idle = FREE_TO_CHANGE.fullmatch(field)
    check(idle is None, "--space", field, "it changes nothing of what a setting is worth")
    judge = _JUDGE.fullmatch(field)
    check(judge is None, "--space", field, "settings are compared on the same data")


def _check_values(axis: Axis, others: Setting, config: Config) -> None:
    """Raise `ConfigError` for a value that the configuration does not take, or that does or says nothing new."""
    places: dict[str, Value] = {}
    for value in axis.ends:
        try:
            one = with_setting(config, {**others, axis.field: value})
        except ConfigError as error:
            if axis.kind in ("log", "uniform") and "whole number" in str(error):
                raise ConfigError(f"{error} Say {axis.field}=int(low,high), or name its values in a list.") from None
            raise
        check_momentum(config, one)
        check_for_lots(one)
        meant = repr(flat(to_dict(one)).get(axis.field))
        check(meant not in places, axis.field, str(axis), f"{places.get(meant)} and {value} are the same")
        places[meant] = value
