"""Structured pruning: which filters go, against `torch.nn.utils.prune`; that a smaller network is the masked one."""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from networks import NAMES, QUICK_COMPILE, draw_variables
from tolerances import agree, assert_close
from torch.nn.utils import prune as torch_prune

from jax_cifar import models
from jax_cifar.compress.prune import choose, filter_norms, mask, narrowed, remove
from jax_cifar.config import ModelConfig
from jax_cifar.config.chains import chains
from torch_ref.convert import from_torch, to_torch
from torch_ref.models import create_model

CLASSES, SIZE, AMOUNT = 5, 18, 0.3
SIZES = {"cifar_cnn": 32}  # the plain CNNs flatten more than one position
CONFIGS = {name: ModelConfig(name=name, width=4) for name in NAMES} | {
    "simple_cnn-none": ModelConfig(name="simple_cnn", norm="none", width=4),
    "resnet18-none": ModelConfig(name="resnet18", norm="none", width=4),
    "speedrun_net-shallow": ModelConfig(name="speedrun_net", width=4, convs_per_group=1),
    "speedrun_net-residual": ModelConfig(name="speedrun_net", width=4, convs_per_group=3),
}
QUICK = ("simple_cnn", "simple_cnn-none", "speedrun_net-residual", "resnet18")
every_network = pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CONFIGS]
)
pytestmark = pytest.mark.usefixtures("x64")


def size_of(case):
    return SIZES.get(case, SIZE)


@functools.cache
def images_of(case):
    return np.random.default_rng(1).normal(size=(3, size_of(case), size_of(case), 3))


def template(config, size) -> Any:
    model = models.create_model(config, CLASSES, jnp.float64, jnp.float64)
    init = functools.partial(model.init, train=False)
    return {"batch_stats": {}} | jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, size, size, 3)))


@functools.cache
def pruned(case) -> Any:
    """Variables as training might leave them, and which of their filters stay."""
    variables = draw_variables(template(CONFIGS[case], size_of(case)), np.float64)
    return variables, choose(CONFIGS[case], variables, AMOUNT)


@functools.cache
def program(config) -> Any:
    model = models.create_model(config, CLASSES, jnp.float64, jnp.float64)
    return jax.jit(functools.partial(model.apply, train=False), compiler_options=QUICK_COMPILE)


def logits(config, variables, images):
    return np.asarray(program(config)(variables, images))


def judge_of(case) -> torch.nn.Module:
    judge = create_model(CONFIGS[case], CLASSES, size_of(case)).double().eval()
    judge.load_state_dict(to_torch(pruned(case)[0], judge), strict=True)
    return judge


@every_network
def test_the_smaller_network_is_the_masked_one_in_jax_and_in_pytorch(case):
    config, (variables, kept), images = CONFIGS[case], pruned(case), images_of(case)
    smaller, masked, removed = (narrowed(config, kept), mask(config, variables, kept), remove(config, variables, kept))
    assert all(1 <= stays.sum() < len(stays) for stays in kept.values() if len(stays) > 4)
    shapes = (jax.tree.map(np.shape, tree) for tree in (removed, template(smaller, size_of(case))))
    assert len(set(map(str, shapes))) == 1  # what the configuration says is what is left
    expected = logits(config, masked, images)
    assert not agree(logits(config, variables, images), expected, "float64 network")
    got = logits(smaller, removed, images)
    assert np.abs(got - expected).max() <= 1e-12 * np.abs(expected).max()

    judge = create_model(smaller, CLASSES, size_of(case)).double().eval()
    state = to_torch(removed, judge)
    judge.load_state_dict(state, strict=True)
    with torch.no_grad():
        theirs = judge(torch.from_numpy(np.moveaxis(images, -1, 1).copy())).numpy()
    assert_close(theirs, expected, "float64 network", "PyTorch's logits")
    jax.tree.map(np.testing.assert_array_equal, from_torch(state, removed), removed)


@pytest.mark.parametrize("order", [1, 2, 3.5, np.inf])
@pytest.mark.parametrize("amount", [0.15, 0.25, 0.35, 0.45, 0.5])
def test_the_filters_that_go_are_those_of_ln_structured(order, amount):
    for case in ("simple_cnn", "resnet18"):
        kept, judge = choose(CONFIGS[case], pruned(case)[0], amount, order=order), judge_of(case)
        for layer, stays in kept.items():
            module = judge.get_submodule(layer.replace("_", ".").replace("/", "."))
            torch_prune.ln_structured(module, "weight", amount, order, dim=0)
            masks = np.asarray(module.weight_mask).reshape(len(stays), -1)
            np.testing.assert_array_equal(masks.all(axis=1), stays, layer)
            assert masks.all(axis=1).sum() == len(stays) - round(amount * len(stays))


@pytest.mark.parametrize("order", [0.5, 1, 2, 3.5, np.inf])
def test_the_norms_are_pytorchs(order):
    kernel = np.random.default_rng(3).normal(size=(3, 3, 5, 7))
    weight = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())
    expected = torch.linalg.vector_norm(weight, order, dim=(1, 2, 3)).numpy()
    np.testing.assert_allclose(filter_norms(kernel, order), expected, rtol=1e-12)


@every_network
def test_a_chain_is_of_layers_that_read_one_another(case):
    params = template(CONFIGS[case], size_of(case))["params"]

    def kernel(layer):
        return functools.reduce(dict.__getitem__, layer.split("/"), params)["kernel"].shape

    assert chains(CONFIGS[case].name, CONFIGS[case].convs_per_group)
    for chain in chains(CONFIGS[case].name, CONFIGS[case].convs_per_group):
        for layer, reader in itertools.pairwise(chain):
            assert kernel(reader)[-2] % kernel(layer)[-1] == 0
            assert len(kernel(reader)) == 2 or kernel(reader)[-2] == kernel(layer)[-1]


def test_masking_the_filters_alone_is_another_network():
    config, (variables, kept) = CONFIGS["simple_cnn"], pruned("simple_cnn")
    masked = mask(config, variables, kept)
    for part in ("bn1", "bn2"):
        masked["params"][part] = variables["params"][part]
    got = logits(narrowed(config, kept), remove(config, variables, kept), images_of("simple_cnn"))
    assert not agree(got, logits(config, masked, images_of("simple_cnn")), "float64 network")


def test_a_network_of_other_widths_is_pruned_like_any():
    config, (variables, kept) = CONFIGS["simple_cnn"], pruned("simple_cnn")
    smaller, removed = narrowed(config, kept), remove(config, variables, kept)
    again = choose(smaller, removed, AMOUNT)
    smallest = narrowed(smaller, again)
    assert dict(smallest.channels)["fc1"] == sum(kept["fc1"]) - round(AMOUNT * sum(kept["fc1"]))
    expected = logits(smaller, mask(smaller, removed, again), images_of("simple_cnn"))
    got = logits(smallest, remove(smaller, removed, again), images_of("simple_cnn"))
    assert_close(got, expected, "float64 network")
    assert dataclasses.replace(smallest, channels=()) == config
