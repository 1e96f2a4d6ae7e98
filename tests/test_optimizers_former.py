"""Checkpoints from before optax.partition and optax.trace: every leaf of an optimizer's state is found in them."""

from typing import get_args

import jax
import jax.numpy as jnp
import pytest

from jax_cifar.config import OptimConfig, OptimizerName
from jax_cifar.optim.rules import former_path, make_optimizer

NAMES = get_args(OptimizerName)

# Where the leaves lay before optax.partition and optax.trace: rule -> its states' paths, by parameter.
FORMER = {
    "sgd": ("1/buffer/{}",),
    "adam": ("1/count", "1/mean/{}", "1/square/{}"),
    "adamw": ("0/count", "0/mean/{}", "0/square/{}"),
    "adagrad": ("1/total/{}",),
    "muon": ("0/0/buffer/{kernels}", "1/1/buffer/{others}"),
}
# Whether gradients are clipped, and whether lookahead is on.
FORMER_PLACES = {
    (False, False): ("opt_state/0/",),
    (True, False): ("opt_state/0/1/",),
    (False, True): ("opt_state/0/inner/", "opt_state/0/count", "opt_state/0/slow/{}"),
    (True, True): ("opt_state/0/inner/1/", "opt_state/0/count", "opt_state/0/slow/{}"),
}


def spelled(template: str, names: list[str]) -> set[str]:
    kernels, others = [n for n in names if "conv" in n and "kernel" in n], [n for n in names if "bias" in n]
    others += [name for name in names if name not in kernels + others]
    parts = {"{}": names, "{kernels}": kernels, "{others}": others}
    found = next((mark for mark in parts if mark in template), None)
    return {template} if found is None else {template.replace(found, name) for name in parts[found]}


@pytest.mark.parametrize("frozen", [(), ("^trace/kernel$",)])
@pytest.mark.parametrize(("clip", "look"), FORMER_PLACES)
@pytest.mark.parametrize("name", NAMES)
def test_every_leaf_is_found_in_checkpoints_of_the_former_structure(name, clip, look, frozen):
    dense = {"kernel": jnp.zeros((4, 3)), "bias": jnp.zeros(3)}
    params = {"conv": {"kernel": jnp.zeros((3, 3, 2, 4)), "bias": jnp.zeros(4)}, "head": dense, "trace": dense}
    config = OptimConfig(name=name, clip_norm=1.0 if clip else None, lookahead_every=2 if look else 0)
    state = {"opt_state": make_optimizer(config, params, frozen).init(params)}
    paths = [
        jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree_util.tree_leaves_with_path(state)
    ]
    names = ["conv/bias", "conv/kernel", "head/bias", "head/kernel", "trace/bias"] + ["trace/kernel"] * (not frozen)
    place, *around = FORMER_PLACES[clip, look]
    templates = [place + template for template in FORMER[name]] + around
    expected = set().union(*(spelled(template, names) for template in templates))
    assert sorted(former_path(path) for path in paths) == sorted(expected)


def test_paths_that_did_not_change_stay():
    for path in ("step", "params/trace/kernel", "batch_stats/bn1/mean", "ema/params/inner_states/kernel"):
        assert former_path(path) == path
