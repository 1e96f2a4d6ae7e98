"""Search for the best setting of an experiment, judged by held-out training images; the winner by the test images.

    python scripts/sweep.py --config configs/quickstart.py --space "optim.lr=log(0.005,0.2)" --trials 20
    python scripts/sweep.py --config configs/cifar10_simple_cnn.py --grid
        --space "optim.lr=[0.015,0.02,0.025] optim.momentum=[0.8,0.9,0.95]"

A field may be log(low,high), uniform(low,high), int(low,high) or [value, value, ...]; a number of points after a
range, log(0.005,0.2,5), makes a list of it. Trials are proposed by Optuna's TPE sampler, and given up early where the
median of the others is better; --grid trains every combination once. Settings that share a compiled program share it.

The folder, --workdir, holds the store, what came of it (sweep.json) and pictures. The same command with the same
--workdir goes on where it was stopped or killed; started several times at once it is that much faster. Machines share a
store with --storage URL (postgresql+psycopg://user@host/name, mysql+pymysql://..., journal:FILE); images of one's own
(--data.name folder or npz) lie at the same path on all of them.

No trial sees the test images. The best setting is trained with --seeds others, on all images that the configuration
trains on, and judged by the test images once; with --baseline the configuration itself is too.
Exit codes: 0 done; 2 bad input; 75 stopped by a signal: the same command goes on.
"""

from jax_cifar.process import begin

if __name__ == "__main__":
    begin()  # before all that takes long to import

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from jax_cifar.cli import ExperimentParser, run, start_of, without
from jax_cifar.files import read_record, write_json
from jax_cifar.signals import at_end_say


def make_parser() -> ExperimentParser:
    """The options that are not the configuration's."""
    parser = ExperimentParser(__doc__)
    parser.add_argument("--space", metavar="TEXT", nargs="+", help='what varies, such as "optim.lr=log(0.005,0.2)"')
    parser.add_argument("--trials", metavar="N", type=int, help="how many in all; of a grid every combination")
    parser.add_argument("--grid", action="store_true", help="train every combination once")
    parser.add_argument("--workdir", metavar="DIR", help="default: runs/<config name>-sweep/<time>")
    parser.add_argument("--storage", metavar="URL", help="a store that several machines share; default: in the folder")
    parser.add_argument(
        "--seeds", metavar="K", type=int, default=5, help="of the winner (default 5); 0: no test figure"
    )
    parser.add_argument("--baseline", action="store_true", help="train the configuration itself with these seeds too")
    rules = ["median", "halving", "none"]
    parser.add_argument("--prune", choices=rules, help="when to give up a trial (default median; none in a grid)")
    parser.add_argument("--no-prune", action="store_true", help="the same as --prune none")
    ways = ["auto", "sequential", "vmap", "devices"]
    parser.add_argument("--how", choices=ways, default="auto", help="one after another, in one call, or on all devices")
    parser.add_argument("--chunk", metavar="N", type=int, help="vmap: so many trials in one call (default 8)")
    parser.add_json("write what is in sweep.json there too")
    return parser


def main(arguments: Sequence[str]) -> None:
    """Parse, search, print."""
    parser = make_parser()
    options, config = parser.read(arguments)
    if not options.space:
        parser.error('--space is missing: say what varies, such as --space "optim.lr=log(0.005,0.2)"')
    if options.no_prune and options.prune not in (None, "none"):
        parser.error(f"--no-prune and --prune {options.prune} are not both possible: choose one")

    from jax_cifar.lab.space import command_line
    from jax_cifar.lab.sweep import draw, sweep
    from jax_cifar.lab.sweep_folder import RECORD
    from jax_cifar.lab.sweep_tables import report

    def tell_way_on(folder: Path) -> None:
        words = [*without(arguments, ["--workdir"]), "--workdir", str(folder)]
        at_end_say(f"What is finished is kept. To go on: {start_of('sweep')} {shlex.join(words)}")

    fields = ("trials", "workdir", "grid", "storage", "seeds", "baseline", "how", "chunk")
    pruning = "none" if options.no_prune else options.prune
    given = {name: getattr(options, name) for name in fields}
    found = sweep(config, options.space, pruning=pruning, on_folder=tell_way_on, say=tell, **given)
    print(report(found))
    print(f"\nto train it: {parser.command_to_train(arguments, config, command_line(found.setting))}")
    drawn = draw(found)
    print(f"drawn: {', '.join(map(str, drawn))}")
    if options.json is not None:
        write_json(options.json, read_record(found.folder / RECORD))


def tell(line: str) -> None:
    """On stderr, beside the progress."""
    print(line, file=sys.stderr)


if __name__ == "__main__":
    run(main)
