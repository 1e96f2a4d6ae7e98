"""How the gradient reaches the layers of a network: its size in each, and the update that is made of it."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Array

from jax_cifar.backend.mesh import make_mesh
from jax_cifar.config import Config
from jax_cifar.data import Dataset
from jax_cifar.errors import check
from jax_cifar.models import frozen_parameters
from jax_cifar.models.network import Network
from jax_cifar.optim.rules import Hyper, constant_momentum, make_optimizer
from jax_cifar.training.keys import Purpose, purpose_key, run_key
from jax_cifar.training.steps import DeviceData, epoch_order, make_gradients, make_prepare


class Flow(NamedTuple):
    """One layer: a module with parameters of its own."""

    weights: float  # norm of its parameters
    gradient: float  # mean size of an entry of their gradient
    update: float  # norm of the update over that of the parameters; nan for parameters that are all zero


def gradient_flow(config: Config, network: Network, variables: Mapping[str, Any], dataset: Dataset) -> dict[str, Flow]:
    """Gradient and update of every layer on the first batch that a run would draw of these images, by the layer's path.

    The batch is augmented and mixed, and the loss the run's own. The update is what its rule makes of this gradient at
    the rate `optim.lr`, with nothing averaged over earlier updates: a run's own rate is near zero at its end.

    Raises:
      ConfigError: the run has fewer images than fill a batch, or code of its own that was not trusted.
    """
    size = min(config.train.batch_size, len(dataset)) // config.optim.accumulate * config.optim.accumulate
    check(size > 0, "optim.accumulate", config.optim.accumulate, f"there are {len(dataset)} images")
    # One device, as one batch is little.
    config = dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, batch_size=size),
        distributed=dataclasses.replace(config.distributed, devices=1),
    )
    key = run_key(config.train.seed)
    data = DeviceData(jnp.asarray(dataset.images), jnp.asarray(dataset.labels))
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    optimizer = make_optimizer(config.optim, params, frozen_parameters(network.model))
    optim = config.optim
    hyper = Hyper(*map(jnp.float32, (optim.lr, constant_momentum(optim), optim.weight_decay)))
    prepare, gradients = make_prepare(config, network, make_mesh(config)), make_gradients(network.model, config)

    @jax.jit
    def flow(params: Any, batch_stats: Any, data: DeviceData, key: Array) -> tuple[Any, Any]:
        start = jnp.int32(0)
        order = epoch_order(key, start, len(dataset), size)
        images, targets = prepare(data, order[0], start, start, key)
        grads, *_ = gradients(params, batch_stats, images, targets, purpose_key(key, Purpose.DROPOUT, start))
        updates, _ = optimizer.update(grads, optimizer.init(params), params, hyper=hyper)
        return grads, updates

    found = jax.device_get(flow(params, batch_stats, data, key))
    weights, grads, updates = (by_layer(tree) for tree in (jax.device_get(params), *found))
    return {name: _flow(weights[name], grads[name], updates[name]) for name in weights}


def by_layer(params: Any) -> dict[str, np.ndarray]:
    """All parameters of every module that has some of its own, in a row, by the module's path."""
    layers: dict[str, list[np.ndarray]] = {}
    leaves: dict[str, Any] = dict(flatten_dict(params, sep="/"))
    for path in sorted(leaves):
        layers.setdefault(path.rpartition("/")[0], []).append(np.ravel(np.asarray(leaves[path], np.float64)))
    return {name: np.concatenate(values) for name, values in layers.items()}


def _flow(weights: np.ndarray, grads: np.ndarray, updates: np.ndarray) -> Flow:
    size = float(np.linalg.norm(weights))
    return Flow(size, float(np.abs(grads).mean()), float(np.linalg.norm(updates)) / size if size else np.nan)
