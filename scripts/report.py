"""Put finished runs side by side: one row per experiment, mean and standard deviation over its runs.

    python scripts/report.py --workdir runs/cifar10_simple_cnn/*

Runs of the same configuration but for the seed share a row. The table is Markdown, as it stands in RESULTS.md.
"""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jax_cifar.cli import Parser, run
from jax_cifar.errors import CheckpointError

HEAD = ("experiment", "runs", "epochs", "test accuracy", "test loss", "train accuracy", "training time", "on")


def read_run(folder: Path) -> dict[str, Any]:
    """What a finished run left, as one dict; raises `CheckpointError` for a folder that holds none."""
    files = {name: folder / f"{name}.json" for name in ("summary", "config", "environment")}
    missing = [path.name for path in files.values() if not path.is_file()]
    if missing:
        raise CheckpointError(f"{folder} is not a finished run: it holds no {', '.join(missing)}.")
    return {name: json.loads(path.read_text()) for name, path in files.items()}


def experiment(one: dict[str, Any]) -> str:
    """What runs of one row have in common: everything but the seed and where the data lies."""
    config = json.loads(json.dumps(one["config"]))
    config["train"].pop("seed")
    config["data"].pop("dir")
    return json.dumps([config, one["environment"]["devices"]], sort_keys=True)


def spread(values: Sequence[float], form: str) -> str:
    """Mean, and the standard deviation over more than one run."""
    mean = format(statistics.fmean(values), form)
    return mean if len(values) < 2 else f"{mean} (sd {format(statistics.stdev(values), form)})"


def row(runs: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """The cells of one experiment."""
    summaries, environment = [one["summary"] for one in runs], runs[0]["environment"]
    versions = environment["versions"]
    device = ", ".join(f"{count} x {kind}" for kind, count in environment["devices"].items())
    if environment["backend"] == "cpu":
        device = f"CPU, {environment['cpu_count']} cores"
    return (
        summaries[0]["config_name"],
        str(len(runs)),
        f"{summaries[0]['epochs']:g}",
        spread([s["test_accuracy"] for s in summaries], ".2%"),
        spread([s["test_loss"] for s in summaries], ".4f"),
        spread([s["train_accuracy"] for s in summaries], ".2%"),
        f"{statistics.median(s['seconds']['train'] for s in summaries):.0f} s",
        f"{device}, jax {versions['jax']}",
    )


def main(arguments: Sequence[str]) -> None:
    """Read the runs, group them, print the table."""
    parser = Parser(__doc__)
    parser.add_argument("--workdir", metavar="DIR", nargs="+", type=Path, required=True, help="run folders")
    options = parser.parse_args(arguments)
    groups: dict[str, list[dict[str, Any]]] = {}
    for folder in options.workdir:
        one = read_run(folder)
        groups.setdefault(experiment(one), []).append(one)
    print("| " + " | ".join(HEAD) + " |")
    print("|" + "-|" * len(HEAD))
    for runs in groups.values():
        print("| " + " | ".join(row(runs)) + " |")


if __name__ == "__main__":
    run(main)
