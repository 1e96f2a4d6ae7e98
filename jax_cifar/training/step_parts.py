"""An update cut short: programs that do its first parts, the more of them the later it is cut."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int

from jax_cifar.config import Config
from jax_cifar.evaluation.metrics import Sums
from jax_cifar.models.network import Network
from jax_cifar.optim.rules import Hyper
from jax_cifar.training.keys import Purpose, purpose_key
from jax_cifar.training.state import TrainState
from jax_cifar.training.steps import DeviceData, gather, make_gradients, make_prepare

Part = Literal["input", "augmentation", "forward", "backward", "optimizer"]
PARTS: tuple[Part, ...] = get_args(Part)  # in the order of the step


def make_part(
    network: Network, optimizer: optax.GradientTransformationExtraArgs, config: Config, mesh: Mesh, last: Part
) -> Callable[..., Any]:
    """The step as `make_train_steps` has it, up to and with its part `last`; it returns all that this part makes."""
    prepare = make_prepare(config, network, mesh)
    forward, gradients = (make_gradients(network.model, config, differentiate=way) for way in (False, True))

    def part(state: TrainState, data: DeviceData, index: Array, epoch: Array, hyper: Hyper, key: Array) -> Any:
        if last == "input":
            return gather(data, index, mesh)
        images, targets = prepare(data, index, epoch, state.step, key)
        if last == "augmentation":
            return images, targets
        dropout_key = purpose_key(key, Purpose.DROPOUT, state.step)
        batch = (state.params, state.batch_stats, images, targets, dropout_key)
        if last == "forward":
            return forward(*batch)
        grads, batch_stats, sums = gradients(*batch)
        if last == "backward":
            return grads, batch_stats, sums
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, hyper=hyper)
        return optax.apply_updates(state.params, updates), opt_state, batch_stats, sums

    return part


def repeat(part: Callable[..., Any]) -> Callable[..., tuple[TrainState, Sums, Any]]:
    """`part` in a loop, called as what `make_train_steps` makes; of the state nothing changes but its step."""

    def steps(
        state: TrainState,
        sums: Sums,
        data: DeviceData,
        order: Int[Array, "steps batch"],
        tables: Hyper,
        key: Array,
        count: int | Int[Array, ""],
    ) -> tuple[TrainState, Sums, Any]:
        def body(i: Int[Array, ""] | int, _: Any) -> Any:
            # What is the same each time would be done once, before the loop: the state seems to depend on the round.
            now, step = jax.lax.optimization_barrier((state, state.step + i))
            epoch, position = jnp.divmod(step, order.shape[0])
            hyper = jax.tree.map(lambda table: table[step], tables)
            return part(dataclasses.replace(now, step=step), data, order[position], epoch, hyper, key)

        # All of a result goes from round to round, so that none of it is left out.
        start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(body, 0, None))
        results = jax.lax.fori_loop(0, count, body, start)
        ends = jax.tree.map(lambda leaf: leaf.reshape(-1)[:1], results)
        return dataclasses.replace(state, step=state.step + count), sums, ends

    return steps
