"""The networks: sizes, names, types, options."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jaxprs import equations

from jax_cifar.config import ModelConfig
from jax_cifar.errors import ConfigError
from jax_cifar.models import (
    ResNet,
    SpeedrunNet,
    check_network,
    create_model,
    frozen_parameters,
    hold_frozen,
    init_variables,
    parameter_table,
    whitening_kernel,
)
from jax_cifar.models.resnet import BasicBlock, Bottleneck

KEY = jax.random.key(0)
NORMS = ["batch", "group", "none"]


def images_of(size, count=2):
    return jnp.asarray(np.random.default_rng(size).normal(size=(count, size, size, 3)), jnp.float32)


@functools.cache
def shapes_of(config, classes=10, size=32, **types) -> tuple[Any, Any]:
    """The variables' shapes and types, with nothing computed."""
    model = create_model(config, classes, **types)
    variables = jax.eval_shape(functools.partial(model.init, train=False), KEY, images_of(size))
    return model, variables


# The first five are torchvision's own figures; those below are summed by hand from the layers' sizes.
@pytest.mark.parametrize(
    ("config", "classes", "count"),
    [
        pytest.param(ModelConfig("resnet18", stem="imagenet"), 10, 11_181_642, marks=pytest.mark.slow),
        (ModelConfig("resnet18", stem="imagenet"), 1000, 11_689_512),
        pytest.param(ModelConfig("resnet34", stem="imagenet"), 1000, 21_797_672, marks=pytest.mark.slow),
        (ModelConfig("resnet50", stem="imagenet"), 1000, 25_557_032),
        (ModelConfig("resnet34"), 100, 21_328_292),
        (ModelConfig("resnet18"), 10, 11_173_962),
        pytest.param(ModelConfig("resnet34", norm="group"), 100, 21_328_292, marks=pytest.mark.slow),
        (ModelConfig("simple_cnn", norm="none"), 10, 896 + 18_496 + 524_416 + 1_290),
        (ModelConfig("simple_cnn"), 10, 864 + 64 + 18_432 + 128 + 524_416 + 1_290),
        (ModelConfig("tiny_cnn"), 10, 864 + 18_432 + 73_728 + 2 * (32 + 64 + 128) + 20_490),
        (ModelConfig("cifar_cnn"), 100, 4_683_456 + 3_840 + 2_098_176 + 524_800 + 51_300),
        (ModelConfig("speedrun_net"), 10, 312 + 13_824 + 36_864 + 147_456 + 3 * 589_824 + 2_304 + 2_560),
        (
            ModelConfig("speedrun_net", convs_per_group=3),
            10,
            312 + 13_824 + 2 * 36_864 + 147_456 + 5 * 589_824 + 2 * 3 * (64 + 256 + 256) + 2_560,
        ),
    ],
    ids=lambda value: f"{value.name}-{value.norm}-{value.stem}" if isinstance(value, ModelConfig) else str(value),
)
def test_parameter_counts(config, classes, count):
    _, variables = shapes_of(config, classes)
    assert sum(row[2] for row in parameter_table(variables["params"])) == count


def test_parameter_table_rows():
    _, variables = shapes_of(ModelConfig("resnet18"))
    table = parameter_table(variables["params"])
    assert ("layer1_0/conv1/kernel", (3, 3, 64, 64), 36_864) in table
    assert ("fc/bias", (10,), 10) in table
    assert len(table) == len(jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize(
    ("name", "norm"),
    [("tiny_cnn", norm) for norm in NORMS]
    + [(name, norm) for name in ("simple_cnn", "cifar_cnn", "resnet18", "speedrun_net") for norm in ("batch", "none")]
    + [pytest.param(name, "batch", marks=pytest.mark.slow) for name in ("resnet34", "resnet50")],
)
def test_logits_and_statistics_have_the_promised_shape_and_type(name, norm):
    model, variables = shapes_of(ModelConfig(name, norm=norm, width=4), classes=7, dtype=jnp.bfloat16)
    call = functools.partial(model.apply, train=True, mutable=["batch_stats"], rngs={"dropout": KEY})
    logits, updated = jax.eval_shape(call, variables, images_of(32))
    assert (logits.shape, logits.dtype) == ((2, 7), jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, updated))} == {jnp.dtype(jnp.float32)}
    assert ("batch_stats" in variables) == (norm == "batch")
    has_conv_bias = any(re.search(r"conv1/bias$", path) for path, *_ in parameter_table(variables["params"]))
    assert has_conv_bias == (norm == "none")


