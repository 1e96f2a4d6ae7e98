"""Put finished runs side by side, and say which of two experiments is better, and how sure that is.

    python scripts/report.py --workdir runs/cifar10_simple_cnn/*
    python scripts/report.py compare runs/new-? --against runs/old-? [--metric test_loss] [--out curves.png]
    python scripts/report.py compare rates.json:lr=0.05 --against rates.json:lr=0.02
    python scripts/report.py html --workdir runs/first [runs/second ...] [--out report.html]
    python scripts/report.py note --workdir runs/new-? --parent runs/old-0 --hypothesis "..." --conclusion "..."
    python scripts/report.py variants --workdir runs/first

Without --against: a Markdown table, one row per experiment, mean and standard deviation over its runs, as it stands in
RESULTS.md. Runs on the same devices are one experiment where their configurations differ in nothing but the seed, the
name and what changes no result (logging, checkpoints, evaluation). Runs that diverged or are not finished are left out,
each with a line on stderr.

With --against: what differs between two experiments, both means, the difference with its 95 % interval, and a verdict:
better, worse, or how many more seeds would tell. Where both have the same seeds they are compared in pairs.

Besides run folders both take files of `scripts/train_many.py --json`, or some of the runs in one:
FILE.json:lr=0.05,seed=0-49.

`report.py html --help`, `report.py note --help` and `report.py variants --help` say what these do.
"""

from jax_cifar.process import begin

if __name__ == "__main__":
    begin()  # before all that takes long to import

import inspect
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from jax_cifar.cli import Parser, run
from jax_cifar.errors import ConfigError, check
from jax_cifar.files import expand, read_record, write_json, write_text
from jax_cifar.lab.compare import METRICS, require_one_experiment
from jax_cifar.lab.compare import compare as comparison
from jax_cifar.lab.results import finished_runs, named_runs, tell_left_out
from jax_cifar.lab.runs import overview, read_run


def compare(arguments: Sequence[str]) -> None:
    """Read the runs; print a row for each experiment, or hold one against another."""
    parser = Parser(__doc__, prog="report.py compare")
    parser.add_argument("runs", metavar="RUN", nargs="*", help="run folders, or files of train_many.py --json")
    parser.add_argument("--workdir", metavar="DIR", nargs="+", default=[], help="the same, under another name")
    parser.add_argument("--against", metavar="RUN", nargs="+", default=[], help="the experiment to hold them against")
    own = parser.add_argument_group("with --against")
    own.add_argument("--metric", choices=METRICS, help="default: test_accuracy")
    own.add_argument("--least", metavar="X", type=float, help="smallest difference that matters (points, s, nats)")
    own.add_argument("--out", metavar="FILE.png", type=expand, help="draw both curves and every run's figure")
    parser.add_json("write all of it there")
    options = parser.parse_args(arguments)
    runs = [*options.runs, *options.workdir]
    check(bool(runs), "RUN", "", "name the folders of runs")
    if options.against:
        show_comparison(runs, options)
        return
    for name in ("metric", "least", "out", "json"):
        check(getattr(options, name) is None, f"--{name}", str(getattr(options, name)), "it needs --against")
    print(overview(finished_runs(runs)))


def show_comparison(runs: Sequence[str], options: Namespace) -> None:
    """Compare two experiments, print what was found, draw and write it where that is wanted."""
    check(options.least is None or options.least > 0, "--least", options.least, "it must be greater than 0")
    check(options.out is None or options.out.suffix == ".png", "--out", str(options.out), "its name must end in .png")
    lost: list[dict[str, str]] = [{}, {}]
    this, that = named_runs(runs, told(lost[0])), named_runs(options.against, told(lost[1]))
    diverged = [sum(why.startswith("it diverged") for why in side.values()) for side in lost]
    metric = options.metric or "test_accuracy"
    found = comparison(this, that, metric, told({}), diverged=(diverged[0], diverged[1]), least=options.least)
    print(f"{found.table()}\n\nA against B: {found.verdict}\n")
    print(*found.notes(), sep="\n")
    if options.json is not None:
        write_json(options.json, found.to_dict())
    if options.out is not None:
        from jax_cifar.lab.curves import draw

        print(f"drawn in {draw(found, options.out)}")


def told(left_out: dict[str, str]) -> Callable[[str, str], None]:
    """Keeps what is left out, and says so on stderr."""

    def leave_out(name: str, why: str) -> None:
        left_out[name] = why
        tell_left_out(name, why)

    return leave_out


