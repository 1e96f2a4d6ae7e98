"""Batch normalisation folded into the convolutions, against PyTorch's own folding, for every architecture."""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from networks import NAMES, QUICK_COMPILE, draw_variables
from tolerances import agree, assert_close
from torch.nn.utils.fusion import fuse_conv_bn_eval

from jax_cifar import models
from jax_cifar.config import ModelConfig
from jax_cifar.errors import CheckpointError, ConfigError
from jax_cifar.models.fold import fold_batch_norm
from torch_ref.convert import to_torch
from torch_ref.models import create_model

CLASSES, SIZE = 5, 18
SIZES = {"tiny_cnn": 16, "cifar_cnn": 16}  # pooled to one pixel, so that few parameters are dense
CONFIGS = {name: ModelConfig(name=name, width=2) for name in NAMES} | {
    "resnet18-imagenet": ModelConfig(name="resnet18", width=2, stem="imagenet"),
    "speedrun_net-shallow": ModelConfig(name="speedrun_net", width=2, convs_per_group=1),
    "speedrun_net-residual": ModelConfig(name="speedrun_net", width=2, convs_per_group=3),
}
DEEP = ("resnet18-imagenet", "resnet34", "resnet50")
every_network = pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow) if case in DEEP else case for case in CONFIGS]
)
pytestmark = pytest.mark.usefixtures("x64")


def network(case) -> Any:
    return models.create_model(CONFIGS[case], CLASSES, jnp.float64, jnp.float64)


def images_of(case):
    size = SIZES.get(case, SIZE)
    return jnp.asarray(np.random.default_rng(1).normal(size=(3, size, size, 3)))


@functools.cache
def template(case) -> Any:
    init = functools.partial(network(case).init, train=False)
    return {"batch_stats": {}} | jax.eval_shape(init, jax.random.key(0), images_of(case))


def trained(case) -> Any:
    return draw_variables(template(case), np.float64)


def changed(variables, leaf, change):
    """The variables with `change` made to every leaf of this name."""
    return jax.tree_util.tree_map_with_path(lambda path, x: change(x) if path[-1].key == leaf else x, variables)


def evaluate(case, model, variables):
    call = jax.jit(functools.partial(model.apply, train=False), compiler_options=QUICK_COMPILE)
    return np.asarray(call(variables, images_of(case)))


def judge_of(case) -> torch.nn.Module:
    judge = create_model(CONFIGS[case], CLASSES, SIZES.get(case, SIZE)).double().eval()
    judge.load_state_dict(to_torch(trained(case), judge), strict=True)
    return judge


def folded_by_torch(case) -> dict[str, Any]:
    """What PyTorch's own folding makes of every convolution that a batch norm follows, by the parameters' names."""
    modules: dict[str, Any] = dict(judge_of(case).named_modules())
    folded = {}
    for name, norm in modules.items():
        if isinstance(norm, torch.nn.BatchNorm2d):
            conv = name.replace("bn", "conv").replace("downsample.1", "downsample.0")
            folded |= {f"{conv}.{k}": v for k, v in fuse_conv_bn_eval(modules[conv], norm).state_dict().items()}
    return {name: value.numpy() for name, value in folded.items()}


def folded_here(case, variables) -> dict[str, Any]:
    """The folded variables under PyTorch's names; `to_torch` refuses any that is missing or too many."""
    config = dataclasses.replace(CONFIGS[case], norm="none")
    plain = create_model(config, CLASSES, SIZES.get(case, SIZE)).double()
    return {name: value.numpy() for name, value in to_torch(fold_batch_norm(network(case), variables), plain).items()}


@every_network
def test_every_convolution_is_pytorchs_folded_one(case):
    expected, actual = folded_by_torch(case), folded_here(case, trained(case))
    for name, value in expected.items():
        assert_close(actual[name], value, "float64 operation", name)
    rest = to_torch(trained(case), judge_of(case))
    untouched = [name for name in actual if name not in expected]
    assert any(re.match(r"(fc\d?|head)\.weight", name) for name in untouched)
    for name in untouched:
        assert_close(actual[name], rest[name].numpy(), "exact", name)


WRONG = {
    "epsilon-1e-3": lambda variables: changed(variables, "var", lambda x: x + 1e-3),
    "without-the-mean": lambda variables: changed(variables, "mean", np.zeros_like),
}


@pytest.mark.parametrize("wrong", WRONG)
@every_network
def test_a_wrong_fold_is_told_apart_in_every_convolution(case, wrong):
    expected, actual = folded_by_torch(case), folded_here(case, WRONG[wrong](trained(case)))
    leaf = "bias" if wrong == "without-the-mean" else ""
    assert not any(agree(actual[k], v, "float64 operation") for k, v in expected.items() if k.endswith(leaf))


@every_network
def test_the_folded_network_gives_the_same_logits(case):
    model, variables = network(case), trained(case)
    folded = fold_batch_norm(model, variables)
    logits = evaluate(case, model.clone(norm="folded"), folded)
    assert folded["batch_stats"] == {}
    assert_close(logits, evaluate(case, model, variables), "float64 operation", "the logits")
    with torch.no_grad():
        expected = judge_of(case)(torch.from_numpy(np.moveaxis(np.array(images_of(case)), -1, 1).copy())).numpy()
    assert_close(logits, expected, "float64 network", "the logits")


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_fold_changes_the_logits(wrong):
    case = "speedrun_net"
    model, variables = network(case), trained(case)
    logits = evaluate(case, model.clone(norm="folded"), fold_batch_norm(model, WRONG[wrong](variables)))
    assert not agree(logits, evaluate(case, model, variables), "float64 network")


def test_parameters_keep_their_type_and_the_variables_given_are_left_alone():
    single = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), trained("tiny_cnn"))
    before = jax.tree.map(np.array, single)
    folded = fold_batch_norm(network("tiny_cnn"), single)
    assert {leaf.dtype for leaf in jax.tree.leaves(folded)} == {np.dtype(np.float32)}
    jax.tree.map(np.testing.assert_array_equal, before, single)


def test_a_negative_scale_behind_a_max_pool_is_refused():
    variables = trained("speedrun_net")
    variables["params"]["group2"]["bn2"]["scale"][0] *= -1
    fold_batch_norm(network("speedrun_net"), variables)
    variables["params"]["group2"]["bn1"]["scale"][0] = -0.25
    with pytest.raises(CheckpointError, match=r"group2/bn1/scale goes down to -0\.25"):
        fold_batch_norm(network("speedrun_net"), variables)


def test_a_folded_network_is_not_trained():
    model = network("tiny_cnn")
    folded = fold_batch_norm(model, trained("tiny_cnn"))
    with pytest.raises(ConfigError, match="A folded network has no batch statistics"):
        model.clone(norm="folded").apply(folded, images_of("tiny_cnn"), train=True)


@pytest.mark.parametrize("norm", ["group", "none"])
def test_other_norms_are_refused(norm):
    with pytest.raises(ConfigError, match=f"model.norm = '{norm}' .* only batch normalisation"):
        fold_batch_norm(network("tiny_cnn").clone(norm=norm), trained("tiny_cnn"))


@pytest.mark.parametrize(("part", "name"), [("batch_stats", "bn2"), ("params", "conv2")])
def test_variables_of_another_network_are_refused(part, name):
    variables = trained("tiny_cnn")
    del variables[part][name]
    with pytest.raises(CheckpointError, match="bn2 lacks its convolution or its statistics"):
        fold_batch_norm(network("tiny_cnn"), variables)
