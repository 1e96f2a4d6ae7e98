"""Mistakes that whole networks could hide: padding, the order of flattening, and ReLU at zero.

That the networks agree layer by layer is in test_submodules.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from networks import CLASSES, QUICK_COMPILE, draw_variables, shorten, shorten_judge
from tolerances import assert_close, difference

from jax_cifar import models
from jax_cifar.config import ModelConfig
from jax_cifar.models import layers
from torch_ref import convert
from torch_ref.models import create_model

SIZE, BATCH = 18, 4
pytestmark = pytest.mark.usefixtures("x64")


def images():
    return np.random.default_rng(1).normal(size=(BATCH, SIZE, SIZE, 3))


def torch_images():
    return torch.from_numpy(np.moveaxis(images(), -1, 1).copy())


def network(config):
    """The JAX network, shortened, and variables drawn for it, both in float64."""
    model = shorten(models.create_model(config, CLASSES, jnp.float64, jnp.float64))
    shapes = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), jnp.asarray(images()))
    return model, draw_variables({"batch_stats": {}} | shapes)


def evaluate(model, variables):
    call = functools.partial(model.apply, train=False)
    return np.asarray(jax.jit(call, compiler_options=QUICK_COMPILE)(variables, images()))


def judge_of(config, variables):
    judge = shorten_judge(create_model(config, CLASSES, SIZE).double())
    judge.load_state_dict(convert.to_torch(variables, judge), strict=True)
    return judge


def torch_logits(config, variables):
    with torch.no_grad():
        return judge_of(config, variables).eval()(torch_images()).numpy()


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_same_padding_does_not_agree(name, monkeypatch):
    def same(x, kernel, strides, padding):
        return jax.lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    config = ModelConfig(name, width=2)
    model, variables = network(config)
    expected = torch_logits(config, variables)
    monkeypatch.setattr(layers, "conv2d", same)
    gap, scale = difference(evaluate(model, variables), expected)
    assert gap > 1e-2 * scale


@pytest.mark.parametrize(
    "name",
    ["tiny_cnn", "simple_cnn", "cifar_cnn", *(pytest.param(f"resnet{n}", marks=pytest.mark.slow) for n in (18, 50))],
)
def test_relu_passes_no_gradient_at_zero(name):
    """With kernels and biases of zero every ReLU but the dense ones stands exactly at zero."""
    config = ModelConfig(name, norm="none", width=2, dropout=0.0)
    model, variables = network(config)
    params = {
        layer: values if layer.startswith("fc") else jax.tree.map(np.zeros_like, values)
        for layer, values in variables["params"].items()
    }

    @functools.partial(jax.jit, compiler_options=QUICK_COMPILE)
    def gradients(params, images):
        return jax.grad(lambda params: jnp.sum(jnp.asarray(model.apply({"params": params}, images, train=True))))(
            params
        )

    judge = judge_of(config, {"params": params})
    judge(torch_images()).sum().backward()
    ours = convert.to_torch({"params": jax.device_get(gradients(params, images()))}, judge)
    for path, parameter in judge.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert_close(ours[path].numpy(), expected.numpy(), "float64 network", path)


def test_jnp_maximum_would_pass_half_of_it():
    assert jax.grad(lambda x: jnp.maximum(x, jnp.zeros_like(x)))(0.0) == 0.5
