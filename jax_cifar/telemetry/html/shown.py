"""What the page knows of a run. Any of it may have come from a folder that somebody else made."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jax_cifar.telemetry.html.charts import Curve
from jax_cifar.telemetry.html.classes import Judged
from jax_cifar.telemetry.html.pictures import Mistake


@dataclass(frozen=True)
class Reliability:
    """Images in bins by how sure the network is of them; shares lie between 0 and 1."""

    edges: Float[np.ndarray, " edges"]
    counts: Int[np.ndarray, " bins"]
    confidence: Float[np.ndarray, " bins"]
    accuracy: Float[np.ndarray, " bins"]
    error: float  # expected calibration error
    bias: float  # mean confidence minus accuracy


@dataclass(frozen=True)
class Shown:
    """A run: what its folder records, and what its network makes of the test images."""

    name: str
    folder: str
    problem: str | None = None  # why it is not a finished run
    records: Sequence[Mapping[str, Any]] = ()  # of metrics.jsonl
    fields: Mapping[str, str] = field(default_factory=dict)  # of the configuration, in words
    defaults: Mapping[str, str] = field(default_factory=dict)  # of the same fields
    summary: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    judged: Judged | None = None
    reliability: Reliability | None = None
    mistakes: Sequence[Mistake] = ()
    filters: Sequence[Float[np.ndarray, "height width channel"]] = ()
    unseen: str | None = None  # why there are no predictions
    no_filters: str | None = None  # why there are none

    def figure(self, *path: str) -> float | None:
        """A number of the summary, such as `figure("seconds", "train")`; None where it is not there, or no number."""
        value: Any = self.summary
        for name in path:
            value = value.get(name) if isinstance(value, Mapping) else None
        return _number(value)

    def curve(self, split: str, name: str, style: int, label: str | None = None, noisy: bool | None = None) -> Curve:
        """What was logged of a part (`train`, `validation`, `test`) by epoch; of `train` it counts as noisy."""
        rows = [record for record in self.records if record.get("split") == split and name in record]
        places = [_number(record.get("epoch", record.get("step"))) for record in rows]
        points = [(x, _number(row[name])) for x, row in zip(places, rows, strict=True) if x is not None]
        xs, ys = ([x for x, _ in points], [math.nan if y is None else y for _, y in points])
        return Curve(
            label or split,
            np.array(xs, float),
            np.array(ys, float),
            style,
            split == "train" if noisy is None else noisy,
        )


def _number(value: Any) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    return float(value) if good else None
