"""The PyTorch networks refuse what the JAX ones refuse, and start as they start."""

import contextlib
import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn
from flax.traverse_util import flatten_dict
from networks import NAMES, QUICK_COMPILE
from scipy.stats import ks_2samp
from tolerances import assert_close

from jax_cifar import models
from jax_cifar.backend.precision import float64
from jax_cifar.config import ModelConfig
from jax_cifar.errors import ConfigError
from jax_cifar.models import layers
from torch_ref.convert import from_torch
from torch_ref.layers import group_count
from torch_ref.models import create_model
from torch_ref.speedrun import SpeedrunNet

CLASSES = 5


def flat(tree) -> dict[str, Any]:
    return dict(flatten_dict(tree, sep="/"))


def shapes(config, size=32):
    """Shapes and types of a JAX network's variables."""
    model, images = models.create_model(config, CLASSES), jnp.zeros((1, size, size, 3))
    return {"batch_stats": {}} | jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))


def test_no_classes_are_refused():
    with pytest.raises(ConfigError, match="num_classes = 0"):
        create_model(ModelConfig(), 0)


@pytest.mark.parametrize(
    ("name", "smallest"), [("tiny_cnn", 8), ("simple_cnn", 4), ("cifar_cnn", 16), ("speedrun_net", 9)]
)
def test_same_image_sizes_are_refused(name, smallest):
    config = ModelConfig(name=name, width=1)
    model = models.create_model(config, CLASSES)
    models.check_network(model, (smallest, smallest, 3), (), CLASSES)
    create_model(config, CLASSES, smallest).eval()(torch.zeros(1, 3, smallest, smallest))
    with pytest.raises(ConfigError, match="too small"):
        models.check_network(model, (smallest - 1, smallest - 1, 3), (), CLASSES)
    with pytest.raises(ConfigError, match=f"image_size = {smallest - 1} "):
        create_model(config, CLASSES, smallest - 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_same_numbers_of_whitening_pairs_are_refused(channels):
    most, shape = 4 * channels, (16, 16, channels)
    for pairs in (most, most + 1):
        config = ModelConfig("speedrun_net", width=1, whiten_bias=False, whiten_pairs=pairs)
        makes: list[Any] = [
            functools.partial(models.check_network, models.create_model(config, CLASSES), shape, (), CLASSES),
            functools.partial(create_model, config, CLASSES, shape[:2], channels),
        ]
        for make in makes:
            expected = pytest.raises(ConfigError, match=rf"whiten_pairs = {pairs} is .* it must be from 1 to {most}\b")
            with expected if pairs > most else contextlib.nullcontext():
                make()


SIGNIFICANCE = 1e-5  # level of one Kolmogorov-Smirnov test; some two hundred are made, of fixed seeds
INITIALISED = {
    "tiny_cnn": (ModelConfig("tiny_cnn", width=8), 16),
    "simple_cnn": (ModelConfig("simple_cnn", width=16, norm="none"), 16),
    "cifar_cnn": (ModelConfig("cifar_cnn", width=8), 16),
    "resnet18": (ModelConfig("resnet18", norm="group", width=16, stem="imagenet", zero_init_residual=True), 32),
    "resnet34": (ModelConfig("resnet34", width=4, norm="none"), 16),
    "resnet50": (ModelConfig("resnet50", width=4), 16),
    "speedrun_net": (ModelConfig("speedrun_net", width=16), 16),
    "speedrun_net-none": (ModelConfig("speedrun_net", width=8, norm="none"), 16),
    "speedrun_net-residual": (ModelConfig("speedrun_net", width=8, convs_per_group=3, early_average=True), 16),
}


@functools.cache
def initial_values(case) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Fresh parameters of both frameworks by path; values that are constants must be the same and are left out."""
    config, size = INITIALISED[case]
    init = functools.partial(models.create_model(config, CLASSES).init, train=False)
    ours = jax.jit(init, compiler_options=QUICK_COMPILE)(jax.random.key(0), jnp.zeros((1, size, size, 3)))
    torch.manual_seed(0)
    theirs = flat(from_torch(create_model(config, CLASSES, size).state_dict(), ours)["params"])
    drawn = {}
    for name, value in flat(ours["params"]).items():
        value = np.asarray(value)
        constant = value == np.round(value)  # zeros, ones and the identity filters
        np.testing.assert_array_equal(theirs[name][constant], value[constant], err_msg=name)
        if not constant.all():
            drawn[name] = value[~constant], theirs[name][~constant]
    return drawn


def same_distribution(ours, theirs) -> bool:
    """By Kolmogorov and Smirnov, and by the spread, which tells more where there are few values."""
    compared: Any = ks_2samp(ours, theirs)
    same_spread = ours.size < 30 or abs(theirs.std() / ours.std() - 1) < 5 / math.sqrt(ours.size)
    return same_spread and compared.pvalue > SIGNIFICANCE


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=pytest.mark.slow) if case.startswith("resnet") else case for case in INITIALISED],
)
def test_initialisation_has_the_same_distribution(case):
    for name, (ours, theirs) in initial_values(case).items():
        assert same_distribution(ours, theirs), name
        if ours.size >= 500:
            # 1.7 standard deviations reach to the end of a uniform distribution; a normal one goes on.
            assert (np.abs(theirs).max() > 2 * theirs.std()) == (np.abs(ours).max() > 2 * ours.std()), name


@pytest.mark.parametrize(
    ("case", "kernels", "wrong"),
    [
        # It counts inputs where torchvision counts outputs; where these are as many, it still cuts the tails off.
        pytest.param(
            "resnet18",
            ("layer3_0/conv1", "layer4_0/conv1", "layer4_1/conv2"),
            nn.initializers.he_normal(),
            marks=pytest.mark.slow,
        ),
        ("cifar_cnn", ("block1/conv2", "block4/conv1", "fc1", "fc3"), nn.initializers.lecun_normal()),
        ("speedrun_net", ("whiten", "head"), nn.initializers.lecun_normal()),
    ],
)
def test_another_initialisation_is_told_apart(case, kernels, wrong):
    right, params = initial_values(case), flat(shapes(*INITIALISED[case])["params"])
    for name in (f"{kernel}/kernel" for kernel in kernels):
        drawn = np.asarray(wrong(jax.random.key(0), params[name].shape))
        assert not same_distribution(drawn.ravel(), right[name][1]), name


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("name", ["resnet18", "speedrun_net"])
def test_same_parameters_are_frozen(name, norm):
    config = ModelConfig(name=name, norm=norm, width=2)
    judge = create_model(config, CLASSES)
    trained = {name: torch.zeros_like(value) for name, value in judge.state_dict().items()}
    trained |= {name: torch.full_like(value, value.requires_grad) for name, value in judge.named_parameters()}
    patterns = models.frozen_parameters(models.create_model(config, CLASSES))
    for path, value in flat(from_torch(trained, shapes(config))["params"]).items():
        assert np.all(value == 0) == any(re.search(pattern, path) for pattern in patterns), path


@pytest.mark.parametrize("name", NAMES)
def test_same_defaults(name):
    config = ModelConfig(name=name)
    with torch.device("meta"):
        judge = create_model(config, CLASSES)
    expected = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes(config)["params"]))
    assert sum(parameter.numel() for parameter in judge.parameters()) == expected
    dropouts = {module.p for module in judge.modules() if isinstance(module, torch.nn.Dropout)}
    model: Any = models.create_model(config, CLASSES)
    speedrun = name == "speedrun_net"
    assert dropouts == (set() if speedrun else {model.dropout})
    norm = (model.norm_epsilon, model.norm_momentum) if speedrun else (layers.BatchNorm.epsilon, 0.1)
    norms = {(module.eps, module.momentum) for module in judge.modules() if isinstance(module, torch.nn.BatchNorm2d)}
    assert norms == {norm}


@pytest.mark.parametrize(("stride", "pairs"), [(1, None), (2, 8)])
def test_whitening_kernel_is_the_same(stride, pairs):
    images = np.random.default_rng(4).normal(size=(30, 10, 10, 3)).cumsum(axis=1)
    with float64():
        expected = np.asarray(models.whitening_kernel(jnp.asarray(images), patch=2 * stride, pairs=pairs))
    judge = SpeedrunNet(
        CLASSES, "batch", {}, whiten_bias=pairs is None, whiten_stride=stride, whiten_pairs=pairs
    ).double()
    judge.init_from(torch.from_numpy(np.moveaxis(images, -1, 1).copy()))
    actual = judge.whiten.weight.detach().numpy().transpose(2, 3, 1, 0)
    assert_close(actual, expected, "float64 eigenvectors", "the kernel")


def test_group_counts_are_the_same():
    assert all(group_count(channels) == layers.group_count(channels) for channels in range(1, 600))