def torch_name(path):
    path = re.sub(r"_(\d+)(?=/)", r".\1", path).replace("/", ".")
    return re.sub(r"(kernel|scale)$", "weight", re.sub(r"\b(mean|var)$", r"running_\1", path))


def torchvision_names(stages, convs):
    """The keys of torchvision's ResNet, less num_batches_tracked."""
    norm = ("weight", "bias", "running_mean", "running_var")
    names = {"conv1.weight", "fc.weight", "fc.bias", *(f"bn1.{leaf}" for leaf in norm)}
    for stage, blocks in enumerate(stages, start=1):
        for block in range(blocks):
            prefix = f"layer{stage}.{block}"
            for index in range(1, convs + 1):
                names |= {f"{prefix}.conv{index}.weight", *(f"{prefix}.bn{index}.{leaf}" for leaf in norm)}
            if block == 0 and (stage > 1 or convs == 3):
                names |= {f"{prefix}.downsample.0.weight", *(f"{prefix}.downsample.1.{leaf}" for leaf in norm)}
    return names


@pytest.mark.parametrize(
    ("name", "stages", "convs"),
    [("resnet18", (2, 2, 2, 2), 2), ("resnet34", (3, 4, 6, 3), 2), ("resnet50", (3, 4, 6, 3), 3)],
)
def test_resnet_names_are_torchvisions(name, stages, convs):
    _, variables = shapes_of(ModelConfig(name, width=4))
    paths = [row[0] for tree in variables.values() for row in parameter_table(tree)]
    names = [torch_name(path) for path in paths]
    assert len(names) == len(set(names))
    assert set(names) == torchvision_names(stages, convs)
    if name == "resnet34":
        assert len(names) + sum(n.endswith("running_mean") for n in names) == 218


@pytest.mark.parametrize("name", ["tiny_cnn", "simple_cnn", "cifar_cnn", "speedrun_net"])
def test_names_of_parameters_and_statistics_do_not_collide_in_pytorch(name):
    _, variables = shapes_of(ModelConfig(name, width=4))
    names = [torch_name(row[0]) for tree in variables.values() for row in parameter_table(tree)]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[a-z]+\d?(\.\w+)*\.(weight|bias|running_mean|running_var)", n) for n in names)


def scales_of(params) -> dict[str, list[float]]:
    """The scale of every norm, by its path."""
    leaves: dict[str, Any] = dict(flatten_dict(params, sep="/"))
    return {path: leaf.tolist() for path, leaf in leaves.items() if path.endswith("scale")}


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_resnet_initialisation(block):
    model = ResNet(10, stage_sizes=(1, 1), block=block)
    params = jax.tree.map(np.asarray, init_variables(model, KEY, images_of(8))["params"])
    kernel, out = params["layer2_0"]["conv2"]["kernel"], 128 * block.expansion
    assert kernel.std() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.02)
    assert np.abs(kernel).max() > 3.5 * kernel.std()
    assert params["layer2_0"]["downsample_0"]["kernel"].std() == pytest.approx((2 / out) ** 0.5, rel=0.02)
    assert 0.98 < np.abs(params["fc"]["kernel"]).max() * out**0.5 <= 1.0001
    assert all(set(values) == {1} for values in scales_of(params).values())


@pytest.mark.parametrize(("block", "last"), [(BasicBlock, "bn2"), (Bottleneck, "bn3")])
def test_a_block_starts_as_its_shortcut_where_asked(block, last):
    model = ResNet(10, stage_sizes=(1,), block=block, width=2, zero_init_residual=True)
    scales = scales_of(init_variables(model, KEY, images_of(8))["params"])
    assert set(scales.pop(f"layer1_0/{last}/scale")) == {0}
    assert all(set(values) == {1} for values in scales.values())


