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

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from jax_cifar.cli import Parser, run
from jax_cifar.errors import ConfigError, check
from jax_cifar.files import expand, read_record
from jax_cifar.lab.runs import finished_runs, overview


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
    print(overview(finished_runs(options.workdir)))


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
