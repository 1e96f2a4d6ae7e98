"""An update rule of one's own: any function from a learning rate to an optax transformation."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from jax_cifar.config.modules import in_one_line
from jax_cifar.errors import ConfigError
from jax_cifar.optim.transforms import Hyper, Rule, rule


def own_rule(function: Callable[[Any], optax.GradientTransformation], params: PyTree) -> Rule:
    """The transformation that `function` makes of a learning rate, its rate `hyper.lr` of every update.

    It is made anew in every update, where the rate is a traced scalar: one compiled step serves all rates.

    Args:
        function: takes one argument, the rate; `optax.lion` is one, `functools.partial(optax.lion, b1=0.95)` another.
        params: only their structure, shapes and types are used, to try it out; nothing is computed.

    Raises:
        ConfigError: it fails, returns something else, keeps the rate in its state, or has a state or updates of
            changing shapes.
    """

    # Rules of optax's own multiply counts by floats, which raises where a program has asked JAX for strict promotion.
    @jax.numpy_dtype_promotion("standard")
    def init(params: PyTree) -> PyTree:
        # Copied, because Prodigy's holds the parameters themselves, and a buffer cannot be donated twice.
        return jax.tree.map(jnp.copy, _plain(_build(function, jnp.float32(1)).init(params)))

    @jax.numpy_dtype_promotion("standard")
    def update(updates: PyTree, state: PyTree, params: PyTree, hyper: Hyper) -> tuple[PyTree, PyTree]:
        built = _build(function, hyper.lr)
        # A fresh state says which of its leaves are keys; of the rest of it nothing is read, or computed.
        updates, state = built.update(updates, jax.tree.map(_as_key, built.init(params), state), params)
        return updates, _plain(state)

    own = rule(init, update)
    fault = _fault(function, own, params)
    if fault is not None:
        raise ConfigError(
            f"optim.name = {_name(function)} does not work: {fault}. Give a function of one argument, the learning rate"
            " (a scalar that may be traced), that returns an optax transformation: optax.lion, or with settings"
            " functools.partial(optax.lion, b1=0.95)."
        )
    return own


def _build(function: Callable, rate: Any) -> optax.GradientTransformation:
    built = function(rate)
    if not isinstance(built, optax.GradientTransformation):
        raise TypeError(f"it returned {type(built).__name__}, no optax transformation")
    return built


def _plain(state: PyTree) -> PyTree:
    """A state without keys, as checkpoints hold it: their data in their place."""
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, state)


def _as_key(like: Any, leaf: Any) -> Any:
    return jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(like)) if _is_key(like) else leaf


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)


def _fault(function: Callable, own: Rule, params: PyTree) -> str | None:
    """What is wrong with the rule, in words, by tracing its start and its first update."""
    number = jax.ShapeDtypeStruct((), jnp.float32)
    try:
        state = jax.eval_shape(own.init, params)
        updates, after = jax.eval_shape(
            lambda grads, state, params, rate: own.update(grads, state, params, hyper=Hyper(rate, 0.0, 0.0)),
            *(params, state, params, number),
        )
        with jax.numpy_dtype_promotion("standard"):
            start = jax.make_jaxpr(lambda rate, params: _build(function, rate).init(params))(number, params)
    except Exception as error:
        return in_one_line(error)
    if _shapes(updates) != _shapes(params):
        return "its updates have other shapes or types than the parameters"
    if _shapes(after) != _shapes(state):
        return "its state changes its shapes or types in the first update"
    if _depends_on_first_input(start.jaxpr):
        return "its state keeps the rate that it started with, so that the schedule could not move it"
    return None


def _shapes(tree: PyTree) -> Any:
    return jax.tree.structure(tree), [(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in jax.tree.leaves(tree)]


def _depends_on_first_input(jaxpr: Any) -> bool:
    reached = {id(jaxpr.invars[0])}
    for equation in jaxpr.eqns:
        if any(id(variable) in reached for variable in equation.invars):
            reached |= {id(variable) for variable in equation.outvars}
    return any(id(variable) in reached for variable in jaxpr.outvars)


def _name(function: Callable) -> str:
    inner = function.func if isinstance(function, functools.partial) else function
    return getattr(inner, "__name__", type(inner).__name__)