def test_the_key_fixes_the_parameters():
    model = create_model(ModelConfig("tiny_cnn", width=2), 10)
    first, again, other = (init_variables(model, jax.random.key(seed), images_of(8)) for seed in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.array_equal(first["params"]["conv1"]["kernel"], other["params"]["conv1"]["kernel"])
    assert not np.array_equal(
        first["params"]["conv2"]["kernel"][:, :, :2, :4], first["params"]["conv3"]["kernel"][:, :, :2, :4]
    )


@pytest.mark.parametrize("norm", NORMS)
def test_variables_without_statistics_have_an_empty_place_for_them(norm):
    model = create_model(ModelConfig("tiny_cnn", norm=norm), 10)
    variables = jax.eval_shape(functools.partial(init_variables, model), KEY, images_of(8))
    assert set(variables) == {"params", "batch_stats"}
    assert (variables["batch_stats"] == {}) == (norm != "batch")


@pytest.mark.parametrize(
    ("name", "places"),
    [("tiny_cnn", 1), ("simple_cnn", 1), ("cifar_cnn", 6), ("speedrun_net", 0)]
    + [pytest.param("resnet18", 1, marks=pytest.mark.slow)],
)
def test_dropout_draws_in_training_only(name, places):
    def draws(train, dropout):
        _, variables = shapes_of(ModelConfig(name, width=2))  # of any dropout
        model = create_model(ModelConfig(name, width=2, dropout=dropout), 10)
        call = functools.partial(model.apply, train=train, mutable=["batch_stats"], rngs={"dropout": KEY})
        jaxpr = jax.make_jaxpr(call)(variables, images_of(32)).jaxpr
        return sum(equation.primitive.name == "random_bits" for equation, _ in equations(jaxpr))

    dropout = 0.5 if places else None
    assert draws(train=True, dropout=dropout) == places
    assert draws(train=False, dropout=dropout) == 0
    if places:
        assert draws(train=True, dropout=0.0) == 0


@pytest.mark.parametrize("name", ["tiny_cnn", "simple_cnn", "cifar_cnn", "resnet34", "speedrun_net"])
def test_width_and_dropout_default_to_the_architectures_own(name):
    width = {"tiny_cnn": 32, "simple_cnn": 32}.get(name, 64)
    dropout = {"tiny_cnn": 0.3, "simple_cnn": 0.0, "cifar_cnn": 0.25, "resnet34": 0.0}
    model = create_model(ModelConfig(name), 10)
    assert model.width == width
    if name != "speedrun_net":
        assert model.dropout == dropout[name]
        assert create_model(ModelConfig(name, dropout=0.1), 10).dropout == 0.1
    assert create_model(ModelConfig(name, width=6), 10).width == 6


def test_no_classes_and_unknown_group_sizes_are_refused():
    with pytest.raises(ConfigError, match="num_classes = 0"):
        create_model(ModelConfig(), 0)
    with pytest.raises(ConfigError, match=r"convs_per_group = 4 is not allowed: it must be 1, 2 or 3\."):
        SpeedrunNet(10, convs_per_group=4).init(KEY, images_of(16), train=False)


@pytest.mark.parametrize(("pairs", "bias"), [(13, False), (0, False), (6, True)])
def test_pairs_of_a_whitening_are_at_most_the_numbers_of_a_patch_and_have_no_bias(pairs, bias):
    with pytest.raises(ConfigError, match=rf"whiten_pairs = {pairs} is .* from 1 to 12, and whiten_bias False\."):
        SpeedrunNet(10, whiten_pairs=pairs, whiten_bias=bias).init(KEY, images_of(16), train=False)


def test_a_whitening_in_pairs_computes_what_one_with_the_negatives_does():
    images, options = images_of(16, count=8), {"width": 32, "whiten_bias": False}  # more filters than dirac_ fills
    whole, paired = SpeedrunNet(5, **options), SpeedrunNet(5, **options, whiten_pairs=12)
    variables = init_variables(whole, KEY, images)
    kernel = variables["params"]["whiten"]["kernel"]
    np.testing.assert_array_equal(kernel[..., 12:], -kernel[..., :12])
    params = {**variables["params"], "whiten": {"kernel": kernel[..., :12]}}
    expected: Any = whole.apply(variables, images, train=False)
    found: Any = paired.apply({**variables, "params": params}, images, train=False)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "smallest"),
    [("tiny_cnn", 8), ("simple_cnn", 4), ("cifar_cnn", 16), ("speedrun_net", 9)]
    + [pytest.param("resnet18", 1, marks=pytest.mark.slow)],
)
def test_images_may_have_any_size_down_to_the_smallest(name, smallest):
    check_sizes(ModelConfig(name, width=2), smallest)


