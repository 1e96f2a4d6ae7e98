"""The parts that update rules are chained from, equal to PyTorch's, with learning rate, momentum and decay as data.

The three numbers that schedules and sweeps change come in as a `Hyper` with every update, so one compiled step serves
all settings, and `vmap` over them trains several models. optax's own rules take them as they are built.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree, ScalarLike

Rule = optax.GradientTransformationExtraArgs


class Hyper(NamedTuple):
    """The numbers of one update, scalars. For adam and adamw `momentum` is b1."""

    lr: ScalarLike
    momentum: ScalarLike
    weight_decay: ScalarLike


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


def rule(init: Callable, update: Callable) -> Rule:
    """`update` takes (updates, state, params, hyper) and returns (updates, state)."""

    def with_extra_args(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        return update(updates, state, params, extra_args["hyper"])

    return Rule(init, with_extra_args)


def stateless(update: Callable) -> Rule:
    """`update` takes (updates, params, hyper) and returns updates."""

    def with_state(updates, state, params, hyper):
        return update(updates, params, hyper), state

    return rule(lambda params: optax.EmptyState(), with_state)


def path_name(path: Any) -> str:
    """A leaf's path as multipliers, frozen parts and checkpoints write it: "group1/bn1/bias"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def map_named(function: Callable, tree: PyTree, *rest: PyTree) -> PyTree:
    """`jax.tree.map` of a function that is given the leaf's path first."""
    return jax.tree_util.tree_map_with_path(lambda path, *leaves: function(path_name(path), *leaves), tree, *rest)


def global_norm(tree: PyTree) -> Float[Array, ""]:
    """Euclidean norm of all leaves taken as one vector, in float32 whatever the leaves (float64 leaves: float64)."""
    return optax.tree_utils.tree_norm(
        jax.tree.map(lambda x: x if x.dtype == jnp.float64 else x.astype(jnp.float32), tree)
    )


def clip_by_global_norm(max_norm: float) -> Rule:
    """Times min(1, max_norm / (norm + 1e-6)), as `torch.nn.utils.clip_grad_norm_`; optax has no 1e-6."""

    def update(updates, params, hyper):
        factor = jnp.minimum(max_norm / (global_norm(updates) + 1e-6), 1)
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), updates)

    return stateless(update)


def add_weight_decay(multipliers: Mapping[str, float]) -> Rule:
    """Add hyper.weight_decay * multiplier * parameter: coupled decay before the momentum, decoupled after it."""

    def update(updates, params, hyper):
        def add(name, g, p):
            return g + multipliers.get(name, 1.0) * jnp.asarray(hyper.weight_decay, p.dtype) * p

        return map_named(add, updates, params)

    return stateless(update)


def scale_by_lr(multipliers: Mapping[str, float]) -> Rule:
    """Times -hyper.lr * multiplier: the last stage, which turns a direction into the update to add."""

    def update(updates, params, hyper):
        return map_named(lambda name, u: -multipliers.get(name, 1.0) * jnp.asarray(hyper.lr, u.dtype) * u, updates)

    return stateless(update)


def momentum(nesterov: bool, fixed: float | None = None) -> Rule:
    """PyTorch's SGD: buffer = m * buffer + g, from 0; the direction is the buffer, or g + m * buffer (Nesterov).

    m is hyper.momentum unless `fixed` is given.
    """

    def update(updates, state, params, hyper):
        return optax.trace(hyper.momentum if fixed is None else fixed, nesterov).update(updates, state)

    return rule(optax.trace(0.0, nesterov).init, update)


def adam(b2: float, eps: float) -> Rule:
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
            # expm1 keeps 1 - b2**count exact in float32, where optax's 1 - 0.999 has already lost four digits.
            steps = count.astype(m.dtype)
            correction1 = -jnp.expm1(steps * jnp.log(jnp.asarray(hyper.momentum, m.dtype)))
            correction2 = -jnp.expm1(steps * log_b2)
            return m / correction1 / (jnp.sqrt(v) / jnp.sqrt(correction2) + eps)

        mean = jax.tree.map(to_mean, state.mean, updates)
        square = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.square, updates)
        return jax.tree.map(direction, mean, square), AdamState(count, mean, square)

    return rule(init, update)


def adagrad(eps: float) -> Rule:
    """Adagrad's direction (Duchi et al. 2011) as in PyTorch: g / (sqrt(sum of g**2 from 0) + eps).

    optax's adds eps under the root.
    """

    def init(params):
        return AdagradState(jax.tree.map(jnp.zeros_like, params))

    def update(updates, state, params, hyper):
        total = jax.tree.map(lambda s, g: s + g * g, state.total, updates)
        return jax.tree.map(lambda g, s: g / (jnp.sqrt(s) + eps), updates, total), AdagradState(total)

    return rule(init, update)


def lookahead(inner: Rule, every: int, alpha: float) -> Rule:
    """Lookahead (Zhang et al. 2019): every so many updates slow += alpha * (fast - slow), then fast = slow.

    The parameters that training carries are the fast weights; the slow ones start as a copy of them. optax's carries
    both as the parameters, which evaluation, checkpoints and averages would have to know.
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

    return rule(init, update)
