"""What each ingredient of an experiment is worth: take them out one at a time, with several seeds each.

    python scripts/ablate.py --config configs/quickstart.py --list
    python scripts/ablate.py --config configs/quickstart.py --seeds 5
    python scripts/ablate.py --config configs/cifar10_simple_cnn.py --add
    python scripts/ablate.py --config configs/cifar100_ablation.py --variants

Ingredients are what the config file has beyond its network, rate, batch and length: transforms, mixing, smoothing,
decay, momentum, norms, dropout, schedule, averaged weights and so on. --add also puts in what it lacks of the usual
(jax_cifar/lab/ingredients.py has the values). --variants puts the experiments of one file side by side instead.
All that is changed at a time is the ingredient: the rate is not tuned anew. Accuracy is that of the validation images
where there are any (the set's own, or --data.val_fraction 0.1), else of the test images, with test-time augmentation
where every experiment has the same: an ablation tells, it chooses nothing.

Every finished run is kept in the folder at once, with a picture at the end; the same command goes on from there.
Exit codes: 0 done, also where some runs diverged, which the table tells; 2 bad input; 75 stopped by a signal, after the
table of what had finished.
"""

from jax_cifar.process import begin

if __name__ == "__main__":
    begin()  # before all that takes long to import

import dataclasses
import statistics
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jax_cifar.cli import ExperimentParser, run
from jax_cifar.config import Config
from jax_cifar.config.files import flat, load_config, split_variant, to_dict, variants_of
from jax_cifar.errors import check, print_warning
from jax_cifar.files import expand
from jax_cifar.lab.tables import markdown, spread
from jax_cifar.progress import clock_time, progress
from jax_cifar.signals import at_end_say, last_acts, say

if TYPE_CHECKING:
    from jax_cifar.lab.ablate import Ablation
    from jax_cifar.lab.ingredients import Ingredient
    from jax_cifar.training.many import ManyResult

LEDGER = "runs.json"


def make_parser() -> ExperimentParser:
    """The options that are not the configuration's."""
    parser = ExperimentParser(__doc__)
    parser.add_argument("--seeds", metavar="K", type=int, default=3, help="seeds of each experiment (default 3)")
    parser.add_argument("--only", metavar="NAME", nargs="+", help="these ingredients only, as --list names them")
    parser.add_argument("--add", action="store_true", help="also put in what is usual and lacks")
    parser.add_argument("--variants", action="store_true", help="the file's experiments, compared with --config's")
    parser.add_argument("--against", metavar="FIELD", help="variants: draw accuracy against this field")
    parser.add_argument("--list", action="store_true", help="show what would be trained, and how long it would take")
    parser.add_argument("--workdir", metavar="DIR", type=expand, help="folder of results (runs/ablations/NAME)")
    return parser


def arms_of(options: Namespace, config: Config, overrides: Sequence[str]) -> list["Ingredient"]:
    """What the experiment is compared with."""
    from jax_cifar.lab.ablate import variants
    from jax_cifar.lab.ingredients import addable, choose, removable

    if options.variants:
        file, _ = split_variant(options.config)
        names = variants_of(file)
        check(len(names) > 1, "--variants", str(file), "it describes one experiment only")
        arms = variants(config, {name: load_config(f"{file}:{name}", overrides) for name in names})
    else:
        arms = [*removable(config), *(addable(config) if options.add else ())]
    arms = choose(arms, options.only) if options.only else arms
    expected = "there is nothing to change: --add puts in what is usual, --variants compares experiments of a file"
    check(bool(arms), "--config", options.config, expected)
    return arms


def check_options(options: Namespace) -> None:
    """Raise `ConfigError` for options that cannot be, or not together."""
    check(options.seeds >= 1, "--seeds", options.seeds, "it must be at least 1")
    check(not (options.add and options.variants), "--add", True, "it changes ingredients, and --variants has none")
    if options.against is not None:
        check(options.variants, "--against", options.against, "it is for --variants")


