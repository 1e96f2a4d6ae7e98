"""The PyTorch networks refuse what the JAX ones refuse, and start as they start."""

import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict

from jax_cifar import models
from jax_cifar.config import ModelConfig
from jax_cifar.errors import ConfigError
from jax_cifar.models import layers
from torch_ref.convert import from_torch
from torch_ref.models import SpeedrunNet, create_model, group_count

CLASSES = 5
NAMES = ("tiny_cnn", "simple_cnn", "cifar_cnn", "resnet18", "resnet34", "resnet50", "speedrun_net")
QUICK_COMPILE = {"xla_backend_optimization_level": 0}  # compiling takes most of these tests' time


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
    shapes(config, smallest)
    create_model(config, CLASSES, smallest).eval()(torch.zeros(1, 3, smallest, smallest))
    with pytest.raises(ConfigError):
        shapes(config, smallest - 1)
    with pytest.raises(ConfigError, match=f"image_size = {smallest - 1} "):
        create_model(config, CLASSES, smallest - 1)


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (ModelConfig(name="simple_cnn", norm="none"), 32),
        (ModelConfig(name="resnet18", norm="group", width=16, stem="imagenet", zero_init_residual=True), 32),
        (ModelConfig(name="speedrun_net", width=16), 16),
        (ModelConfig(name="speedrun_net", width=8, norm="none"), 16),
    ],
    ids=["torch-default", "torchvision", "dirac", "dirac-bias"],
)
def test_initialisation_has_the_same_distribution(config, size):
    init = functools.partial(models.create_model(config, CLASSES).init, train=False)
    images = jnp.zeros((1, size, size, 3))
    ours = jax.jit(init, compiler_options=QUICK_COMPILE)(jax.random.key(0), images)
    torch.manual_seed(0)
    theirs = flat(from_torch(create_model(config, CLASSES, size).state_dict(), ours)["params"])
    for name, value in flat(ours["params"]).items():
        expected, actual = np.asarray(value), theirs[name]
        constant = expected == np.round(expected)  # zeros, ones and the identity filters
        np.testing.assert_array_equal(actual[constant], expected[constant], err_msg=name)
        expected, actual = expected[~constant], actual[~constant]
        if actual.size < 30:
            continue
        assert actual.std() == pytest.approx(expected.std(), rel=5 / math.sqrt(actual.size)), name
        assert abs(actual.mean() - expected.mean()) < 6 * expected.std() / math.sqrt(actual.size), name
        # 1.7 standard deviations reach to the end of a uniform distribution; a normal one goes on.
        if actual.size >= 500:
            assert (np.abs(actual).max() > 2 * actual.std()) == (np.abs(expected).max() > 2 * expected.std()), name


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


def test_whitening_kernel_is_the_same():
    images = np.random.default_rng(4).normal(size=(30, 10, 10, 3)).cumsum(axis=1)
    with jax.enable_x64(True):
        expected = np.asarray(models.whitening_kernel(jnp.asarray(images)))
    judge = SpeedrunNet(CLASSES, "batch").double()
    judge.whiten_from(torch.from_numpy(np.moveaxis(images, -1, 1).copy()))
    actual = judge.whiten.weight.detach().numpy().transpose(2, 3, 1, 0)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-9 * np.abs(expected).max())


def test_group_counts_are_the_same():
    assert all(group_count(channels) == layers.group_count(channels) for channels in range(1, 600))
