"""The curves of several runs of one experiment, brought onto the same epochs, and those of two over each other."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from jax_cifar.lab.compare import METRICS, Comparison
from jax_cifar.lab.runs import FinishedRun
from jax_cifar.lab.statistics import interval
from jax_cifar.lab.tables import shown_value


def evaluated_split(runs: Sequence[FinishedRun]) -> str:
    """What these runs were judged on while they trained: "validation" where they held images out, else "test"."""
    splits = Counter(record.get("split") for one in runs for record in one.curve)
    return "validation" if splits["validation"] > splits["test"] else "test"


def curves(
    runs: Sequence[FinishedRun], split: str, field: str
) -> tuple[Float[np.ndarray, " epochs"], Float[np.ndarray, "runs epochs"]]:
    """A figure of every run at the epochs at which all of them have it; without curves there are no epochs.

    Args:
        runs: of one experiment; those without a curve do not count.
        split: "train", "validation" or "test".
        field: of metrics.jsonl, such as "accuracy".
    """
    found = []
    for one in runs:
        records = [record for record in one.curve if record.get("split") == split]
        found.append({record["epoch"]: record[field] for record in records if record.get(field) is not None})
    found = [points for points in found if points]
    epochs = sorted(set.intersection(*map(set, found))) if found else []
    return np.array(epochs, float), np.array([[points[epoch] for epoch in epochs] for points in found], float)


def draw(found: Comparison, path: Path) -> Path:
    """Draw both sides of a comparison: curves where there are any, and every run; returns the path.

    Raises:
        OSError: the file cannot be written.
    """
    from jax_cifar.telemetry.comparison import Drawn, draw_comparison

    metric, field = found.metric, "loss" if found.metric is METRICS["test_loss"] else "accuracy"
    split = evaluated_split([*found.this.runs, *found.that.runs])
    scale = 1 if field == "loss" else 100
    sides = []
    for side in (found.this, found.that):
        epochs, values = curves(side.runs, split, field)
        known = interval([value * metric.scale for value in side.values])
        finals = [value * metric.scale for value in side.values]
        sides.append(Drawn(epochs, values * scale, finals, known.low, known.high))
    names = [side.runs[0].summary["config_name"] for side in (found.this, found.that)]
    title = f"A: {names[0]}, B: {names[1]}"
    differing = [f"{name} {shown_value(a)} / {shown_value(b)}" for name, (a, b) in found.fields.items()]
    shown = f" ({'; '.join(differing)})" if len("; ".join(differing)) < 70 and differing else ""
    label = f"{split} loss" if field == "loss" else f"{split} accuracy (%)"
    return draw_comparison(sides, title + shown, f"A against B: {found.verdict}", label, metric.name, path)
