"""Structured pruning: the filters of smallest norm go, and with them their norms and what the next layer reads of them.

`choose` says which filters stay. `mask` zeroes the others, as a reference; `remove` takes them out, and `narrowed` is
the configuration of the smaller network, which computes the same. Within a chain of layers only
(`jax_cifar.config.chains`): the stream of a residual network keeps its channels.

Parameters and statistics are nested dictionaries of NumPy arrays, and what is given is never changed.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Bool, Float, Float64

from jax_cifar.config import ModelConfig
from jax_cifar.config.chains import chains
from jax_cifar.errors import CheckpointError, check

Scope = Literal["layer", "global"]
Kept = dict[str, Bool[np.ndarray, "filters"]]  # by the layer's path: which of its filters stay
Variables = Mapping[str, Any]


def filter_norms(kernel: Float[np.ndarray, "*inputs filters"], order: float) -> Float64[np.ndarray, "filters"]:
    """The L_n norm of every filter of a kernel, over all its inputs; order n is above 0, infinity for the largest."""
    sizes = np.abs(np.asarray(kernel, np.float64)).reshape(-1, kernel.shape[-1])
    largest = sizes.max(axis=0)
    if np.isinf(order):
        return largest
    # Of shares of the largest, so that no power overflows.
    shares = sizes / np.where(largest > 0, largest, 1.0)
    return largest * (shares**order).sum(axis=0) ** (1 / order)


def choose(
    config: ModelConfig,
    variables: Variables,
    amount: float,
    scope: Scope = "layer",
    order: float = 2,
    of: Mapping[str, int] | None = None,
) -> Kept:
    """Which filters stay of a trained network when `amount` of them goes.

    In a layer of n filters `round(amount * n)` go (Python's `round`: half to even), those of smallest norm, as
    `torch.nn.utils.prune.ln_structured(module, "weight", amount, order, dim=0)`; of equal ones the last. With scope
    "global" that number is of all layers together. Norms are then compared after division by their layer's root mean
    square, since they depend on how many inputs a filter has (as Molchanov et al., arXiv 1611.06440, section 2.2), and
    the best filter of every layer stays.

    Args:
        config: the network, one that ships.
        variables: its {"params": ..., "batch_stats": ...}.
        amount: share of the filters that goes, between 0 and 1.
        scope: of each layer, or of all together.
        order: n of the norm L_n.
        of: filters of each layer that `amount` is a share of, where some have gone before; default: those there are.

    Raises:
        ConfigError: a layer would lose all its filters, or no layer any; the network has group norms; a bad argument.
        CheckpointError: the parameters are not this network's, or not finite.
    """
    check(0 < amount < 1, "amount", amount, "it must be greater than 0 and less than 1")
    check(order > 0, "norm", order, "it must be greater than 0, such as 1, 2 or inf")
    expected = "groups of channels share a mean and a variance, so that no filter can go alone: train with norm batch"
    check(config.norm != "group", "model.norm", config.norm, expected)
    norms = _norms(config, variables, order)
    of = {layer: len(values) for layer, values in norms.items()} if of is None else of
    gone = {layer: of[layer] - len(values) for layer, values in norms.items()}
    if scope == "layer":
        kept = {
            layer: _largest(values, _remaining(layer, of[layer], amount, gone[layer]))
            for layer, values in norms.items()
        }
    else:
        kept = _largest_of_all(norms, round(amount * sum(of.values())) - sum(gone.values()))
    removed = sum((~stays).sum() for stays in kept.values()) + sum(gone.values())
    check(removed > 0, "amount", amount, "no layer has so many filters that one would go: remove more")
    return kept


def mask(config: ModelConfig, variables: Variables, kept: Kept) -> dict[str, Any]:
    """The variables with the filters that go, and scale and bias of their norms, zeroed: such a filter's output is 0.

    Without the norms' bias and scale a masked filter would still put out a constant.
    """
    leaves = _leaves(variables)
    for path, layer in _owners(config, leaves).items():
        if path.startswith("params/"):
            leaves[path] = leaves[path] * kept[layer].astype(leaves[path].dtype)
    return _tree(leaves)


def remove(config: ModelConfig, variables: Variables, kept: Kept) -> dict[str, Any]:
    """The variables of `narrowed(config, kept)`, whose logits are those of the masked network."""
    leaves = _leaves(variables)
    for path, layer in _owners(config, leaves).items():
        leaves[path] = leaves[path][..., kept[layer]]
    for layer, reader in _pairs(config):
        path = f"params/{reader}/kernel"
        leaves[path] = _fewer_inputs(leaves[path], kept[layer])
    return _tree(leaves)


def narrowed(config: ModelConfig, kept: Kept) -> ModelConfig:
    """The configuration of the network without the filters that go."""
    return dataclasses.replace(config, channels=tuple((layer, int(stays.sum())) for layer, stays in kept.items()))


def _pairs(config: ModelConfig) -> list[tuple[str, str]]:
    """Every layer that filters may be taken from, with the layer that reads it."""
    return [pair for chain in chains(config.name, config.convs_per_group) for pair in itertools.pairwise(chain)]


def _norms(config: ModelConfig, variables: Variables, order: float) -> dict[str, Float64[np.ndarray, "filters"]]:
    params = dict(flatten_dict(variables["params"], sep="/"))
    norms = {}
    for layer, reader in _pairs(config):
        for path in (f"{layer}/kernel", f"{reader}/kernel"):
            if path not in params:
                raise CheckpointError(f"{path} is missing: the parameters are another network's.")
        norms[layer] = filter_norms(np.asarray(params[f"{layer}/kernel"]), order)
        if not np.isfinite(norms[layer]).all():
            raise CheckpointError(f"{layer}/kernel is not finite: the network diverged, and cannot be pruned.")
    return norms


def _remaining(layer: str, filters: int, amount: float, gone: int) -> int:
    """How many filters of a layer stay."""
    removed = round(amount * filters)
    expected = f"{layer} would lose all of its {filters} filters: remove less"
    check(removed < filters, "amount", amount, expected)
    return filters - max(removed, gone)


def _largest(norms: Float64[np.ndarray, "filters"], count: int) -> Bool[np.ndarray, "filters"]:
    """The `count` filters of largest norm; of equal ones the first."""
    stays = np.zeros(len(norms), bool)
    stays[np.argsort(-norms, kind="stable")[:count]] = True
    return stays


def _largest_of_all(norms: Mapping[str, Float64[np.ndarray, "filters"]], removed: int) -> Kept:
    """All filters but the `removed` ones of smallest norm relative to their layer; the best of every layer stays."""
    total, layers = sum(map(len, norms.values())), len(norms)
    expected = f"{removed} of {total} filters would go, and one has to stay in each of {layers} layers: remove less"
    check(removed <= total - layers, "amount", f"{removed} filters", expected)
    relative = {layer: values / (np.sqrt(np.mean(values**2)) or 1.0) for layer, values in norms.items()}
    for values in relative.values():
        values[values.argmax()] = np.inf
    stays = _largest(np.concatenate(list(relative.values())), total - max(removed, 0))
    ends = np.cumsum([len(values) for values in relative.values()])[:-1]
    return dict(zip(relative, np.split(stays, ends), strict=True))


def _owners(config: ModelConfig, leaves: Mapping[str, Any]) -> dict[str, str]:
    """By path, every array whose last axis counts the filters of a layer: its own, and those of its norm."""
    layers = {layer: layer for layer, _ in _pairs(config)}
    layers |= {layer.replace("conv", "bn"): layer for layer in layers}
    places = {path: path.partition("/")[2].rpartition("/")[0] for path in leaves}
    return {path: layers[place] for path, place in places.items() if place in layers}


def _fewer_inputs(
    kernel: Float[np.ndarray, "*positions inputs filters"], stays: Bool[np.ndarray, "channels"]
) -> Float[np.ndarray, "*positions fewer filters"]:
    """A kernel without the channels that go; a dense one may read them at many places, the channel counting fastest."""
    *positions, _, filters = kernel.shape
    return kernel.reshape(*positions, -1, len(stays), filters)[..., stays, :].reshape(*positions, -1, filters)


def _leaves(variables: Variables) -> dict[str, Any]:
    return {path: np.asarray(leaf) for path, leaf in flatten_dict(dict(variables), sep="/").items()}


def _tree(leaves: Mapping[str, Any]) -> dict[str, Any]:
    return {"params": {}, "batch_stats": {}} | unflatten_dict(dict(leaves), sep="/")
