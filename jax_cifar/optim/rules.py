"""The update rule of a configuration, and the moving average of the weights beside it."""

import math
import re
from collections.abc import Collection, Mapping, Sequence

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from jax_cifar.config import OptimConfig
from jax_cifar.errors import ConfigError
from jax_cifar.optim.muon import muon
from jax_cifar.optim.own import own_rule
from jax_cifar.optim.transforms import (
    Hyper,
    Rule,
    adagrad,
    adam,
    add_weight_decay,
    clip_by_global_norm,
    global_norm,
    lookahead,
    map_named,
    momentum,
    path_name,
    scale_by_lr,
    stateless,
)

__all__ = [
    "Hyper",
    "Rule",
    "constant_momentum",
    "ema_warning",
    "former_path",
    "global_norm",
    "make_optimizer",
    "update_ema",
]


def make_optimizer(config: OptimConfig, params: PyTree, frozen: tuple[str, ...] = ()) -> Rule:
    """Build the update rule of `config` for parameters like `params` (nested dicts; no values are used).

    `tx.update(grads, state, params, hyper=Hyper(...))` gives the updates to add. Parameters whose "/"-joined path
    matches a regular expression of `frozen` get an update of exactly zero, have no state and do not count for clipping.
    Weight decay reaches every other parameter, biases and norms too, as in PyTorch. Gradients are clipped before decay
    is added. Raises `ConfigError` if a pattern of `frozen` or of the multipliers matches no parameter, or if a rule of
    one's own does not work.
    """
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    decay = _match(config.decay_multipliers, names, "optim.decay_multipliers")
    rate = _match(config.lr_multipliers, names, "optim.lr_multipliers")
    still = _match([(pattern, 0.0) for pattern in frozen], names, "frozen")
    rule = _rule(config, params, rate, decay)
    if config.clip_norm is not None:
        rule = optax.chain(clip_by_global_norm(config.clip_norm), rule)
    if config.lookahead_every:
        rule = lookahead(rule, config.lookahead_every, config.lookahead_alpha)
    parts = map_named(lambda name, _: "frozen" if name in still else "trained", params)
    return optax.partition({"trained": rule, "frozen": optax.set_to_zero()}, parts)


def former_path(path: str) -> str:
    """Where a leaf of the train state lay in checkpoints written before `optax.partition` and `optax.trace` stood here.

    "opt_state/inner_states/trained/inner_state/1/trace/fc/bias" was "opt_state/0/1/buffer/fc/bias"; a path that did not
    change comes back as it is. The way back depends on the rule: others' buffers under Muon lay where those of a
    clipped SGD did.
    """
    path = path.replace("opt_state/inner_states/trained/inner_state/", "opt_state/0/", 1)
    rule = r"^(opt_state/0/(?:inner/)?(?:\d/)*)"
    for part, index in (("kernels", 0), ("others", 1)):
        path = re.sub(rf"{rule}inner_states/{part}/inner_state/", rf"\g<1>{index}/", path)
    return re.sub(rf"{rule}trace/", r"\g<1>buffer/", path)


def constant_momentum(config: OptimConfig) -> float:
    """What `Hyper.momentum` is unless a schedule cycles it: b1 for adam and adamw, 0 where nothing reads it."""
    if config.name in ("adam", "adamw"):
        return config.b1
    return config.momentum if config.name in ("sgd", "muon") else 0.0


def update_ema(ema: PyTree, new: PyTree, decay: float, done: Int[Array, ""] | None = None) -> PyTree:
    """Moving average decay * ema + (1 - decay) * new, to be started as a copy of the initial weights.

    What has no fractions, a counter or a flag among the statistics, is the newest.

    `done`, the updates before this one, warms the average up: the decay is min(decay, (1 + done) /
    (10 + done)), as TensorFlow's ExponentialMovingAverage and diffusers' EMAModel have it. Until the decay is
    reached the average is over about the last ninth of the updates so far (polynomial decay, Shamir and Zhang 2013),
    and the initial weights are soon gone from it. Adam's correction, a division by 1 - decay**updates, would weigh
    all weights since the first alike: as long as a decay of 0.9999 lasts, those of the first epoch like the last.

    None: no correction for that start, as timm's ModelEmaV2, and as PyTorch's `AveragedModel` with
    `get_ema_multi_avg_fn` if that is fed the initial weights first. The two factors of `optax.incremental_update`, each
    rounded to float32, do not add up to 1: its averages end up too large by 1.3e-5 of themselves at a decay of 0.999.
    """

    def average(e: Array, x: Array) -> Array:
        if not jnp.issubdtype(e.dtype, jnp.inexact):
            return x
        share = 1 - decay if done is None else jnp.maximum(1 - decay, 9 / (10 + done.astype(e.dtype)))
        return e + jnp.asarray(share, e.dtype) * (x - e)

    return jax.tree.map(average, ema, new)


def ema_warning(config: OptimConfig, total_steps: int) -> str | None:
    """What to tell where averaged weights span most of a run of so many updates, or never get near their decay."""
    span = round(1 / (1 - config.ema_decay))
    if config.ema_decay == 0 or 2 * span <= total_steps:
        return None
    begun = (
        f"so the average is over about its last ninth, {max(1, total_steps // 9):,}"
        if config.ema_warmup
        else f"so the initial weights still make up {config.ema_decay**total_steps:.0%} of the average"
    )
    if total_steps <= 10:
        way_out = "The run is too short to average over: --optim.ema_decay 0"
    else:
        share = 10 / total_steps  # of the newest weights; three digits of it, as those of the decay may all be nines
        tenth = f"{1 - share:.{2 + math.ceil(-math.log10(share))}f}".rstrip("0")
        way_out = f"A tenth of the run would be --optim.ema_decay {tenth}"
    return (
        f"optim.ema_decay = {config.ema_decay} averages about {span:,} updates, and the run has {total_steps:,}:"
        f" {begun}. {way_out}."
    )


def _rule(config: OptimConfig, params: PyTree, rate: Mapping[str, float], decay: Mapping[str, float]) -> Rule:
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
            return muon(config, params, rate, decay)
        case function:
            factors = stateless(lambda updates, *_: map_named(lambda name, u: rate.get(name, 1.0) * u, updates))
            return optax.chain(own_rule(function, params), factors)


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
