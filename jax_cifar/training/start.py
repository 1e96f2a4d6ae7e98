"""Starting a run from the weights of another: whole, or all but the head where the classes differ."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jax_cifar.config import Config
from jax_cifar.errors import CheckpointError, ConfigError
from jax_cifar.files import expand, sha256_of_json
from jax_cifar.models import init_variables
from jax_cifar.models.network import Network
from jax_cifar.run.folder import CHECKPOINTS
from jax_cifar.run.manifest import sha256
from jax_cifar.run.reading import read_variables
from jax_cifar.training.keys import Purpose, purpose_key, run_key
from jax_cifar.training.state import PyTree

Shape = tuple[int, ...]


def starting_weights(
    init_from: str | Path | Mapping[str, PyTree] | None, network: Network, config: Config, say: Callable[[str], None]
) -> dict[str, PyTree] | None:
    """The weights that a run starts from, or None for its network's own start; says in one line what was taken.

    Every parameter and statistic of the other run's newest checkpoint is taken over (the averaged ones where it
    averaged), or of the variables that are given in place of its folder. Arrays that differ in nothing but the number
    of classes, the last axis, are the head: those are fresh, as the run's own seed makes them. All take the types of
    the network: weights that were kept in half precision are trained in float32.

    Raises:
      CheckpointError: there is no checkpoint.
      ConfigError: it belongs to another network; the message names what differs.
    """
    if init_from is None:
        return None
    if isinstance(init_from, str | Path):
        found = read_variables(expand(init_from) / CHECKPOINTS)
        if found is None:
            raise CheckpointError(f"--init-from {init_from}: there is no checkpoint. Name the folder of a run.")
        theirs, name, origin = _leaves(found[1]), str(init_from), f"step {found[0]:,} of {init_from}"
    else:
        theirs, name, origin = _leaves(init_from), "(weights given)", "the weights given"
    sample = network.inputs(jnp.zeros((1, *network.spec.image_shape), jnp.float32))
    ours = _leaves(init_variables(network.model, purpose_key(run_key(config.train.seed), Purpose.INIT), sample))
    head = differing_head(theirs, ours, network.spec.num_classes, name)
    kept = f"all but the head ({', '.join(sorted(head))}), whose classes differ" if head else "all weights"
    say(f"starting from {origin}: {kept}")
    taken = {name: ours[name] if name in head else jnp.asarray(theirs[name], ours[name].dtype) for name in ours}
    return {"params": {}, "batch_stats": {}} | unflatten_dict(taken, sep="/")


def differing_head(theirs: dict[str, Any], ours: dict[str, Any], classes: int, init_from: str) -> set[str]:
    """The paths at which two networks differ in their number of classes only.

    Raises `ConfigError` where they differ in anything else.
    """
    shapes = {name: (_shape(theirs, name), _shape(ours, name)) for name in theirs.keys() | ours.keys()}
    differing = {name: pair for name, pair in shapes.items() if pair[0] != pair[1]}
    head = {name for name, pair in differing.items() if _is_head(*pair, classes)}
    others = sorted(differing.keys() - head)
    if others:
        shown = ", ".join(f"{name} {differing[name][0]} there, {differing[name][1]} here" for name in others[:3])
        raise ConfigError(f"--init-from {init_from} holds another network: {shown}. Give the same model section.")
    return head


def checksum(variables: dict[str, PyTree]) -> str:
    """SHA-256 of weights and statistics, by which a run knows again what it was begun from."""
    return sha256_of_json({path: sha256(np.asarray(leaf)) for path, leaf in sorted(_leaves(variables).items())})


def _leaves(variables: Mapping[str, PyTree]) -> dict[str, Any]:
    return dict(flatten_dict(variables, sep="/"))


def _shape(leaves: dict[str, Any], name: str) -> Shape | None:
    return tuple(leaves[name].shape) if name in leaves else None


def _is_head(theirs: Shape | None, ours: Shape | None, classes: int) -> bool:
    return theirs is not None and ours is not None and theirs[:-1] == ours[:-1] and ours[-1] == classes
