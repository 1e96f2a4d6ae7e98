"""Update rules as chains of small transforms, equal to PyTorch's, with learning rate, momentum and decay as data.

`make_optimizer` builds the chain that a config asks for. The three numbers that schedules and sweeps change come in as
a `Hyper` with every update, so one compiled step serves all settings, and `vmap` over them trains several models.
"""

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int, PyTree, ScalarLike

from jax_cifar.config import OptimConfig
from jax_cifar.errors import ConfigError
from jax_cifar.optim import muon

Transform = optax.GradientTransformationExtraArgs


class Hyper(NamedTuple):
    """The numbers of one update, scalars. For adam and adamw `momentum` is b1."""

    lr: ScalarLike
    momentum: ScalarLike
    weight_decay: ScalarLike


class MomentumState(NamedTuple):
    buffer: PyTree


class AdamState(NamedTuple):
    count: Int[Array, ""]
    mean: PyTree
    square: PyTree


class AdagradState(NamedTuple):
    total: PyTree


class LookaheadState(NamedTuple):
    count: Int[Array, ""]
    slow: PyTree
    inner: PyTree


def make_optimizer(config: OptimConfig, params: PyTree, frozen: tuple[str, ...] = ()) -> Transform:
    """Build the update rule of `config` for parameters like `params` (nested dicts; only paths and ranks are used).

    `tx.update(grads, state, params, hyper=Hyper(...))` gives the updates to add. Parameters whose "/"-joined path
    matches a regular expression of `frozen` get an update of exactly zero, have no state and do not count for clipping.
    Weight decay reaches every other parameter, biases and norms too, as in PyTorch. Gradients are clipped before decay
    is added. Raises `ConfigError` if a pattern of `frozen` or of the multipliers matches no parameter.
    """
    ranks = {_name(path): jnp.ndim(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    decay = _match(config.decay_multipliers, ranks, "optim.decay_multipliers")
    rate = _match(config.lr_multipliers, ranks, "optim.lr_multipliers")
    still = _match([(pattern, 0.0) for pattern in frozen], ranks, "frozen")
    trained = {name: rank for name, rank in ranks.items() if name not in still}
    rule = _rule(config, trained, rate, decay)
    if config.clip_norm is not None:
        rule = optax.chain(clip_by_global_norm(config.clip_norm), rule)
    if config.lookahead_every:
        rule = lookahead(rule, config.lookahead_every, config.lookahead_alpha)
    return on_parts([(trained, rule)])


def constant_momentum(config: OptimConfig) -> float:
    """What `Hyper.momentum` is unless a schedule cycles it: b1 for adam and adamw, momentum for the others."""
    return config.b1 if config.name in ("adam", "adamw") else config.momentum


def global_norm(tree: PyTree) -> Float[Array, ""]:
    """Euclidean norm of all leaves taken as one vector, in float32 whatever the leaves (float64 leaves: float64)."""
    leaves = [x if x.dtype == jnp.float64 else x.astype(jnp.float32) for x in jax.tree.leaves(tree)]
    return jnp.sqrt(jnp.sum(jnp.stack([jnp.sum(x * x) for x in leaves])))


def update_ema(ema: PyTree, new: PyTree, decay: ScalarLike) -> PyTree:
    """Moving average decay * ema + (1 - decay) * new, to be started as a copy of the initial weights.

    No correction for that start: as timm's ModelEmaV2, and as PyTorch's `AveragedModel` with `get_ema_multi_avg_fn`
    if that is fed the initial weights first.
    """
    return jax.tree.map(lambda e, x: e + jnp.asarray(1 - decay, e.dtype) * (x - e), ema, new)


def _rule(
    config: OptimConfig, ranks: Mapping[str, int], rate: Mapping[str, float], decay: Mapping[str, float]
) -> Transform:
    add_decay, by_rate = add_weight_decay(decay), scale_by_lr(rate)
    match config.name:
        case "sgd":
            return optax.chain(add_decay, momentum(config.nesterov), by_rate)
        case "adam":
            return optax.chain(add_decay, adam(config.b2, config.eps), by_rate)
        case "adamw":
            return optax.chain(adam(config.b2, config.eps), add_decay, by_rate)
        case "adagrad":
            return optax.chain(add_decay, adagrad(config.eps), by_rate)
        case "muon":
            return _muon(config, ranks, rate, decay)


def _muon(
    config: OptimConfig, ranks: Mapping[str, int], rate: Mapping[str, float], decay: Mapping[str, float]
) -> Transform:
    """Muon for convolution kernels; for all else SGD with Nesterov's momentum, its rate a fixed multiple of Muon's.

    The kernels' decay is decoupled, that of all else coupled, as PyTorch's Muon and SGD have it.
    """
    kernels = [name for name, rank in ranks.items() if rank == 4]
    others = [name for name, rank in ranks.items() if rank != 4]
    aux_rate = {name: rate.get(name, 1.0) * config.aux_lr / config.lr for name in others}
    aux = optax.chain(add_weight_decay(decay), momentum(True, config.aux_momentum), scale_by_lr(aux_rate))
    return on_parts([(kernels, optax.chain(momentum(True), muon_step(rate, decay))), (others, aux)])


def _transform(init: Callable, update: Callable) -> Transform:
    """`update` takes (updates, state, params, hyper) and returns (updates, state)."""

    def with_extra_args(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        return update(updates, state, params, extra_args["hyper"])

    return Transform(init, with_extra_args)


def _stateless(update: Callable) -> Transform:
    """`update` takes (updates, params, hyper) and returns updates."""

    def with_state(updates, state, params, hyper):
        return update(updates, params, hyper), state

    return _transform(lambda params: optax.EmptyState(), with_state)


def clip_by_global_norm(max_norm: float) -> Transform:
    """Times min(1, max_norm / (norm + 1e-6)), as `torch.nn.utils.clip_grad_norm_`; optax has no 1e-6."""

    def update(updates, params, hyper):
        factor = jnp.minimum(max_norm / (global_norm(updates) + 1e-6), 1)
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), updates)

    return _stateless(update)


def add_weight_decay(multipliers: Mapping[str, float]) -> Transform:
    """Add hyper.weight_decay * multiplier * parameter: coupled decay before the momentum, decoupled after it."""

    def update(updates, params, hyper):
        def add(name, g, p):
            return g + multipliers.get(name, 1.0) * jnp.asarray(hyper.weight_decay, p.dtype) * p

        return _map_named(add, updates, params)

    return _stateless(update)


def scale_by_lr(multipliers: Mapping[str, float]) -> Transform:
    """Times -hyper.lr * multiplier: the last stage, which turns a direction into the update to add."""

    def update(updates, params, hyper):
        return _map_named(lambda name, u: -multipliers.get(name, 1.0) * jnp.asarray(hyper.lr, u.dtype) * u, updates)

    return _stateless(update)


def momentum(nesterov: bool, fixed: float | None = None) -> Transform:
    """PyTorch's SGD: buffer = m * buffer + g, from 0; the direction is the buffer, or g + m * buffer (Nesterov).

    m is hyper.momentum unless `fixed` is given.
    """

    def init(params):
        return MomentumState(jax.tree.map(jnp.zeros_like, params))

    def update(updates, state, params, hyper):
        m = hyper.momentum if fixed is None else fixed

        def accumulate(g, b):
            return g + jnp.asarray(m, g.dtype) * b

        buffer = jax.tree.map(accumulate, updates, state.buffer)
        return jax.tree.map(accumulate, updates, buffer) if nesterov else buffer, MomentumState(buffer)

    return _transform(init, update)


def adam(b2: float, eps: float) -> Transform:
    """Adam's direction (Kingma and Ba 2015), with PyTorch's eps after the bias correction.

    b1 is hyper.momentum; as in PyTorch the correction uses the present b1 even where earlier updates used another.
    """
    log_b2 = math.log(b2) if b2 > 0 else -math.inf

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return AdamState(jnp.zeros((), jnp.int32), zeros, jax.tree.map(jnp.zeros_like, params))

    def update(updates, state, params, hyper):
        count = state.count + 1

        def to_mean(m, g):
            return m + jnp.asarray(1 - hyper.momentum, g.dtype) * (g - m)

        def direction(m, v):
            # expm1 keeps 1 - b2**count exact in float32, where 1 - 0.999 has already lost four digits.
            steps = count.astype(m.dtype)
            correction1 = -jnp.expm1(steps * jnp.log(jnp.asarray(hyper.momentum, m.dtype)))
            correction2 = -jnp.expm1(steps * log_b2)
            return m / correction1 / (jnp.sqrt(v) / jnp.sqrt(correction2) + eps)

        mean = jax.tree.map(to_mean, state.mean, updates)
        square = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.square, updates)
        return jax.tree.map(direction, mean, square), AdamState(count, mean, square)

    return _transform(init, update)


