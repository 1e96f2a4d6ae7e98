"""What is compiled: from the state and the images on the device to the next state. Pure functions throughout."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Num, PRNGKeyArray, UInt8

from jax_cifar.augment import SampleInfo, compose, make_mixer
from jax_cifar.backend.images import Parts, take_images
from jax_cifar.backend.mesh import AnyMesh, split_batch
from jax_cifar.config import Config
from jax_cifar.evaluation.metrics import Sums, add_sums, batch_metrics
from jax_cifar.models import hold_frozen
from jax_cifar.models.layers import statistics_dtype
from jax_cifar.models.network import Network
from jax_cifar.optim.rules import Hyper, global_norm, update_ema
from jax_cifar.training.keys import Purpose, purpose_key
from jax_cifar.training.losses import cross_entropy
from jax_cifar.training.state import PyTree, TrainState


class DeviceData(NamedTuple):
    """The training images as they lie on the devices, once for the whole run."""

    images: UInt8[Array, "n height width channel"] | Parts
    labels: Int[Array, " n"]


TrainStep = Callable[[TrainState, Array, Array, Hyper, PRNGKeyArray], tuple[TrainState, Sums]]


def make_loss(model: nn.Module, config: Config) -> Callable[..., tuple[Array, Any]]:
    """`(params, batch_stats, images, targets, key) -> mean loss, (new batch_stats, sums)` of a forward pass."""
    loss = config.train.loss or partial(cross_entropy, label_smoothing=config.train.label_smoothing)

    def loss_fn(params: PyTree, batch_stats: PyTree, images: Array, targets: Array, key: PRNGKeyArray):
        variables = {"params": hold_frozen(model, params), "batch_stats": batch_stats}
        logits, updated = model.apply(variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": key})
        with jax.named_scope("loss"):
            losses = loss(logits.astype(statistics_dtype(logits.dtype)), targets)
        return jnp.mean(losses), (updated.get("batch_stats", {}), batch_metrics(logits, targets, losses))

    return loss_fn


def make_gradients(model: nn.Module, config: Config, differentiate: bool = True) -> Callable[..., Any]:
    """`(params, batch_stats, images, targets, key) -> gradients, new batch_stats, sums` of a whole batch.

    The batch is split into `optim.accumulate` parts, one forward and backward pass each: BatchNorm sees the small part,
    the gradient is the mean over the whole batch. Without `differentiate` the loss stands where the gradients do.
    """
    parts, loss_fn = config.optim.accumulate, make_loss(model, config)
    grad_fn = jax.grad(loss_fn, has_aux=True) if differentiate else loss_fn

    def gradients(params: PyTree, first_stats: PyTree, images: Array, targets: Array, key: PRNGKeyArray):
        if parts == 1:
            grads, (batch_stats, sums) = grad_fn(params, first_stats, images, targets, key)
            return grads, batch_stats, sums

        def one_part(carry: tuple[PyTree, PyTree], part: tuple[Array, Array, Array]):
            total, batch_stats = carry
            images, targets, i = part
            part_key = jax.random.fold_in(key, i)
            grads, (batch_stats, sums) = grad_fn(params, batch_stats, images, targets, part_key)
            return (jax.tree.map(jnp.add, total, grads), batch_stats), sums

        # Every part takes each parts-th image, so that a batch spread over devices stays where it is.
        def split(x: Array) -> Array:
            return jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)

        zeros = jax.tree.map(jnp.zeros_like, params) if differentiate else jnp.float32(0)
        # On a CPU a convolution inside a loop can leave XLA's fast path, so the loop is unrolled there.
        unroll = parts if jax.default_backend() == "cpu" else 1
        (total, batch_stats), sums = jax.lax.scan(
            one_part, (zeros, first_stats), (split(images), split(targets), jnp.arange(parts)), unroll=unroll
        )
        return jax.tree.map(lambda g: g / parts, total), batch_stats, jax.tree.map(lambda s: s.sum(axis=0), sums)

    return gradients


def make_train_step(model: nn.Module, optimizer: optax.GradientTransformationExtraArgs, config: Config) -> TrainStep:
    """One update from normalised images [batch, height, width, channel] and labels [batch] or soft [batch, classes].

    The sums hold loss, correct and count over the images, and what `watch` tells of the update. With
    `train.skip_nonfinite` an update that is not finite is left out, see `skip`.
    """
    limit, gradients = config.train.skip_nonfinite, make_gradients(model, config)

    def train_step(
        state: TrainState,
        images: Float[Array, "batch height width channel"],
        targets: Num[Array, "batch *classes"],
        hyper: Hyper,
        key: PRNGKeyArray,
    ) -> tuple[TrainState, Sums]:
        grads, batch_stats, sums = gradients(state.params, state.batch_stats, images, targets, key)
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params, hyper=hyper)
            params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            done = state.step if config.optim.ema_warmup else None
            new = {"params": params, "batch_stats": batch_stats}
            ema = update_ema(ema, new, config.optim.ema_decay, done)
        new_state = TrainState(state.step + 1, params, batch_stats, opt_state, ema, state.skipped)
        sums |= watch(grads, updates)
        return skip(state, new_state, sums, limit) if limit else (new_state, sums)

    return train_step


def watch(grads: PyTree, updates: PyTree) -> dict[str, Float[Array, ""]]:
    """What tells how an update fares, to be summed over updates.

    `grad_norm`: norm of the gradient before clipping. `update_norm`: norm of what is added to the parameters.
    `nonfinite`: share of the gradient's entries that are not finite.
    """
    with jax.named_scope("gradient_norm"):
        leaves, norm = jax.tree.leaves(grads), global_norm(grads)

    def nonfinite() -> Array:
        count = sum(jnp.sum(~jnp.isfinite(g), dtype=jnp.float32) for g in leaves)
        return jnp.asarray(count / sum(g.size for g in leaves), jnp.float32)

    # A finite norm has finite entries, so a CPU saves itself reading them again; a GPU would have to ask the host.
    if jax.default_backend() == "cpu":
        share = jax.lax.cond(jnp.isfinite(norm), lambda: jnp.float32(0), nonfinite)
    else:
        share = nonfinite()
    with jax.named_scope("update_norm"):
        return {"grad_norm": norm, "update_norm": global_norm(updates), "nonfinite": share}


def skip(state: TrainState, new_state: TrainState, sums: Sums, limit: int) -> tuple[TrainState, Sums]:
    """The new state and its sums; where loss, gradient or update are not finite, the old one, bit for bit, a step on.

    The sums of such an update are zeros, but for `nonfinite`; `skipped` counts it. After `limit` of them in a row
    nothing changes any more: the run ends, wherever its calls do.
    """
    in_a_row: Any = state.skipped  # no None where updates are skipped
    finite = jnp.stack([jnp.isfinite(sums[name]) for name in ("loss", "grad_norm", "update_norm")]).all()
    good = finite & (in_a_row < limit)
    kept = dataclasses.replace(state, step=new_state.step, skipped=jnp.minimum(in_a_row + 1, limit))
    new_state = dataclasses.replace(new_state, skipped=jnp.zeros_like(in_a_row))
    counted = {name: jnp.where(good, value, 0) for name, value in sums.items()}
    counted |= {"nonfinite": sums["nonfinite"], "skipped": (~good).astype(jnp.float32)}
    return jax.tree.map(partial(jnp.where, good), new_state, kept), counted


def zero_sums(config: Config) -> Sums:
    """The sums before the first image of an interval."""
    names = ("loss", "correct", "count", "grad_norm", "update_norm", "nonfinite")
    zero = jax.device_put(np.float32(0))  # for which nothing is compiled
    return dict.fromkeys((*names, "skipped") if config.train.skip_nonfinite else names, zero)


def epoch_order(key: PRNGKeyArray, epoch: Int[Array, ""], n: int, batch_size: int) -> Int[Array, "steps batch"]:
    """The images of every step of an epoch: a permutation cut into whole batches; the rest waits for another epoch."""
    steps = n // batch_size
    permutation = jax.random.permutation(purpose_key(key, Purpose.ORDER, epoch), n)
    return permutation[: steps * batch_size].reshape(steps, batch_size)


def gather(
    data: DeviceData, index: Int[Array, " batch"], mesh: AnyMesh
) -> tuple[Float[Array, "batch height width channel"], Int[Array, " batch"]]:
    """The images of a batch, from 0 to 1, and their labels, spread over the devices."""
    whole, index = index, jax.lax.with_sharding_constraint(index, split_batch(mesh))
    images = take_images(data.images, whole, mesh) if isinstance(data.images, Parts) else data.images[index]
    return images.astype(jnp.float32) / 255, data.labels[index]


def make_prepare(config: Config, network: Network, mesh: AnyMesh):
    """Gathering, augmenting and mixing one batch, and what the network sees of it, all inside the compiled step."""
    augment, mixer = compose(config.augment), make_mixer(config.mix)

    def prepare(
        data: DeviceData, index: Int[Array, " batch"], epoch: Int[Array, ""], step: Int[Array, ""], key: PRNGKeyArray
    ) -> tuple[Float[Array, "batch height width channel"], Num[Array, "batch *classes"]]:
        images, targets = gather(data, index, mesh)
        with jax.named_scope("augment"):
            images = augment(purpose_key(key, Purpose.AUGMENT, step), images, SampleInfo(index, epoch))
        if mixer is not None:
            soft = jax.nn.one_hot(targets, network.spec.num_classes)
            images, targets = mixer(purpose_key(key, Purpose.MIX, step), images, soft)
        return network.inputs(images), targets

    return prepare


def make_train_steps(
    network: Network,
    optimizer: optax.GradientTransformationExtraArgs,
    config: Config,
    mesh: AnyMesh,
) -> Callable[..., tuple[TrainState, Sums]]:
    """`train_steps(state, sums, data, order, tables, key, count)`: `count` updates of one epoch in one call.

    `count` may be a Python integer, known when compiling, or an array: then one program does any number of updates.
    `order` is the epoch's [steps, batch]; `tables` a `Hyper` of arrays with an entry for every update of the run, so
    that one compiled program serves all rates. Returns the new state and the sums, added to those given.
    """
    train_step = make_train_step(network.model, optimizer, config)
    prepare = make_prepare(config, network, mesh)

    def train_steps(
        state: TrainState,
        sums: Sums,
        data: DeviceData,
        order: Int[Array, "steps batch"],
        tables: Hyper,
        key: PRNGKeyArray,
        count: int | Int[Array, ""],
    ) -> tuple[TrainState, Sums]:
        def body(_: Int[Array, ""] | int, carry: tuple[TrainState, Sums]) -> tuple[TrainState, Sums]:
            state, sums = carry
            epoch, position = jnp.divmod(state.step, order.shape[0])
            images, targets = prepare(data, order[position], epoch, state.step, key)
            hyper = jax.tree.map(lambda table: table[state.step], tables)
            dropout_key = purpose_key(key, Purpose.DROPOUT, state.step)
            state, new_sums = train_step(state, images, targets, hyper, dropout_key)
            return state, add_sums(sums, new_sums)

        if isinstance(count, int) and count == 1:
            return body(0, (state, sums))
        return jax.lax.fori_loop(0, count, body, (state, sums))

    return train_steps
