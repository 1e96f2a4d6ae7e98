"""Pruning refuses what it cannot do; global pruning; what a network costs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_cifar.compress.cost import multiply_adds
from jax_cifar.compress.prune import choose, narrowed, remove
from jax_cifar.config import Config, ModelConfig
from jax_cifar.config.files import apply_overrides, from_dict, to_dict
from jax_cifar.errors import CheckpointError, ConfigError
from jax_cifar.models import create_model
from jax_cifar.models.network import InputSpec, Network

SIMPLE = ModelConfig("simple_cnn", norm="none", width=4)
SHAPES = {"conv1": (3, 3, 3, 4), "conv2": (3, 3, 4, 8), "fc1": (8 * 4, 16), "fc2": (16, 5)}


def variables(scales=(1.0, 1.0, 1.0, 1.0)):
    """Of SimpleCNN at 8 x 8 pixels, each layer of another scale."""
    draws = np.random.default_rng(0)
    params = {}
    for (layer, shape), scale in zip(SHAPES.items(), scales, strict=True):
        params[layer] = {"kernel": scale * draws.normal(size=shape), "bias": draws.normal(size=shape[-1:])}
    return {"params": params, "batch_stats": {}}


def network(config, size=8):
    spec = InputSpec((size, size, 3), (0.5,) * 3, (0.25,) * 3, None, tuple("abcde"))
    return Network(create_model(config, 5), spec)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"amount": 0.9}, r"amount = 0\.9 is not allowed: conv1 would lose all of its 4 filters: remove less"),
        ({"amount": 0.01}, r"amount = 0\.01 .* no layer has so many filters that one would go: remove more"),
        ({"amount": 0}, "amount = 0 is not allowed: it must be greater than 0 and less than 1"),
        ({"amount": 1.0}, r"amount = 1\.0 is not allowed: it must be greater than 0 and less than 1"),
        ({"order": 0}, "norm = 0 is not allowed: it must be greater than 0"),
        ({"amount": 0.95, "scope": "global"}, "'27 filters' is not allowed: 27 of 28 filters .* each of 3 layers"),
        ({"config": dataclasses.replace(SIMPLE, norm="group")}, "model.norm = 'group' .* share a mean and a variance"),
    ],
)
def test_what_cannot_be_pruned_is_refused(change, told):
    with pytest.raises(ConfigError, match=told):
        choose(**{"config": SIMPLE, "variables": variables(), "amount": 0.4} | change)


def test_weights_of_another_network_or_not_finite_are_refused():
    with pytest.raises(CheckpointError, match="conv3/kernel is missing"):
        choose(ModelConfig("tiny_cnn"), variables(), 0.5)
    broken = variables()
    broken["params"]["conv2"]["kernel"][0, 0, 0, 0] = np.nan
    with pytest.raises(CheckpointError, match="conv2/kernel is not finite"):
        choose(SIMPLE, broken, 0.5)


def test_half_a_filter_is_rounded_to_even_as_python_does():
    kept = choose(ModelConfig("simple_cnn", norm="none", width=10), wide(10), 0.25)
    assert [len(stays) - stays.sum() for stays in kept.values()] == [2, 5, 10]
    kept = choose(ModelConfig("simple_cnn", norm="none", width=10), wide(10), 0.35)
    assert [len(stays) - stays.sum() for stays in kept.values()] == [4, 7, 14]


def wide(width):
    shapes = {"conv1": (1, 1, 3, width), "conv2": (1, 1, width, 2 * width), "fc1": (2 * width, 4 * width)}
    shapes["fc2"] = (4 * width, 5)
    draws = np.random.default_rng(1)
    return {"params": {layer: {"kernel": draws.normal(size=shape)} for layer, shape in shapes.items()}}


def test_global_pruning_compares_layers_of_any_scale_and_empties_none():
    even, uneven = (choose(SIMPLE, variables(scales), 0.4, "global") for scales in ((1,) * 4, (1e-6, 1.0, 1e6, 1)))
    assert all((even[layer] == uneven[layer]).all() for layer in even)
    assert sum((~stays).sum() for stays in even.values()) == round(0.4 * 28)
    assert any(even[layer].sum() != len(even[layer]) - round(0.4 * len(even[layer])) for layer in even)
    most = choose(SIMPLE, variables(), 25 / 28, "global")
    assert [stays.sum() for stays in most.values()] == [1, 1, 1]
    for layer, stays in most.items():
        kernel = variables()["params"][layer]["kernel"].reshape(-1, len(stays))
        assert np.linalg.norm(kernel, axis=0).argmax() == stays.argmax()


def with_norms(**norms):
    """The variables of SimpleCNN with filters of these norms."""
    given = variables()
    for layer, values in norms.items():
        kernel = given["params"][layer]["kernel"] = np.zeros(SHAPES[layer])
        kernel.reshape(-1, kernel.shape[-1])[0] = values
    return given


@pytest.mark.parametrize(("norm", "layer"), [(1.2, "conv1"), (1.6, "conv2")])
def test_global_pruning_measures_a_filter_by_the_root_mean_square_of_its_layer(norm, layer):
    # By its layer's largest norm a 2 of conv2 would go (2 / 10) both times, by its mean (2 / 3) neither time.
    weights = with_norms(conv1=[3, 3, 3, norm], conv2=[10, 2, 2, 2, 2, 2, 2, 2], fc1=1)
    kept = choose(SIMPLE, weights, 1 / 28, "global")
    assert {name: int((~stays).sum()) for name, stays in kept.items()} == {"conv1": 0, "conv2": 0, "fc1": 0} | {
        layer: 1
    }


@pytest.mark.parametrize(
    ("amount", "scope", "left"),
    [(0.25, "layer", (3, 6, 12)), (3 / 28, "global", (4, 5, 16)), (9 / 28, "global", (4, 1, 14))],
)
def test_of_equal_filters_the_last_go(amount, scope, left):
    kept = choose(SIMPLE, with_norms(conv1=3, conv2=[10, 2, 2, 2, 2, 2, 2, 2], fc1=1), amount, scope)
    for stays, count in zip(kept.values(), left, strict=True):
        assert stays[:count].all() and not stays[count:].any()


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_in_steps_as_many_filters_go_as_at_once(scope):
    config, weights = SIMPLE, variables()
    of = {layer: SHAPES[layer][-1] for layer in ("conv1", "conv2", "fc1")}
    for share in (0.2, 0.33, 0.45):
        kept = choose(config, weights, share, scope, of=of)
        config, weights = narrowed(config, kept), remove(config, weights, kept)
    left = [weights["params"][layer]["kernel"].shape[-1] for layer in of]
    if scope == "layer":
        assert left == [4 - round(0.45 * 4), 8 - round(0.45 * 8), 16 - round(0.45 * 16)]
    assert sum(left) == sum(of.values()) - (sum(round(0.45 * n) for n in of.values()) if scope == "layer" else 13)


def test_widths_of_layers_are_recorded_and_said_on_the_command_line():
    config = apply_overrides(Config(name="x"), ["--model.channels", "conv1", "20", "fc1", "7"])
    assert config.model.channels == (("conv1", 20), ("fc1", 7))
    assert from_dict(to_dict(config)) == config
    model = create_model(config.model, 5)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False))["params"]
    assert params["conv2"]["kernel"].shape == (3, 3, 20, 64) and params["fc1"]["kernel"].shape == (256, 7)


@pytest.mark.parametrize(
    ("name", "channels", "told"),
    [
        ("resnet18", (("layer1_0/conv2", 3),), r"model\.channels = 'layer1_0/conv2' .* are layer1_0/conv1, layer1_1"),
        ("speedrun_net", (("whiten", 3),), r"'whiten' .* are group1/conv1, group1/conv2"),
        ("simple_cnn", (("fc2", 3),), r"'fc2' .* are conv1, conv2, fc1"),
        ("simple_cnn", (("conv1", 0),), "it must lie between 1 and 65536"),
        ("simple_cnn", (("conv1", 3), ("conv1", 4)), "each name stands there once"),
    ],
)
def test_a_layer_whose_width_others_depend_on_is_refused(name, channels, told):
    with pytest.raises(ConfigError, match=told):
        ModelConfig(name, channels=channels)


def test_multiply_adds_are_those_summed_by_hand():
    expected = 64 * 27 * 4 + 16 * 36 * 8 + 32 * 16 + 16 * 5
    assert multiply_adds(network(SIMPLE)) == expected
    narrow = dataclasses.replace(SIMPLE, channels=(("conv1", 3), ("fc1", 7)))
    assert multiply_adds(network(narrow)) == 64 * 27 * 3 + 16 * 27 * 8 + 32 * 7 + 7 * 5


@pytest.mark.slow
@pytest.mark.parametrize(("name", "billions"), [("resnet18", 1.814), ("resnet50", 4.09)])
def test_multiply_adds_of_the_resnets_are_torchvisions(name, billions):
    spec = InputSpec((224, 224, 3), (0.5,) * 3, (0.25,) * 3, None, tuple(map(str, range(1000))))
    model = create_model(ModelConfig(name, stem="imagenet"), 1000)
    assert multiply_adds(Network(model, spec)) / 1e9 == pytest.approx(billions, rel=1e-3)