def check_against(field: str, ablation: "Ablation") -> None:
    """Raise `ConfigError` for a field that is no number in one of the experiments."""
    names = ["the experiment as it is", *(arm.name for arm in ablation.arms)]
    for name, config in zip(names, ablation.configs, strict=True):
        value = flat(to_dict(config)).get(field)
        expected = f"name a field that holds a number: it is {value!r} in {name}"
        check(isinstance(value, int | float), "--against", field, expected)


def plan(ablation: "Ablation") -> str:
    """What would be trained, in a table, and how long that takes, as far as it is known."""
    from jax_cifar.lab.ablate import change_text

    rows, ledger = ablation.rows(), ablation.ledger
    done = (f"{len(ablation.seeds) - row.missing} of {len(ablation.seeds)}" for row in rows)
    cells = [(row.name, change_text(row), count) for row, count in zip(rows, done, strict=True)]
    missing, seconds = len(ledger.missing(ablation.members())), [run["wall_seconds"] for run in ledger.runs.values()]
    time = clock_time(missing * statistics.fmean(seconds)) if seconds else "known after the first"
    return f"{markdown(('experiment', 'change', 'runs done'), cells)}\n\n{missing} runs to do, time: {time}"


def summary(ablation: "Ablation") -> str:
    """The table, and what its figures mean."""
    arms, seeds = len(ablation.arms), len(ablation.seeds)
    return (
        f"{ablation.table()}\n\n{ablation.config.name}, n = {seeds}, compared seed by seed. Of {arms} that are"
        f" worth nothing about {0.05 * arms:.2g} would look otherwise: an interval misses the truth once in 20 times."
    )


def train(ablation: "Ablation") -> None:
    """Train what is missing; every run is told of, and every experiment that is complete."""
    from jax_cifar.lab.ablate import worth_text

    members, ledger = ablation.members(), ablation.ledger
    told = {row.name for row in ablation.rows() if not row.missing}

    def report(result: "ManyResult") -> None:
        lost = result.diverged_at is not None
        bar.advance(note="the last run diverged" if lost else f"last run {getattr(result, ablation.figure):.2%}")
        for row in ablation.rows():
            if not row.missing and row.name not in told:
                told.add(row.name)
                facts = (row.way, f"{row.name}:", spread(row.accuracies, ".2%"), worth_text(row), row.verdict)
                bar.print(" ".join(filter(None, facts)), file=sys.stderr)

    at_end_say("Every finished run is kept: the same command goes on from there.")
    with progress("ablation", len(members), done=len(members) - len(ledger.missing(members)), unit="runs") as bar:
        ledger.train(members, report)


def main(arguments: Sequence[str]) -> None:
    """Parse, train, print."""
    parser = make_parser()
    options, config = parser.read(arguments)
    check_options(options)

    from jax_cifar.lab.ablate import Ablation, draw
    from jax_cifar.lab.ledger import Ledger
    from jax_cifar.run.lock import RunLock

    folder = options.workdir or Path("runs/ablations") / config.name
    arms = arms_of(options, config, parser.parse_known_args(arguments)[1])
    seeds = range(config.train.seed, config.train.seed + options.seeds)
    ablation = Ablation(config, arms, seeds, Ledger(folder / LEDGER))
    if options.against is not None:
        check_against(options.against, ablation)
    if options.list:
        print(plan(ablation))
        return
    folder.mkdir(parents=True, exist_ok=True)
    with RunLock(folder, str(folder), print_warning):
        # Read anew: another process may have had the folder until now.
        ablation = dataclasses.replace(ablation, ledger=Ledger(folder / LEDGER))
        last_acts.append(lambda: ablation.ledger.runs and say(summary(ablation), 1))
        try:
            train(ablation)
        finally:
            if ablation.ledger.runs:
                print(summary(ablation))
    if options.seeds > 1 or options.against:
        print(f"\ndrawn in {draw(ablation, folder, options.against)}")


if __name__ == "__main__":
    run(main)