def adagrad(eps: float) -> Transform:
    """Adagrad's direction (Duchi et al. 2011) as in PyTorch: g / (sqrt(sum of g**2 from 0) + eps)."""

    def init(params):
        return AdagradState(jax.tree.map(jnp.zeros_like, params))

    def update(updates, state, params, hyper):
        total = jax.tree.map(lambda s, g: s + g * g, state.total, updates)
        return jax.tree.map(lambda g, s: g / (jnp.sqrt(s) + eps), updates, total), AdagradState(total)

    return _transform(init, update)


def muon_step(rate: Mapping[str, float], decay: Mapping[str, float]) -> Transform:
    """Orthogonalise the kernels' directions to O, renormalise the kernels, decay and step: s p (1 - lr wd) - lr O.

    s gives p the Frobenius norm sqrt(out), and O is not rescaled by its shape: the conventions of airbench94_muon.
    """

    def update(updates, params, hyper):
        leaves, structure = jax.tree.flatten(updates)
        orthogonal = jax.tree.unflatten(structure, muon.orthogonalise(leaves))

        def step(name, o, p):
            lr = rate.get(name, 1.0) * jnp.asarray(hyper.lr, p.dtype)
            shrink = 1 - lr * decay.get(name, 1.0) * jnp.asarray(hyper.weight_decay, p.dtype)
            return (muon.renormalising_factor(p) * shrink - 1) * p - lr * o

        return _map_named(step, orthogonal, params)

    return _stateless(update)


