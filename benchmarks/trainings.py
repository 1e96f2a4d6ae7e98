"""Whole trainings of both frameworks, each by the command that a user types and in a process of its own.

In one process ours was seen to take a quarter longer after trainings in both (experiments.md, 28 November).
"""

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.processes import ROOT, run_python
from jax_cifar.backend.threads import cpu_count
from jax_cifar.files import read_record
from jax_cifar.progress import print_above
from jax_cifar.telemetry.run_log import read_metrics

JAX = "jax"
# The options of torch_ref.train for each of its ways.
TORCH_OPTIONS = {
    "torch": (),
    "torch channels_last": ("--channels-last",),
    "torch.compile": ("--channels-last", "--compile"),
}
# Nothing written but the log and the last state.
BARE = ("--checkpoint.every", "0", "--log.tensorboard", "false", "--log.plots", "false")
# On one device, all training images trained on; and nothing of ours that PyTorch's run has not.
FIELDS = ("--distributed.devices", "1", "--data.val_fraction", "0", *BARE)
# Of PyTorch, that it computes as JAX does: on as many cores as XLA has, and on a GPU with TF32.
AS_JAX = {"OMP_NUM_THREADS": str(cpu_count()), "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}


class Epoch(NamedTuple):
    """How far a training is after an epoch."""

    seconds: float  # of training since its start
    accuracy: float  # of the test images, one view each


class Training(NamedTuple):
    """What a training comes to."""

    seconds: float  # of training, without loading, compiling and evaluating
    accuracy: float  # of the test images, by the views that the config evaluates by
    epochs: tuple[Epoch, ...]  # where it was evaluated after each of them


def train(
    way: str,
    config: str,
    seed: int,
    environment: Mapping[str, str],
    *,
    fields: Sequence[str] = (),
    each_epoch: bool = False,
) -> Training:
    """Train and evaluate the test images, and tell of it in a line on stderr.

    Args:
        way: `JAX` or one of `TORCH_OPTIONS`.
        config: what `load_config` takes.
        seed: of the training.
        environment: the user's own.
        fields: of the config, as options.
        each_epoch: evaluate after every epoch, and not only at the end.

    Raises:
        ConfigError: what stopped it.
    """
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder, "summary.json")
        command = [f"{ROOT}/scripts/train.py", "--workdir", folder, "--eval.every", str(int(each_epoch))]
        if way != JAX:
            command = ["-m", "torch_ref.train", *TORCH_OPTIONS[way], "--json", str(written)]
            command += ["--each-epoch"] if each_epoch else []
        command += ["--config", config, *FIELDS, "--train.seed", str(seed), *fields]
        run_python(command, {**environment, **AS_JAX})
        figures = read_record(written)
        if way == JAX:
            figures["epochs"] = [line for line in read_metrics(Path(folder)) if line["split"] == "test"]
    epochs = tuple(Epoch(line["seconds"], line["accuracy"]) for line in figures["epochs"] if each_epoch)
    by_views, seconds = figures["test_accuracy_tta"], figures["seconds"]["train"]
    accuracy = figures["test_accuracy"] if by_views is None else by_views
    print_above(f"{figures['config_name']}, seed {seed}, {way}: {accuracy:.2%}, {seconds:.1f} s", sys.stderr)
    return Training(seconds, accuracy, epochs)