def html(arguments: Sequence[str]) -> None:
    """Write one HTML file that shows a run, or several side by side, finished or not. It needs no network.

    Curves, classes and what is confused, calibration, the most confident mistakes, filters, configuration, timings.
    What needs the test images is left out, with a line that says why, where these are not at hand.
    """
    parser = Parser(inspect.getdoc(html), prog="report.py html")
    parser.add_argument("--workdir", metavar="DIR", nargs="+", type=expand, required=True, help="run folders")
    where = "default: report.html in the folder of the run; of several runs, here"
    parser.add_argument("--out", metavar="FILE.html", type=expand, help=where)
    parser.add_argument("--data.dir", dest="data_dir", metavar="DIR", help="where the data set lies now")
    parser.add_argument(
        "--trust-code", action="store_true", help="run the networks' own code that the folders recorded"
    )
    options = parser.parse_args(arguments)
    folders = options.workdir
    for folder in folders:
        read_run(folder)  # what is no run is told as that, before its folder is refused as a place for the page
    out = options.out or (folders[0] / "report.html" if len(folders) == 1 else Path("report.html"))
    good = out.suffix in (".html", ".htm") and out.parent.is_dir() and not out.is_dir()
    check(good, "--out", str(out), "it must be a file that ends in .html, in a folder that is there")
    from jax_cifar.lab.page import html_report

    text = html_report(folders, options.data_dir, options.trust_code)
    try:
        write_text(out, text)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror}. Name another place: --out FILE.html.") from None
    print(f"written {out}, {len(text.encode()) / 1e6:.2f} MB: open it in a browser")


def note(arguments: Sequence[str]) -> None:
    """Add an entry to the lab notebook, before the others: hypothesis, what differs from the parent, what came out.

    The parent is the run that --parent names; else the one that this was begun from by --init-from; else the config
    file as it is without options. Give the runs of one experiment: all its seeds make one entry.
    """
    parser = Parser(inspect.getdoc(note), prog="report.py note")
    parser.add_argument("--workdir", metavar="DIR", nargs="+", required=True, help="run folders of one experiment")
    parser.add_argument("--hypothesis", metavar="TEXT", required=True, help="what was expected, and why")
    parser.add_argument("--conclusion", metavar="TEXT", required=True, help="what came out, kept or not")
    parser.add_argument("--parent", metavar="DIR", type=expand, help="the run that it is to be compared with")
    parser.add_argument("--out", metavar="FILE", type=expand, default=Path("experiments.md"), help="the notebook")
    options = parser.parse_args(arguments)
    from jax_cifar.lab.note import append, entry, find_parent, require_text

    runs = finished_runs(options.workdir)
    require_one_experiment(runs, "--workdir")
    said = (require_text("--hypothesis", options.hypothesis), require_text("--conclusion", options.conclusion))
    text = entry(runs, find_parent(runs[0], options.parent), *said, time.strftime("%Y-%m-%d"))
    append(options.out, text)
    print(f"{text}\nadded to {options.out}")


def variants(arguments: Sequence[str]) -> None:
    """Put one trained network beside its smaller and faster versions: halved, pruned and fine-tuned, INT8, both.

    It makes them all, the pruned ones as runs in variants/ of the run folder, where the next call finds them, and draws
    accuracy against latency and size into variants.png there.
    """
    parser = Parser(inspect.getdoc(variants), prog="report.py variants")
    parser.add_argument("--workdir", metavar="DIR", type=expand, required=True, help="run folder")
    parser.add_argument("--prune", metavar="SHARE", nargs="*", type=float, help="default: 0.2 0.4 0.6")
    parser.add_argument(
        "--finetune-epochs", metavar="N", type=float, default=5.0, help="of each pruned network (default 5)"
    )
    parser.add_argument("--data.dir", dest="data_dir", metavar="DIR", help="where the data set lies now")
    parser.add_argument("--seconds", metavar="S", type=float, default=2.0, help="to time each version for (default 2)")
    options = parser.parse_args(arguments)
    for name in ("finetune-epochs", "seconds"):
        value = getattr(options, name.replace("-", "_"))
        check(value > 0, f"--{name}", value, "it must be greater than 0")
    show_variants(options)


def show_variants(options: Namespace) -> None:
    """Make and measure the versions of one run, print the table, draw the picture."""
    folder, root = options.workdir, Path(__file__).parents[1]
    if not (root / "benchmarks").is_dir():
        raise ConfigError(
            "report variants needs a checkout of the repository: the code that runs one network in several runtimes is"
            " not installed with the library. Run python scripts/report.py variants there."
        )
    sys.path.insert(0, str(root))
    try:
        from benchmarks import variants
    except ModuleNotFoundError as error:
        raise ConfigError(f"Variants need {error.name}. Install it with: pip install -e '.[torch]'") from None
    from jax_cifar.lab.deployed import table
    from jax_cifar.telemetry.environment import describe_devices

    out = folder / "variants"
    amounts = (0.2, 0.4, 0.6) if options.prune is None else options.prune
    figures = variants.measure(folder, out, amounts, options.finetune_epochs, options.data_dir, options.seconds)
    print(table(figures))
    name = read_record(folder / "config.json")["name"]
    print(f"\nONNX Runtime, where JAX is not named; {describe_devices()}")
    print(f"drawn in {variants.draw(figures, name, out / 'variants.png')}")


COMMANDS = {"compare": compare, "html": html, "note": note, "variants": variants}


def main(arguments: Sequence[str]) -> None:
    """What the first word says; without one a table of runs."""
    word = arguments[0] if arguments and not arguments[0].startswith("-") else None
    check(word is None or word in COMMANDS, "command", word, f"choose one of {', '.join(COMMANDS)}")
    COMMANDS[word or "compare"](arguments[word is not None :])


if __name__ == "__main__":
    run(main)