def lookahead(inner: Transform, every: int, alpha: float) -> Transform:
    """Lookahead (Zhang et al. 2019): every so many updates slow += alpha * (fast - slow), then fast = slow.

    The parameters that training carries are the fast weights; the slow ones start as a copy of them.
    """

    def init(params):
        return LookaheadState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params), inner.init(params))

    def update(updates, state, params, hyper):
        updates, inner_state = inner.update(updates, state.inner, params, hyper=hyper)
        count = state.count + 1
        now = count % every == 0

        def to_slow(slow, p, u):
            return jnp.where(now, slow + alpha * (p + u - slow), slow)

        slow = jax.tree.map(to_slow, state.slow, params, updates)
        updates = jax.tree.map(lambda u, s, p: jnp.where(now, s - p, u), updates, slow, params)
        return updates, LookaheadState(count, slow, inner_state)

    return _transform(init, update)


def on_parts(parts: Sequence[tuple[Collection[str], Transform]]) -> Transform:
    """Give each named set of parameters its own transform; parameters in no set get zeros and have no state."""
    parts = [(frozenset(names), inner) for names, inner in parts if names]

    def init(params):
        return tuple(inner.init(_select(params, names)) for names, inner in parts)

    def update(updates, state, params, hyper):
        done, states = {}, []
        for (names, inner), old in zip(parts, state, strict=True):
            part, new = inner.update(_select(updates, names), old, _select(params, names), hyper=hyper)
            done |= flatten_dict(part, sep="/")
            states.append(new)
        return _map_named(lambda name, u: done[name] if name in done else jnp.zeros_like(u), updates), tuple(states)

    return _transform(init, update)


def _select(tree: PyTree, names: Collection[str]) -> PyTree:
    flat = flatten_dict(tree, sep="/")
    return unflatten_dict({name: leaf for name, leaf in flat.items() if name in names}, sep="/")


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _map_named(function: Callable, tree: PyTree, *rest: PyTree) -> PyTree:
    return jax.tree_util.tree_map_with_path(lambda path, *leaves: function(_name(path), *leaves), tree, *rest)


def _match(rules: Sequence[tuple[str, float]], names: Collection[str], field: str) -> dict[str, float]:
    """The factor of every name that a rule matches, by the first such rule."""
    factors: dict[str, float] = {}
    for pattern, factor in rules:
        matching = [name for name in names if re.search(pattern, name)]
        if not matching:
            some = ", ".join(list(names)[:4])
            raise ConfigError(f"{field}: {pattern!r} matches no parameter; their paths look like {some}.")
        factors = {name: factor for name in matching} | factors
    return factors
