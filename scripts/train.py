"""Train the experiment that a config file describes.

    python scripts/train.py --config configs/quickstart.py
    python scripts/train.py --config configs/cifar10_simple_cnn.py --optim.lr 0.01 --workdir runs/try
    python scripts/train.py --config configs/cifar10_simple_cnn.py --data.name cifar100 --init-from runs/try

Given a --workdir that holds checkpoints of the same experiment, the run goes on from the newest. --init-from
starts from the weights of another run of the same network, all but the head where the classes differ, with a fresh
schedule: more epochs for a finished run are --init-from its folder --train.epochs N, in a --workdir of their own. A run
is resumed where JAX draws and computes other numbers than it was begun with, or code of your own has changed, only with
--allow-different-numbers. --profile tells first where the time of an update goes (docs/looking-inside.md), and trains
as without.
Exit codes: 0 done; 2 bad input; 3 the loss stopped being finite; 75 stopped by a signal, after saving what there was.
"""

from jax_cifar.process import begin

if __name__ == "__main__":
    begin()  # before all that takes long to import

import time

STARTED = time.time()

import dataclasses
from collections.abc import Sequence

from jax_cifar.cli import ExperimentParser, run


def main(arguments: Sequence[str]) -> None:
    """Parse, load, train."""
    parser = ExperimentParser(__doc__)
    parser.add_argument("--workdir", metavar="DIR", help="run folder; default: runs/<config name>/<time>")
    parser.add_argument("--debug-nans", action="store_true", help="find the operation that makes a NaN (slow)")
    parser.add_argument(
        "--profile",
        metavar="N",
        nargs="?",
        const=20,
        type=int,
        help="first trace N (20) updates: where their time goes",
    )
    parser.add_argument("--init-from", metavar="DIR", help="start from the weights of another run")
    parser.add_argument(
        "--allow-different-numbers", action="store_true", help="resume with other settings of JAX, or code"
    )
    options, config = parser.read(arguments)
    if options.debug_nans:
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, debug_nans=True))

    from jax_cifar.training.loop import train

    train(
        config,
        options.workdir,
        init_from=options.init_from,
        allow_different_numbers=options.allow_different_numbers,
        profile=options.profile,
        started=STARTED,
    )


if __name__ == "__main__":
    run(main)
