"""Dropout in both frameworks: the same distribution, and in the networks the same places.

The frameworks draw different masks, so what the masks obey is tested, to within four standard deviations.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from networks import QUICK_COMPILE
from tolerances import agree, assert_close

from jax_cifar import models
from jax_cifar.backend.precision import float64
from jax_cifar.config import ModelConfig
from torch_ref.convert import to_torch
from torch_ref.models import create_model

SHAPE = (64, 12, 12, 16)  # batch, height, width, channel
CLASSES, SIZE = 5, 18
RATES = (0.1, 0.25, 0.5, 0.8)
NETWORKS = {
    name: ModelConfig(name, width=2, dropout=None if name == "speedrun_net" else 0.4)
    for name in ("tiny_cnn", "simple_cnn", "cifar_cnn", "resnet18", "resnet50", "speedrun_net")
}
PLACES = {"tiny_cnn": 1, "simple_cnn": 1, "cifar_cnn": 6, "resnet18": 1, "resnet50": 1, "speedrun_net": 0}


def values() -> np.ndarray:
    """Different from one another, and none of them zero."""
    return np.random.default_rng(0).uniform(0.5, 1.5, SHAPE).astype(np.float32)


def of_jax(x, rate, seed=0, train=True) -> np.ndarray:
    key = {"dropout": jax.random.key(seed)}
    return np.asarray(nn.Dropout(rate, deterministic=not train).apply({}, jnp.asarray(x), rngs=key))


def of_torch(x, rate, seed=0, train=True) -> np.ndarray:
    torch.manual_seed(seed)
    return torch.nn.Dropout(rate).train(train)(torch.from_numpy(x)).numpy()


def problems(out, x, rate) -> list[str]:
    """What is wrong with `out` as the dropout of `x`."""
    dropped, found = out == 0, []
    if not near(dropped, rate):
        found.append("share")
    if not agree(out[~dropped], x[~dropped] / np.float32(1 - rate), "float32 operation"):
        found.append("scale")
    spread = math.sqrt(rate / (1 - rate) * np.sum(np.square(x, dtype=np.float64))) / x.size
    if abs(out.mean(dtype=np.float64) - x.mean(dtype=np.float64)) > 4 * spread:
        found.append("mean")
    halves = [np.split(np.moveaxis(dropped, axis, 0), 2) for axis in range(x.ndim)]
    if not all(near(one & other, rate**2) for one, other in halves):
        found.append("independence")
    return found


def near(events, probability) -> bool:
    """Whether the share of events that came true is within four standard deviations of their probability."""
    return abs(events.mean() - probability) <= 4 * math.sqrt(probability * (1 - probability) / events.size)


frameworks = pytest.mark.parametrize("dropout", [of_jax, of_torch], ids=["jax", "torch"])


@pytest.mark.parametrize("rate", RATES)
@frameworks
def test_share_scale_mean_and_independence(dropout, rate):
    assert problems(dropout(values(), rate), values(), rate) == []


@frameworks
def test_every_key_draws_another_mask(dropout):
    x = values()
    masks = [dropout(x, 0.25, seed) == 0 for seed in (0, 1)]
    assert near(masks[0] & masks[1], 0.25**2)
    np.testing.assert_array_equal(dropout(x, 0.25, 0) == 0, masks[0])


def test_every_place_draws_another_mask_from_one_key():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x):
            return [nn.Dropout(0.25, deterministic=False)(x) for _ in range(2)]

    outs: Any = Two().apply({}, jnp.asarray(values()), rngs={"dropout": jax.random.key(0)})
    first, second = (np.asarray(out) == 0 for out in outs)
    assert near(first & second, 0.25**2)


@frameworks
def test_nothing_is_dropped_in_evaluation_or_at_rate_zero(dropout):
    x = values()
    assert_close(dropout(x, 0.25, train=False), x, "exact")
    assert_close(dropout(x, 0.0), x, "exact")


@pytest.mark.parametrize("rate", RATES)
def test_wrong_dropouts_are_told_apart(rate):
    x = values()
    not_inverted = of_jax(x, rate) * np.float32((1 - rate) ** 2)
    assert problems(not_inverted, x, rate) == ["scale", "mean"]
    if rate != 0.5:
        assert "share" in problems(of_jax(x, 1 - rate), x, rate)  # taken for the probability of keeping
    torch.manual_seed(0)
    whole_channels = torch.nn.Dropout2d(rate)(torch.from_numpy(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    assert "independence" in problems(whole_channels, x, rate)


def images() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(3, SIZE, SIZE, 3))


def instead_of_dropout(x):
    """Without chance, and not to be exchanged with a layer before or behind it."""
    return 1.5 * x - 0.25


def jax_network(name) -> tuple[Any, Any]:
    """The network in float64, and weights that are all different."""
    model: Any = models.create_model(NETWORKS[name], CLASSES, jnp.float64, jnp.float64)
    shapes = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), jnp.asarray(images()))
    draws = np.random.default_rng(2)

    def draw(leaf):
        kernel = draws.normal(size=leaf.shape) / np.prod(leaf.shape[:-1]) ** 0.5
        return kernel if leaf.ndim > 1 else draws.uniform(0.7, 1.3, leaf.shape)

    return model, jax.tree.map(draw, {"batch_stats": {}} | shapes)


def replaced_in_jax(name) -> tuple[np.ndarray, list[tuple[float, int]]]:
    """Logits in evaluation, and the rate and number of values per image at every place where dropout is called."""
    (model, variables), places = jax_network(name), []

    def replacement(self, x):
        places.append((self.rate, math.prod(x.shape[1:])))
        return instead_of_dropout(x)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(nn.Dropout, "__call__", replacement)
        call = jax.jit(functools.partial(model.apply, train=False), compiler_options=QUICK_COMPILE)
        return np.asarray(call(variables, images())), places


def replaced_in_torch(name, skip=None) -> tuple[np.ndarray, list[tuple[float, int]]]:
    """As `replaced_in_jax`; the call number `skip` is left as it is."""
    judge, places = create_model(NETWORKS[name], CLASSES, SIZE).double().eval(), []
    judge.load_state_dict(to_torch(jax_network(name)[1], judge), strict=True)

    def replace(module, _inputs, output):
        places.append((module.p, math.prod(output.shape[1:])))
        return output if len(places) - 1 == skip else instead_of_dropout(output)

    for module in judge.modules():
        if isinstance(module, torch.nn.Dropout):
            module.register_forward_hook(replace)
    with torch.no_grad():
        return judge(torch.from_numpy(np.moveaxis(images(), -1, 1).copy())).numpy(), places


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == "resnet50" else n for n in NETWORKS])
def test_the_networks_drop_in_the_same_places(name):
    with float64():
        logits, places = replaced_in_jax(name)
        expected, expected_places = replaced_in_torch(name)
        assert places == expected_places
        assert len(places) == PLACES[name]
        assert_close(logits, expected, "float64 network", "the logits")
        for place in range(len(places)):
            assert not agree(logits, replaced_in_torch(name, skip=place)[0], "float64 network"), place
