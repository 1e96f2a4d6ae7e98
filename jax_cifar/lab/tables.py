"""Tables and figures as they stand in RESULTS.md."""

import statistics
from collections.abc import Iterable, Sequence

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
