"""What a suite measured, as a Markdown table and as JSON with all that a figure rests on."""

import dataclasses
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.timing import Case, Timing
from jax_cifar.errors import ConfigError
from jax_cifar.files import read_json
from jax_cifar.lab import tables
from jax_cifar.telemetry.environment import describe_devices, git_commit, package_versions

Kept = TypeVar("Kept")


def markdown(cases: Sequence[Case]) -> str:
    """A row per case: median time of each way (least to most), then ours over the best other, round by round.

    Where a way trains, the mean of its final accuracies follows its time. What the machine disturbed ends its row.
    """
    names = list(dict.fromkeys(name for case in cases for name in case.timings))
    ends = {"ratio": [shown_ratio(case.ratios) for case in cases], "disturbed": [disturbed(case) for case in cases]}
    ends = {name: cells for name, cells in ends.items() if any(cells)}
    rows = []
    for i, case in enumerate(cases):
        cells = [shown_time(case.timings.get(name)) + _accuracy(case.accuracies.get(name)) for name in names]
        rows.append([case.name, *cells, *(cells[i] for cells in ends.values())])
    return tables.markdown(["case", *names, *ends], rows)


def machine_line(cases: Sequence[Case]) -> str:
    """How the machine was beside all these rounds; empty where nobody looked."""
    known = [condition for case in cases for condition in case.conditions]
    if not known:
        return ""
    rates, others, distances = zip(*((each.gflops, each.others, each.distance) for each in known), strict=True)
    return (
        f"Beside the rounds a matrix product ran at {statistics.median(rates):.0f} GFLOP/s"
        f" ({min(rates):.0f}-{max(rates):.0f}), others had {statistics.median(others):.0%} of the cores"
        f" ({min(others):.0%}-{max(others):.0%}), and what another core had written took"
        f" {statistics.median(distances):.2f} of the time of one's own ({min(distances):.2f}-{max(distances):.2f})."
    )


def disturbed(case: Case) -> str:
    """What went on beside the work, at its worst in the rounds that count; and how many do not."""
    parts, wrong = [], case.disturbed
    if wrong:
        others, slowness, farther = map(max, zip(*((c.others, c.slowness, c.farther) for c in wrong), strict=True))
        count = f"{len(wrong)} of {len(case.conditions)} rounds"
        parts.append(f"**{count}**: others had {others:.0%} of the cores, a product took {slowness:.2f} of its least")
        parts.append(f"the cores were {farther:.2f} times as far apart as at their nearest")
    if case.given_up:
        parts.append(f"{case.given_up} measured again")
    return ", ".join(parts)


def as_json(suite: str, cases: Sequence[Case]) -> dict[str, Any]:
    """Everything measured, and on what: device, versions, commit, command line. None is a time that never came.

    What a suite's own kind of case has beside the fields of `Case` follows them.
    """
    return {
        "suite": suite,
        "device": describe_devices(),
        "versions": package_versions() | _torch_version(),
        "commit": git_commit(Path(__file__).parents[1]),
        "argv": sys.argv,
        "cases": [
            {
                "name": case.name,
                "images": case.images,
                "seconds": {name: list(map(_finite, timing.seconds)) for name, timing in case.timings.items()},
                "median_seconds": {name: _finite(timing.median) for name, timing in case.timings.items()},
                "accuracies": {name: list(values) for name, values in case.accuracies.items()},
                "summary": {name: _summary(case, name) for name in case.timings},
                "best_other": case.best_other,
                "ratio": statistics.median(case.ratios) if case.ratios else None,
                "ratios": list(case.ratios),
                "conditions": [condition._asdict() for condition in case.conditions],
                "rounds_given_up": case.given_up,
                **_own_fields(case),
            }
            for case in cases
        ],
    }


def read_parts(file: Path | None, name: str, kind: Callable[..., Kept]) -> list[Kept]:
    """What an earlier call of a suite left under this name in the file of --json, to go on with; [] without a file.

    Raises:
        ConfigError: it is no such file.
    """
    if file is None or not file.exists():
        return []
    try:
        return [kind(**part) for part in read_json(file)[name]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        told = f"--json {file} holds no {name} to go on with ({type(error).__name__}: {error})"
        raise ConfigError(f"{told}. Remove it, or name another file.") from None


def _torch_version() -> dict[str, str]:
    try:
        return {"torch": version("torch")}
    except PackageNotFoundError:  # it is an extra
        return {}


def _summary(case: Case, way: str) -> dict[str, Any]:
    """Count, mean and standard deviation; None where a time never came, or where one value has no spread."""
    values = {"seconds": case.timings[way].seconds, "accuracy": case.accuracies.get(way, ())}
    summary: dict[str, Any] = {"n": len(values["seconds"])}
    for what, numbers in values.items():
        known = all(map(math.isfinite, numbers))
        summary[f"mean_{what}"] = statistics.fmean(numbers) if known and numbers else None
        summary[f"sd_{what}"] = statistics.stdev(numbers) if known and len(numbers) > 1 else None
    return summary


def _own_fields(case: Case) -> dict[str, Any]:
    common = {field.name for field in dataclasses.fields(Case)}
    return {name: value for name, value in dataclasses.asdict(case).items() if name not in common}


def _finite(seconds: float) -> float | None:
    """JSON has no infinity."""
    return seconds if math.isfinite(seconds) else None


def shown_time(timing: Timing | None) -> str:
    """The median, least and most, in the unit that suits it."""
    if timing is None:
        return ""
    middle, low, high = timing.median, min(timing.seconds), max(timing.seconds)
    if math.isinf(middle):
        return "never" if math.isinf(low) else f"never ({_digits(low)} s-never)"
    unit, scale = ("s", 1.0) if middle >= 1 else ("ms", 1e3)
    return f"{_digits(scale * middle)} {unit} ({_digits(scale * low)}-{_digits(scale * high)})"


def _digits(value: float) -> str:
    """Three digits, and never an exponent."""
    if math.isinf(value):
        return "never"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _accuracy(values: Sequence[float] | None) -> str:
    return f", {statistics.mean(values):.2%}" if values else ""


def shown_ratio(ratios: Sequence[float]) -> str:
    """The median, least and most; nothing of none."""
    return f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f}-{max(ratios):.2f})" if ratios else ""
