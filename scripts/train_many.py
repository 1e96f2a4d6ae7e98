"""Train an experiment with several seeds, learning rates, momenta and decays, in one process, compiled once.

    python scripts/train_many.py --config configs/quickstart.py --seeds 8
    python scripts/train_many.py --config configs/quickstart.py --seeds 3 --lr 0.02 0.05 0.1 --json rates.json

Every combination of the values given is trained with every seed (train.seed, train.seed + 1, ...). Prints a Markdown
table with a row per combination. Choose one by its accuracy on validation images (--data.val_fraction 0.1), not by the
test images. There is no run folder; `scripts/report.py compare` reads the file of --json.
Exit codes: 0 done, also where some runs diverged, which the table tells; 2 bad input; 75 stopped by a signal, after the
table of what had finished.
"""

from jax_cifar.process import begin

if __name__ == "__main__":
    begin()  # before all that takes long to import

import itertools
import statistics
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jax_cifar.cli import ExperimentParser, run
from jax_cifar.config import Config
from jax_cifar.config.files import apply_overrides, to_record
from jax_cifar.files import write_json
from jax_cifar.lab.tables import markdown, spread
from jax_cifar.progress import progress
from jax_cifar.signals import at_end_say, last_acts, say

if TYPE_CHECKING:
    from jax_cifar.training.many import ManyResult

STARTED = time.time()
VARIED = ("lr", "momentum", "weight_decay")


def make_parser() -> ExperimentParser:
    """The options that are not the configuration's."""
    parser = ExperimentParser(__doc__)
    parser.add_argument("--seeds", metavar="N", type=int, default=1, help="seeds of each combination (default 1)")
    for name in VARIED:
        parser.add_argument(f"--{name}", metavar="VALUE", type=float, nargs="+", help="default: the config's")
    ways = ["auto", "sequential", "vmap", "devices"]
    parser.add_argument("--how", choices=ways, default="auto", help="one after another, in one call, or on all devices")
    parser.add_argument("--chunk", metavar="N", type=int, help="vmap: so many runs in one call (default all)")
    parser.add_json("write every single result there, as each comes")
    return parser


def members(options: Any, config: Config) -> list[Config]:
    """Every combination of the values given, each with every seed."""
    first = "b1" if config.optim.name in ("adam", "adamw") else "momentum"
    fields = {"lr": "optim.lr", "momentum": f"optim.{first}", "weight_decay": "optim.weight_decay"}
    given = {field: getattr(options, name) for name, field in fields.items() if getattr(options, name) is not None}
    seeds = range(config.train.seed, config.train.seed + options.seeds)
    configs = []
    for *values, seed in itertools.product(*given.values(), seeds):
        settings = zip(["train.seed", *given], [seed, *values], strict=True)
        configs.append(
            apply_overrides(config, [word for name, value in settings for word in (f"--{name}", str(value))])
        )
    return configs


def table(results: Sequence["ManyResult"], momentum: str) -> str:
    """A row per combination: means over the seeds that did not diverge, and how many did."""
    columns = {
        "validation accuracy": ("validation_accuracy", ".2%"),
        "test accuracy, TTA": ("test_accuracy_tta", ".2%"),
    }
    shown = {
        head: column for head, column in columns.items() if any(getattr(r, column[0]) is not None for r in results)
    }
    shown |= {"test accuracy": ("test_accuracy", ".2%"), "test loss": ("test_loss", ".4f")}
    rows: dict[tuple[float, ...], list[ManyResult]] = {}
    for result in results:
        _, *numbers = result.setting.values()
        rows.setdefault(tuple(numbers), []).append(result)
    head = ["lr", momentum, "weight decay", "seeds", *shown, "training time"]
    lines = []
    for setting, group in rows.items():
        whole = [result for result in group if result.diverged_at is None]
        lost = len(group) - len(whole)
        count = f"{len(group)}, {lost} diverged" if lost else str(len(group))
        cells = [spread([getattr(result, name) for result in whole], form) for name, form in shown.values()]
        # One that diverged may have been stopped early.
        seconds = f"{statistics.fmean(result.seconds for result in whole):.3g} s" if whole else "-"
        lines.append([*(f"{value:g}" for value in setting), count, *cells, seconds])
    return markdown(head, lines)


def as_json(config: Config, how: str, results: Sequence["ManyResult"]) -> dict[str, Any]:
    """Every single result, and what it rests on."""
    from jax_cifar.telemetry.environment import describe_devices, environment

    return {
        "config": to_record(config),
        "how": how,
        "results": [result.to_dict() for result in results],
        "seconds": time.time() - STARTED,
        "device": describe_devices(),
        "environment": environment(),
    }


def main(arguments: Sequence[str]) -> None:
    """Parse, train, print."""
    parser = make_parser()
    options, config = parser.read(arguments)
    if options.seeds < 1:
        parser.error(f"--seeds {options.seeds} is not allowed: it must be at least 1")
    configs = members(options, config)
    count = len(configs)

    from jax_cifar.training.many import choose_way, train_many

    how = choose_way(config, count) if options.how == "auto" else options.how
    results: list[ManyResult] = []
    momentum = "b1" if config.optim.name in ("adam", "adamw") else "momentum"

    def report(result: "ManyResult") -> None:
        results.append(result)
        if options.json is not None:
            write_json(options.json, as_json(config, how, results))
        at_end_say(f"Results {'shown' if options.json is None else f'in {options.json}'}: {len(results)} of {count}.")
        accuracy = result.test_accuracy
        end = "diverged" if accuracy is None else f"test accuracy {accuracy:.2%}"
        seed, lr, m, decay = result.setting.values()
        setting = f"seed {seed}, lr {lr:g}, {momentum} {m:g}, decay {decay:g}"
        bar.print(f"{len(results)} of {count} ({how}): {setting}: {end}", sys.stderr)

    last_acts.append(lambda: results and say(table(results, momentum), 1))
    try:
        with progress("trained", total=count, form=",.1f") as bar:
            train_many(configs, how=how, chunk=options.chunk, on_result=report, on_update=bar.update)
    finally:
        if results:
            print(table(results, momentum))


if __name__ == "__main__":
    run(main)
