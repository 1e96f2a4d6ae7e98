"""Make a trained network smaller: remove the filters of smallest norm, and train the rest on for a few epochs.

    python scripts/compress.py --workdir runs/first --prune 0.4 --out runs/smaller
    python scripts/compress.py --workdir runs/first --prune 0.6 --out runs/smaller --prune-schedule iterative
    python scripts/compress.py --workdir runs/first --prune 0.4 --out runs/smaller --scope global --optim.lr 0.01

--out becomes a run like any other: it evaluates, exports, resumes and can be compressed again. Fine-tuning is the
recipe of the run, from a tenth of its peak rate down to 0 along a cosine; any field of the configuration changes it.
iterative removes the filters in three steps with a third of the epochs after each; the networks in between lie in
stages/ of --out. The same command goes on where it was interrupted.

Prints the size, the multiply-adds (in the kernels of convolutions and dense layers, for one image), the accuracy on all
test images and the latency on this machine, measured in turn, of every network on the way.
Exit codes: 0 done; 2 bad input; 3 the loss stopped being finite; 75 stopped by a signal, after saving what there was.
"""

from jax_cifar.process import begin

if __name__ == "__main__":
    begin()  # before all that takes long to import

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from jax_cifar.cli import Parser, run
from jax_cifar.lab.tables import markdown

if TYPE_CHECKING:
    from jax_cifar.run.load import Run


def make_parser() -> Parser:
    """The options that are no fields of a configuration."""
    parser = Parser(__doc__)
    parser.add_argument("--workdir", metavar="DIR", required=True, help="run folder that scripts/train.py wrote")
    parser.add_argument("--prune", metavar="SHARE", type=float, required=True, help="share of the filters that goes")
    parser.add_argument("--out", metavar="DIR", required=True, help="folder of the smaller run")
    parser.add_argument("--finetune-epochs", metavar="N", type=float, default=5.0, help="in all (default 5)")
    ways = ["one-shot", "iterative"]
    parser.add_argument("--prune-schedule", choices=ways, default=ways[0], help="all at once, or in three steps")
    scopes = ["layer", "global"]
    parser.add_argument(
        "--scope", choices=scopes, default=scopes[0], help="that share of each layer, or of all filters"
    )
    parser.add_argument("--norm", metavar="N", type=float, default=2.0, help="of the filters: 1, 2 (default), inf")
    parser.add_argument("--checkpoint", choices=["last", "best"], default="last", help="newest, or best by validation")
    parser.add_argument("--trust-code", action="store_true", help="run code of the run's own that the folder recorded")
    return parser


def main(arguments: Sequence[str]) -> None:
    """Parse, compress, measure, print."""
    parser = make_parser()
    options, overrides = parser.parse_known_args(arguments)
    if not 0 < options.prune < 1:
        parser.error(f"--prune {options.prune:g} is not allowed: it must be greater than 0 and less than 1")

    from jax_cifar.training.finetune import compress

    runs = compress(
        options.workdir,
        options.prune,
        options.out,
        finetune_epochs=options.finetune_epochs,
        schedule=options.prune_schedule,
        scope=options.scope,
        order=options.norm,
        which=options.checkpoint,
        overrides=overrides,
        trust_code=options.trust_code,
    )
    print(f"\n{table(runs)}")


def table(runs: "dict[str, Run]") -> str:
    """A row for each network: what it costs, what it is worth, and how long one call takes on this machine."""
    import jax
    import numpy as np

    from jax_cifar.backend.threads import cpu_count
    from jax_cifar.compress.cost import multiply_adds
    from jax_cifar.evaluation.latency import BATCHES, measure_latencies
    from jax_cifar.models import parameter_table

    *_, last = runs.values()
    images = last.part("test").images
    batches = {size: images[np.arange(size) % len(images)] for size in BATCHES}
    ways = {f"{name}/{size}": partial(one.logits, batches[size]) for name, one in runs.items() for size in BATCHES}
    latencies = measure_latencies(ways)
    rows = []
    for name, one in runs.items():
        parameters = sum(count for *_, count in parameter_table(one.variables["params"]))
        accuracy = one.evaluate("test", data_dir=last.config.data.dir).accuracy
        times = (latencies[f"{name}/{size}"] for size in BATCHES)
        cells = [f"{1e3 * time.p50:.2f} ({1e3 * time.p95:.2f})" for time in times]
        rows.append([name, f"{parameters:,}", f"{multiply_adds(one.network):,}", f"{accuracy:.2%}", *cells])
    head = ["network", "parameters", "multiply-adds", "test accuracy", *(f"ms, batch {size}" for size in BATCHES)]
    place = f"{jax.devices()[0].device_kind}, {cpu_count()} threads"
    return f"{markdown(head, rows)}\n\nms: p50 (p95) of a call in JAX on {place}."


if __name__ == "__main__":
    run(main)
