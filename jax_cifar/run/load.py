"""A trained network, read back from its run folder."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from jaxtyping import Float32

from jax_cifar.config import Config
from jax_cifar.data import Dataset, Splits, load_data
from jax_cifar.errors import CheckpointError, DataError
from jax_cifar.evaluation.metrics import Report, report
from jax_cifar.evaluation.predict import TestTimeAugmentation, make_predictor, predict_logits
from jax_cifar.run.checkpoint import Checkpoints
from jax_cifar.run.folder import CHECKPOINTS, read_config
from jax_cifar.training.session import Network, initial_state, make_network
from jax_cifar.training.state import TrainState


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

    def logits(
        self, name: Literal["train", "val", "test"], tta: TestTimeAugmentation = "none"
    ) -> Float32[np.ndarray, "images classes"]:
        """Logits of every image of a part, in order."""
        predict = make_predictor(self.network.model, self.network.inputs)
        images, batch_size = self.part(name).images, self.config.eval.batch_size
        return predict_logits(predict, self.state.eval_variables, images, batch_size, tta)

    def evaluate(self, name: Literal["train", "val", "test"], tta: TestTimeAugmentation = "none") -> Report:
        """Judge a whole part of the data."""
        return report(self.logits(name, tta), self.part(name).labels, self.splits.label_names)


def load_trained(
    workdir: str | Path,
    which: Literal["last", "best"] = "last",
    dtype: Literal["auto", "float32", "bfloat16"] | None = None,
) -> Trained:
    """Read a run folder: its configuration, its data set, its newest or best checkpoint.

    The network computes in `dtype`; default: as the run's `train.dtype` says. Raises `CheckpointError` where the folder
    is no run or holds no such checkpoint.
    """
    folder = Path(workdir)
    config = read_config(folder)
    splits = load_data(config.data)
    computing = dataclasses.replace(config.train, dtype=dtype or config.train.dtype)
    network = make_network(dataclasses.replace(config, train=computing), splits)
    template = jax.eval_shape(lambda: initial_state(config, network, splits.train.images)[0])
    with Checkpoints(folder / CHECKPOINTS, config.checkpoint.keep) as checkpoints:
        restored = checkpoints.restore(template, which)
    if restored is None:
        hint = " Only runs with data.val_fraction > 0 keep a best one." if which == "best" else ""
        raise CheckpointError(f"{folder} holds no {which} checkpoint.{hint}")
    return Trained(config, splits, network, restored.state, restored.step)
