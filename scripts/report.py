"""Put finished runs side by side: one row per experiment, mean and standard deviation over its runs.

    python scripts/report.py --workdir runs/cifar10_simple_cnn/*
    python scripts/report.py variants --workdir runs/first

Runs on the same devices share a row where their configurations differ in nothing but the seed and what changes no
result (logging, checkpoints, evaluation). The table is Markdown, as it stands in RESULTS.md. Runs that diverged or are
not finished are left out, each with a line on stderr.

variants puts one trained network beside its smaller and faster versions: halved, pruned and fine-tuned, INT8, pruned
and INT8. It makes them all, the pruned ones as runs in variants/ of the run folder, where the next call finds them, and
draws accuracy against latency and size into variants.png there.
"""

from jax_cifar.signals import guard

if __name__ == "__main__":
    guard()  # before all that takes long to import

import statistics
import sys
from argparse import Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jax_cifar.cli import Parser, run
from jax_cifar.config.files import differing_fields, from_dict
from jax_cifar.errors import CheckpointError, ConfigError, check, printable
from jax_cifar.files import expand, read_record
from jax_cifar.lab.tables import markdown, spread

HEAD = ("experiment", "runs", "epochs", "test accuracy", "test loss", "train accuracy", "training time", "on")
FILES = ("config", "environment", "summary")


def read_run(folder: Path) -> dict[str, Any] | str:
    """What a finished run left, as one dict; in words, why there is nothing to be counted.

    Raises:
        CheckpointError: the folder holds no run.
    """
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} is no run folder: it holds no config.json. Give folders of scripts/train.py.")
    if not (folder / "summary.json").is_file():
        return "it is not finished: it holds no summary.json"
    contents: dict[str, Any] = {}
    for path in (folder / f"{name}.json" for name in FILES):
        try:
            contents[path.stem] = read_record(path)
        except (OSError, ValueError) as error:
            return f"{path.name} cannot be read ({error})"
    try:
        row([contents])
        from_dict(contents["config"])
    except (KeyError, TypeError, AttributeError, ConfigError) as error:
        return f"its files are not those of a run of this version ({type(error).__name__}: {error})"
    return contents if contents["summary"]["test_loss"] is not None else "it diverged: its test loss is not finite"


def finished_runs(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """The finished runs, each once, however often it was named; what is left out is told on stderr."""
    runs = []
    for folder in dict.fromkeys(folder.resolve() for folder in folders):
        one = read_run(folder)
        if isinstance(one, str):
            print(printable(f"{folder} is left out: {one}."), file=sys.stderr)
        else:
            runs.append(one)
    if not runs:
        raise CheckpointError("There is no finished run to show.")
    return runs


def share_a_row(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two runs are the same experiment on the same devices."""
    unseeded = [{**run["config"], "train": {**run["config"]["train"], "seed": 0}} for run in (one, other)]
    return one["environment"]["devices"] == other["environment"]["devices"] and not differing_fields(*unseeded)


def rows(runs: Iterable[dict[str, Any]]) -> list[tuple[str, ...]]:
    """A row per experiment, in the order of their first runs."""
    groups: list[list[dict[str, Any]]] = []
    for one in runs:
        group = next((group for group in groups if share_a_row(group[0], one)), None)
        if group is None:
            groups.append(group := [])
        group.append(one)
    return [row(group) for group in groups]


def row(runs: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """The cells of one experiment."""
    summaries, environment = [one["summary"] for one in runs], runs[0]["environment"]
    device = ", ".join(f"{count} x {kind}" for kind, count in environment["devices"].items())
    if environment["backend"] == "cpu":
        device = f"CPU, {environment['cpu_count']} cores"
    return (
        summaries[0]["config_name"],
        str(len(runs)),
        f"{summaries[0]['epochs']:g}",
        spread((summary["test_accuracy"] for summary in summaries), ".2%"),
        spread((summary["test_loss"] for summary in summaries), ".4f"),
        spread((summary["train_accuracy"] for summary in summaries), ".2%"),
        f"{statistics.median(summary['seconds']['train'] for summary in summaries):.0f} s",
        f"{device}, jax {environment['versions']['jax']}",
    )


def main(arguments: Sequence[str]) -> None:
    """Read the runs, group them, print the table."""
    parser = Parser(__doc__)
    parser.add_argument("what", nargs="?", choices=["compare", "variants"], default="compare", help="default: compare")
    parser.add_argument("--workdir", metavar="DIR", nargs="+", type=expand, required=True, help="run folders")
    own = parser.add_argument_group("variants")
    own.add_argument("--prune", metavar="SHARE", nargs="*", type=float, help="default: 0.2 0.4 0.6")
    own.add_argument("--finetune-epochs", metavar="N", type=float, help="of each pruned network (default 5)")
    own.add_argument("--data.dir", dest="data_dir", metavar="DIR", help="where the data set lies now")
    own.add_argument("--seconds", metavar="S", type=float, help="to time each version for (default 2)")
    options = parser.parse_args(arguments)
    if options.what == "variants":
        show_variants(options)
        return
    for name in ("prune", "finetune_epochs", "data_dir", "seconds"):
        given = getattr(options, name)
        check(given is None, f"--{name}".replace("_", "-"), given, "it is for report.py variants")
    print(markdown(HEAD, rows(finished_runs(options.workdir))))


def show_variants(options: Namespace) -> None:
    """Make and measure the versions of one run, print the table, draw the picture."""
    folder, *others = options.workdir
    check(not others, "--workdir", str(others[-1] if others else ""), "report.py variants takes one run")
    # The code that runs one network in several runtimes is not installed with the library.
    sys.path.insert(0, str(Path(__file__).parents[1]))
    try:
        from benchmarks import variants
    except ModuleNotFoundError as error:
        raise ConfigError(f"Variants need {error.name}. Install it with: pip install -e '.[torch]'") from None
    from jax_cifar.lab.deployed import table
    from jax_cifar.telemetry.environment import describe_devices

    out = folder / "variants"
    amounts = (0.2, 0.4, 0.6) if options.prune is None else options.prune
    given = {"epochs": options.finetune_epochs or 5.0, "seconds": options.seconds or 2.0}
    figures = variants.measure(folder, out, amounts, data_dir=options.data_dir, **given)
    print(table(figures))
    name = read_record(folder / "config.json")["name"]
    print(f"\nONNX Runtime, where JAX is not named; {describe_devices()}")
    print(f"drawn in {variants.draw(figures, name, out / 'variants.png')}")


if __name__ == "__main__":
    run(main)
