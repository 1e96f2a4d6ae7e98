"""The one pytree that training carries, saves and restores."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Int, UInt8

from jax_cifar.backend.compiler import options_for_one_call
from jax_cifar.backend.stored import Stored
from jax_cifar.config import Config
from jax_cifar.models import frozen_parameters, init_variables, wants_images
from jax_cifar.models.network import Network
from jax_cifar.optim.rules import make_optimizer
from jax_cifar.training.keys import Purpose, purpose_key, run_key

PyTree = Any


@struct.dataclass
class TrainState:
    """Everything that changes while training; nothing that does not."""

    step: Int[Array, ""]  # completed updates
    params: PyTree
    batch_stats: PyTree  # {} for a network without BatchNorm
    opt_state: PyTree
    ema: PyTree  # averaged {"params", "batch_stats"}, or None when switched off
    # updates skipped in a row up to now, or None with train.skip_nonfinite off
    skipped: Int[Array, ""] | None = None

    @property
    def variables(self) -> dict[str, PyTree]:
        """The trained weights and statistics, as `model.apply` takes them."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def eval_variables(self) -> dict[str, PyTree]:
        """What is evaluated: the averaged weights where averaging is on, else the trained ones."""
        return self.variables if self.ema is None else self.ema


def initial_state(
    config: Config,
    network: Network,
    images: UInt8[np.ndarray, "n height width channel"],
    start: dict[str, PyTree] | None = None,
    stored: Stored | None = None,
) -> tuple[TrainState, optax.GradientTransformationExtraArgs]:
    """The state before the first update, and its optimizer.

    Args:
      config: the experiment; its seed fixes the values.
      network: what is trained.
      images: a few of the training images: the first for the shapes, all for a network that starts from images.
      start: parameters and batch statistics to start from in place of fresh ones.
      stored: where the programs for this are kept.
    """
    stored, model = stored or Stored(), network.model

    def drawn(seed: Int[Array, ""], sample: UInt8[Array, "n height width channel"]) -> dict[str, PyTree]:
        key = purpose_key(run_key(seed), Purpose.INIT)
        return init_variables(model, key, network.inputs(jnp.asarray(sample, jnp.float32) / 255))

    seed = np.int64(config.train.seed)  # as JAX takes a Python number
    if wants_images(model):  # what it makes of them is rounded as before, one operation after another
        variables = drawn(jnp.asarray(seed), jnp.asarray(images))
    else:
        once = jax.jit(drawn, compiler_options=options_for_one_call())
        variables = stored.call("initial variables", once, seed, images[:1])
    optimizer = make_optimizer(config.optim, variables["params"], frozen_parameters(network.model))
    variables = variables if start is None else start
    ema, skips = config.optim.ema_decay > 0, config.train.skip_nonfinite > 0
    create = jax.jit(partial(create_train_state, optimizer=optimizer, ema=ema, skips=skips))
    return stored.call("initial state", create, variables), optimizer


def create_train_state(
    variables: dict[str, PyTree], optimizer: optax.GradientTransformationExtraArgs, ema: bool, skips: bool = False
) -> TrainState:
    """The state before the first update, from `init_variables`."""
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    # A copy, since the step donates the state and one buffer cannot be donated twice.
    average = jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats}) if ema else None
    skipped = jnp.int32(0) if skips else None
    return TrainState(jnp.int32(0), params, batch_stats, optimizer.init(params), average, skipped)
