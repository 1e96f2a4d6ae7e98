"""Find a learning rate to begin with: train for a few hundred updates while the rate grows, and look at the loss.

    python scripts/find_lr.py --config configs/cifar10_simple_cnn.py
    python scripts/find_lr.py --config configs/cifar10_simple_cnn.py --optim.name adam --high 1 --out lr.png

The rate grows by the same factor at every update (Smith 2017). Where the loss falls fastest the network learns; where
it is smallest the rate is about to be too large. Suggested is the geometric mean of the two, as the peak rate of a
schedule: a start for a search (scripts/sweep.py), not its end. With Muon optim.aux_lr grows with it.
Exit codes: 0 done; 2 bad input, or a loss that falls nowhere; 75 stopped by a signal.
"""

from jax_cifar.process import begin

if __name__ == "__main__":
    begin()  # before all that takes long to import

from collections.abc import Sequence

from jax_cifar.cli import ExperimentParser, run
from jax_cifar.files import expand
from jax_cifar.lab.tables import markdown
from jax_cifar.progress import progress


def main(arguments: Sequence[str]) -> None:
    """Parse, train, print, draw."""
    parser = ExperimentParser(__doc__)
    parser.add_argument("--low", metavar="RATE", type=float, default=1e-4, help="the first rate (default 0.0001)")
    parser.add_argument("--high", metavar="RATE", type=float, default=10.0, help="the last rate (default 10)")
    parser.add_argument("--updates", metavar="N", type=int, default=200, help="of each run (default 200)")
    parser.add_argument("--seeds", metavar="N", type=int, default=2, help="runs whose mean is taken (default 2)")
    parser.add_argument("--out", metavar="FILE", type=expand, help="draw the curve there, as PNG")
    options, config = parser.read(arguments)

    from jax_cifar.lab.range_test import range_test, rates_at

    count = max(options.seeds * options.updates, 0)
    with progress("range test", count, unit="updates") as bar:
        found = range_test(config, options.low, options.high, options.updates, options.seeds, tell=bar.update)
    marks = {"suggested": found.suggestion, "steepest": found.steepest, "smallest loss": found.lowest}
    marks |= {"breaks": found.broke} if found.broke is not None else {}
    print(markdown(("rate", "learning rate"), [(name, f"{rate:.2g}") for name, rate in marks.items()]))
    rates = rates_at(config, float(f"{found.suggestion:.2g}"))
    changes = [word for name, rate in rates.items() for word in (f"--optim.{name}", f"{rate:.4g}")]
    print(f"\nTo train with it: {parser.command_to_train(arguments, config, changes)}")
    if options.out is not None:
        from jax_cifar.telemetry.range_test import draw_range_test

        runs = f"{options.seeds} runs and their mean" if options.seeds > 1 else "one run, smoothed"
        title = f"{config.name}: loss while the rate grows, {runs}"
        print(f"drawn in {draw_range_test(found.rates, found.losses, found.smooth, marks, title, options.out)}")


if __name__ == "__main__":
    run(main)
