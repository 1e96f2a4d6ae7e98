"""A trained network, read back from its run folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax

from jax_cifar.checkpoint import Checkpoints
from jax_cifar.config import Config
from jax_cifar.data import Dataset, Splits, load_data
from jax_cifar.errors import CheckpointError, DataError
from jax_cifar.evaluate import TestTimeAugmentation, evaluate, make_predictor
from jax_cifar.metrics import Report
from jax_cifar.run_folder import CHECKPOINTS, read_config
from jax_cifar.session import Network, initial_state, make_network
from jax_cifar.train_state import TrainState


@dataclass(frozen=True)
class Trained:
    """A run's network with the weights of one of its checkpoints."""

    config: Config
    splits: Splits
    network: Network
    state: TrainState
    step: int

    def part(self, name: Literal["train", "val", "test"]) -> Dataset:
        """One part of the data; raises `DataError` for a validation part that the run did not have."""
        part = {"train": self.splits.train, "val": self.splits.validation, "test": self.splits.test}[name]
        if part is None:
            raise DataError("This run held no validation images out: data.val_fraction = 0.")
        return part

    def evaluate(self, name: Literal["train", "val", "test"], tta: TestTimeAugmentation = "none") -> Report:
        """Judge a whole part of the data."""
        part = self.part(name)
        return evaluate(
            make_predictor(self.network.model, self.network.normalize),
            self.state.eval_variables,
            part.images,
            part.labels,
            self.splits.label_names,
            batch_size=self.config.eval.batch_size,
            tta=tta,
        )


def load_trained(workdir: str | Path, which: Literal["last", "best"] = "last") -> Trained:
    """Read a run folder: its configuration, its data set, its newest or best checkpoint.

    Raises `CheckpointError` where the folder is no run or holds no such checkpoint.
    """
    folder = Path(workdir)
    config = read_config(folder)
    splits = load_data(config.data)
    network = make_network(config, splits)
    template = jax.eval_shape(lambda: initial_state(config, network, splits.train.images)[0])
    with Checkpoints(folder / CHECKPOINTS, config.checkpoint.keep) as checkpoints:
        restored = checkpoints.restore(template, which)
    if restored is None:
        hint = " Only runs with data.val_fraction > 0 keep a best one." if which == "best" else ""
        raise CheckpointError(f"{folder} holds no {which} checkpoint.{hint}")
    return Trained(config, splits, network, restored.state, restored.step)
