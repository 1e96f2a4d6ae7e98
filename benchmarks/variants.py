"""Every smaller or faster version of one trained network: as trained, folded, halved, pruned, INT8, pruned and INT8."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx

from jax_cifar.data import Splits
from jax_cifar.lab.deployed import Figures, Way, compare, onnx_way
from jax_cifar.run.load import Run, load_run
from jax_cifar.telemetry.trade_off import Point, draw_trade_off
from jax_cifar.training.finetune import compress
from torch_ref import export, quantize
from torch_ref.twin import make_twin

BATCH = 1  # images of the call whose latency is drawn


def float_model(trained: Run) -> onnx.ModelProto:
    """The run's network as an ONNX model."""
    return export.to_onnx(make_twin(trained), trained.network.spec)


def measure(
    workdir: str | Path, out: Path, amounts: Sequence[float], epochs: float, data_dir: str | None, seconds: float
) -> list[Figures]:
    """Make all versions, the pruned ones as runs in `out`, where a later call finds them, and measure them in turn."""
    trained = load_run(workdir, dtype="float32", data_dir=data_dir)
    splits = trained.splits(data_dir)
    pruned = {f"pruned {amount:.0%}": prune(workdir, out, amount, epochs, data_dir) for amount in amounts}
    models = dict(onnx_models(trained, splits))
    for name, smaller in pruned.items():
        models[name] = float_model(smaller)
        models[f"{name} + INT8"] = quantize.to_int8(models[name], quantize.TrainingImages(splits)).model
    ways = {name: onnx_way(model.SerializeToString()) for name, model in models.items()}
    return compare({"float32": ways.pop("float32"), **jax_ways(trained), **ways}, splits.test, seconds)


def prune(workdir: str | Path, out: Path, amount: float, epochs: float, data_dir: str | None) -> Run:
    """The run without this share of its filters, trained on for so many epochs."""
    overrides = [] if data_dir is None else ["--data.dir", data_dir]
    folder = out / f"pruned-{100 * amount:g}"
    # What training tells of itself is no part of the report.
    with contextlib.redirect_stdout(sys.stderr):
        compress(workdir, amount, folder, finetune_epochs=epochs, overrides=overrides)
    return load_run(folder, dtype="float32")


def onnx_models(trained: Run, splits: Splits) -> Iterator[tuple[str, onnx.ModelProto]]:
    """The network as trained, in every precision; whoever exports it folds its batch norms."""
    model = float_model(trained)
    yield "float32", model
    versions: dict[str, quantize.Variant] = {
        "bfloat16 weights": "bfloat16",
        "INT8 weights": "int8-weights",
        "INT8": "int8",
    }
    for name, variant in versions.items():
        yield name, quantize.make_variant(model, variant, splits)[0]


def jax_ways(trained: Run) -> dict[str, Way]:
    """The network in JAX as it was trained, and with its batch norms folded where it has some."""
    runs = {"float32 in JAX": trained}
    if getattr(trained.network.model, "norm", None) == "batch":
        runs["folded in JAX"] = trained.folded()
    return {name: Way(run.logits, None) for name, run in runs.items()}


def draw(figures: Sequence[Figures], title: str, path: Path) -> Path:
    """The picture of all versions."""
    points = [
        Point(row.name, row.accuracy, 1e3 * row.latencies[BATCH].p50, None if row.size is None else row.size / 1e3)
        for row in figures
    ]
    return draw_trade_off(points, title, BATCH, path)
