"""Tables and figures as they stand in RESULTS.md."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jax_cifar.errors import printable


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, without a line break at its end; what is in a cell stays there.

    Raises:
        ValueError: a row has more or fewer cells than the head.
    """
    lines = [head, ["-"] * len(head), *rows]
    if any(len(line) != len(head) for line in lines):
        raise ValueError(f"A row has other cells than {head}.")
    cells = ([printable(cell, keep="").replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def spread(values: Iterable[float | None], form: str) -> str:
    """Mean of the values that are known, and of several their sample standard deviation: `71.31% (sd 0.22%)`.

    Args:
        values: None where a run has no such figure; without any known one the answer is `-`.
        form: format of each of the two, such as `.2%`.
    """
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean = format(statistics.fmean(known), form)
    return mean if len(known) < 2 else f"{mean} (sd {format(statistics.stdev(known), form)})"


def shown_seeds(seeds: Sequence[int]) -> str:
    """`0-4, 7` for the seeds 0, 1, 2, 3, 4 and 7."""
    parts: list[list[int]] = []
    for seed in sorted(seeds):
        if parts and seed == parts[-1][-1] + 1:
            parts[-1].append(seed)
        else:
            parts.append([seed])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def shown_value(value: Any) -> str:
    """A recorded value as a person would write it: `RandomCrop(padding=4)`."""
    if isinstance(value, Mapping):
        (_, name), *fields = value.items() or [("", "")]
        inside = ", ".join(f"{key}={shown_value(item)}" for key, item in fields if key != "from")
        return f"{name}({inside})"
    if isinstance(value, list):
        return f"[{', '.join(map(shown_value, value))}]"
    return "-" if value is None else value if isinstance(value, str) else json.dumps(value)
