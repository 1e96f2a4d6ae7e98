"""Values as the lines that a person reads: a configuration, a summary, the parameters of a network."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jax_cifar.config.sections import is_network

# Shown even where they have their default values: what one asks first about an experiment.
MAIN_FIELDS = {
    "data": ("name",),
    "model": ("name",),
    "optim": ("name", "lr"),
    "schedule": ("name",),
    "train": ("epochs", "batch_size", "dtype", "seed"),
}
# Every linen module has these beside its own.
LINEN_FIELDS = ("parent", "name")


def describe_config(config: Any, own_images: bool = False) -> dict[str, str]:
    """One line per section of a `Config`: its main fields, and those that differ from their defaults.

    Of a network of one's own its class and all its fields are told, of a function its name. `own_images`: they were
    given in Python, and the set that `data` names is not used.
    """
    rows = {}
    for section in dataclasses.fields(config):
        value = getattr(config, section.name)
        if not section.repr:
            continue  # where the file was loaded from says nothing of the experiment
        if is_network(value):
            rows[section.name] = _describe_network(value)
        elif dataclasses.is_dataclass(value):
            name = "given in Python" if own_images and section.name == "data" else None
            rows[section.name] = _describe_section(value, MAIN_FIELDS.get(section.name, ()), name)
        elif section.name != "name" and value:
            rows[section.name] = ", ".join(map(describe, value)) if isinstance(value, tuple) else describe(value)
    return {name: text for name, text in rows.items() if text}


def describe_fields(config: Any) -> dict[str, str]:
    """Every field of a `Config` by the name that the command line has for it, such as `optim.lr`, with its value."""
    rows = {}
    for section in dataclasses.fields(config):
        value = getattr(config, section.name)
        if not section.repr:
            continue
        if is_network(value):
            rows[section.name] = _describe_network(value)
        elif dataclasses.is_dataclass(value):
            names = [field.name for field in dataclasses.fields(value)]
            rows |= {f"{section.name}.{name}": describe(getattr(value, name)) for name in names}
        elif section.name != "name":
            rows[section.name] = ", ".join(map(describe, value)) if isinstance(value, tuple) else describe(value)
    return rows


def describe(value: Any) -> str:
    """A value of a field in short: a function or class by its name, a partial one with the arguments that it has."""
    if isinstance(value, functools.partial):
        given = [*map(describe, value.args), *(f"{name}={describe(item)}" for name, item in value.keywords.items())]
        return f"{describe(value.func)}({', '.join(given)})"
    if isinstance(value, tuple):
        return f"({', '.join(map(describe, value))}{',' if len(value) == 1 else ''})"
    if isinstance(getattr(value, "__name__", None), str):
        return value.__name__
    if isinstance(value, float):
        return f"{value:.6g}"
    # What says nothing of itself but where it lies in memory.
    bare = type(value).__str__ is object.__str__ and type(value).__repr__ is object.__repr__
    return type(value).__name__ if bare else str(value)


def _describe_network(network: Any) -> str:
    if not dataclasses.is_dataclass(network):
        return describe(network)
    names = [field.name for field in dataclasses.fields(network) if field.name not in LINEN_FIELDS]
    return ", ".join([type(network).__name__, *(f"{name} {describe(getattr(network, name))}" for name in names)])


def _describe_section(section: Any, main: Sequence[str], name: str | None) -> str:
    shown = []
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if field.name in main or value != _default(field):
            shown.append(name or describe(value) if field.name == "name" else f"{field.name} {describe(value)}")
    return ", ".join(shown)


def _default(field: Any) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def describe_summary(summary: Mapping[str, Any], workdir: Path) -> dict[str, str]:
    """The figures of `summary.json`, where the seconds went, and where the results lie.

    A figure that is None was not finite, as after a run that diverged in its last updates.
    """
    test = f"{_figure(summary['test_accuracy'], '.2%')}, loss {_figure(summary['test_loss'], '.4f')}"
    if summary.get("test_accuracy_tta") is not None:
        test += f"; {summary['test_accuracy_tta']:.2%} with test-time augmentation"
    seconds = dict(summary["seconds"])
    total = seconds.pop("total")
    parts = [f"{name} {value:.1f}" for name, value in seconds.items()]
    parts.append(f"other {max(0.0, total - sum(seconds.values())):.1f}")
    skipped = summary.get("skipped_updates")
    early = f"after epoch {summary['epochs']:g}" if summary.get("stopped_early") else ""
    if early and summary["best_epoch"] is not None:
        best = f"{summary['best_validation_accuracy']:.2%} in epoch {summary['best_epoch']:g}"
        early += f"; best validation accuracy {best}, kept for --checkpoint best"
    return {
        "test accuracy": test,
        "train accuracy": _figure(summary["train_accuracy"], ".2%"),
        **({"stopped early": early} if early else {}),
        **({"skipped": f"{skipped:,} updates that were not finite"} if skipped else {}),
        "speed": f"{_figure(summary['images_per_second'], ',.0f')} images/s",
        "seconds": f"{total:.1f} = {' + '.join(parts)}",
        "results": str(workdir),
    }


def _figure(value: float | None, form: str) -> str:
    return "not finite" if value is None else format(value, form)


def parameter_lines(rows: Sequence[tuple[str, tuple[int, ...], int]]) -> list[str]:
    """Name, shape and count of every parameter in columns, and the total."""
    shapes = [" x ".join(map(str, shape)) or "scalar" for _, shape, _ in rows]
    table = [("parameter", "shape", "count")]
    table += [(name, shape, f"{count:,}") for (name, _, count), shape in zip(rows, shapes, strict=True)]
    table += [("total", "", f"{sum(count for *_, count in rows):,}")]
    name_width, shape_width, count_width = (max(map(len, column)) for column in zip(*table, strict=True))
    return [f"{name:<{name_width}}  {shape:>{shape_width}}  {count:>{count_width}}" for name, shape, count in table]
