"""The one pytree that training carries, saves and restores."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Int

PyTree = Any


@struct.dataclass
class TrainState:
    """Everything that changes while training; nothing that does not."""

    step: Int[Array, ""]  # completed updates
    params: PyTree
    batch_stats: PyTree  # {} for a network without BatchNorm
    opt_state: PyTree
    ema: PyTree  # averaged {"params", "batch_stats"}, or None when switched off

    @property
    def variables(self) -> dict[str, PyTree]:
        """The trained weights and statistics, as `model.apply` takes them."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def eval_variables(self) -> dict[str, PyTree]:
        """What is evaluated: the averaged weights where averaging is on, else the trained ones."""
        return self.variables if self.ema is None else self.ema


def create_train_state(
    variables: dict[str, PyTree], optimizer: optax.GradientTransformationExtraArgs, ema: bool
) -> TrainState:
    """The state before the first update, from `init_variables`."""
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    # A copy, since the step donates the state and one buffer cannot be donated twice.
    average = jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats}) if ema else None
    return TrainState(jnp.int32(0), params, batch_stats, optimizer.init(params), average)
