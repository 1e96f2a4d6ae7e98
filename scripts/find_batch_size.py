"""Find the largest batch that fits into memory: compile updates of one size after another, and run them.

    python scripts/find_batch_size.py --config configs/cifar100_resnet34.py:fast
    python scripts/find_batch_size.py --config configs/cifar10_simple_cnn.py --memory 4GB --train.dtype float32

Each size is tried in a process of its own, which may not use more than there is, so that nothing else on the machine
is harmed: forward, backward and optimizer, three updates. What the compiler reckons is asked for first, and what is too
much by that is not run. The largest is not the best: another batch wants another rate (scripts/find_lr.py), and
accuracy may fall with it.
Exit codes: 0 done; 2 bad input, or not even the smallest fits; 75 stopped by a signal.
"""

from jax_cifar.process import begin

if __name__ == "__main__":
    begin()  # before all that takes long to import

import argparse
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jax_cifar.cli import ExperimentParser, run, without
from jax_cifar.errors import ConfigError
from jax_cifar.lab.tables import markdown
from jax_cifar.progress import progress

if TYPE_CHECKING:  # it brings JAX
    from jax_cifar.lab.batch_size import Probe

UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}


def main(arguments: Sequence[str]) -> None:
    """Parse, search, print."""
    parser = ExperimentParser(__doc__)
    parser.add_argument(
        "--memory", metavar="SIZE", type=size, default=0.0, help="may be used, such as 8GB (default: all)"
    )
    parser.add_argument("--margin", metavar="SHARE", type=float, default=0.1, help="of it is left alone (default 0.1)")
    parser.add_argument(
        "--most", metavar="N", type=int, default=8192, help="the batch is to be no larger (default 8192)"
    )
    options, config = parser.read(arguments)
    passed_on = without(arguments, ("--memory", "--margin", "--most"))

    from jax_cifar.lab.batch_size import find_batch_size

    with progress("batch size") as bar:
        found = find_batch_size(
            passed_on, options.memory, options.margin, options.most, tell=lambda text: bar.advance(note=text)
        )
    rows = [
        (f"{probe.batch:,}", *map(gigabytes, (probe.needed, probe.measured)), *speed(probe), ("no", "yes")[probe.fits])
        for probe in found.probes
    ]
    columns = ("batch", "GB, as the compiler reckons", "GB measured", "ms an update", "images/s", "fits")
    print(markdown(columns, rows))
    limit = f"{found.limit / 1e9:,.2f} GB, which is {found.there / 1e9:,.2f} less a margin of {options.margin:.0%}"
    if found.best is None:
        raise ConfigError(f"Not even {found.probes[0].batch} images fit into {limit}. A smaller network would.")
    print(f"\nLargest that fits into {limit}: {found.best.batch:,} images{found.why_no_larger}.")
    changes = ["--train.batch_size", str(found.best.batch)]
    print(f"To train with it: {parser.command_to_train(arguments, config, changes)}")


def gigabytes(count: float | None) -> str:
    """Bytes as a cell of the table."""
    return "-" if count is None else f"{count / 1e9:.2f}"


def speed(probe: "Probe") -> tuple[str, str]:
    """Milliseconds of an update, and images a second."""
    if probe.seconds is None:
        return "-", "-"
    return f"{1e3 * probe.seconds:,.0f}", f"{probe.batch / probe.seconds:,.0f}"


def size(text: str) -> float:
    """Bytes of a size such as 8GB, 500M or 2e9."""
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([kmgt]?)b?\s*", text, re.IGNORECASE)
    value = float(match[1]) * UNITS[match[2].lower()] if match else math.nan
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no amount of memory, such as 8GB")
    return value


if __name__ == "__main__":
    run(main)