@pytest.mark.parametrize(("stride", "smallest"), [(2, 16), (4, 30)])
def test_a_wider_whitening_needs_larger_images(stride, smallest):
    check_sizes(ModelConfig("speedrun_net", width=2, whiten_stride=stride), smallest)


def check_sizes(config, smallest):
    for size in (smallest, 33):
        model, variables = shapes_of(config, size=size)
        assert all(min(shape) > 0 for _, shape, _ in parameter_table(variables["params"]))
        check_network(model, (size, size, 3), (), 10)
    if smallest > 1:
        size = smallest - 1
        message = rf"{size}x{size}.*{type(model).__name__}.*{smallest}x{smallest}"
        with pytest.raises(ConfigError, match=message):
            check_network(model, (size, size, 3), (), 10)
        with pytest.raises(ConfigError, match=message):
            init_variables(model, KEY, images_of(size))


@pytest.mark.parametrize(
    ("norm", "convs", "count"), [("batch", 2, 7), ("group", 2, 7), ("none", 2, 1), ("batch", 1, 4), ("batch", 3, 10)]
)
def test_frozen_parameters_of_the_speedrun_net(norm, convs, count):
    model, variables = shapes_of(ModelConfig("speedrun_net", norm=norm, width=2, convs_per_group=convs))
    paths = [row[0] for row in parameter_table(variables["params"])]
    assert sum(any(re.search(pattern, path) for pattern in frozen_parameters(model)) for path in paths) == count


def test_init_variables_sets_the_whitening_kernel():
    images = images_of(16, count=8)
    whiten = init_variables(SpeedrunNet(5, width=1), KEY, images)["params"]["whiten"]
    np.testing.assert_allclose(whiten["kernel"], whitening_kernel(images), rtol=1e-4, atol=1e-4)
    bias, bound = np.abs(whiten["bias"]), 12**-0.5  # a patch has 12 numbers
    assert bias.shape == (24,) and 0.8 * bound < bias.max() <= bound and 0.3 * bound < bias.mean() < 0.7 * bound
    strided = init_variables(SpeedrunNet(5, width=1, whiten_stride=2, whiten_bias=False, whiten_pairs=3), KEY, images)[
        "params"
    ]
    expected = whitening_kernel(images, patch=4)[..., :3]
    np.testing.assert_allclose(strided["whiten"]["kernel"], expected, rtol=1e-3, atol=1e-3)


def test_only_the_trained_parameters_of_the_speedrun_net_have_a_gradient():
    model, images = create_model(ModelConfig("speedrun_net", width=2), 10), images_of(9)
    variables = init_variables(model, KEY, images)

    def loss(params):
        logits: Any = model.apply({**variables, "params": hold_frozen(model, params)}, images, train=False)
        return jnp.sum(logits**2)

    grads: dict[str, Any] = dict(flatten_dict(jax.jit(jax.grad(loss))(variables["params"]), sep="/"))
    still = {path for path, leaf in grads.items() if not jnp.any(leaf)}
    assert still == {"whiten/kernel", *(f"group{group}/bn{norm}/scale" for group in (1, 2, 3) for norm in (1, 2))}


def test_other_networks_freeze_nothing():
    assert frozen_parameters(create_model(ModelConfig("resnet18"), 10)) == ()


@pytest.mark.parametrize("convs", [1, 2, 3])
def test_the_speedrun_nets_groups_have_as_many_convolutions_as_asked_for(convs):
    variables = jax.eval_shape(
        functools.partial(SpeedrunNet(10, convs_per_group=convs).init, train=False), KEY, images_of(16)
    )
    expected = {f"{name}{index}" for name in ("conv", "bn") for index in range(1, convs + 1)}
    assert set(variables["params"]["group2"]) == expected
