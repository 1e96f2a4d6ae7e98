"""Whole networks against small PyTorch twins in float64: logits, every gradient, running statistics.

The twins bear the names that the JAX paths map to, and `load_state_dict(strict=True)` proves the mapping complete.
"""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict
from networks import QUICK_COMPILE
from tolerances import assert_close
from torch import nn

from jax_cifar import models
from jax_cifar.config import ModelConfig
from jax_cifar.models import CifarCNN, ResNet, SimpleCNN, SpeedrunNet, frozen_parameters, layers, parameter_table
from jax_cifar.models.resnet import BasicBlock, Bottleneck
from torch_ref import convert
from torch_ref.models import create_model

CLASSES, SIZE, BATCH = 5, 18, 4
F64 = {"dtype": jnp.float64, "param_dtype": jnp.float64}


@pytest.fixture(autouse=True)
def _x64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def conv(inputs, outputs, size, stride=1, padding=0, bias=False):
    return nn.Conv2d(inputs, outputs, size, stride, padding, bias=bias)


class TorchBlock(nn.Module):
    """torchvision's BasicBlock, or its Bottleneck where `bottleneck` is set."""

    def __init__(self, inputs, features, stride, bottleneck):
        super().__init__()
        outputs = features * 4 if bottleneck else features
        plan = (
            [(features, 1, 1), (features, 3, stride), (outputs, 1, 1)]
            if bottleneck
            else [(features, 3, stride), (features, 3, 1)]
        )
        channels = inputs
        for index, (width, size, step) in enumerate(plan, start=1):
            setattr(self, f"conv{index}", conv(channels, width, size, step, size // 2))
            setattr(self, f"bn{index}", nn.BatchNorm2d(width))
            channels = width
        self.depth, self.downsample = len(plan), None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = x
        for index in range(1, self.depth + 1):
            y = getattr(self, f"bn{index}")(getattr(self, f"conv{index}")(y))
            y = torch.relu(y) if index < self.depth else y
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class TorchResNet(nn.Module):
    def __init__(self, stages, width, bottleneck, imagenet_stem):
        super().__init__()
        self.conv1 = conv(3, width, 7, 2, 3) if imagenet_stem else conv(3, width, 3, 1, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if imagenet_stem else nn.Identity()
        self.stages, channels = [], width
        for stage, count in enumerate(stages):
            blocks = []
            for index in range(count):
                features = width * 2**stage
                blocks.append(TorchBlock(channels, features, 2 if stage and not index else 1, bottleneck))
                channels = features * 4 if bottleneck else features
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
            self.stages.append(getattr(self, f"layer{stage + 1}"))
        self.fc = nn.Linear(channels, CLASSES)

    def forward(self, x):
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        for stage in self.stages:
            x = stage(x)
        return self.fc(x.mean((2, 3)))


class TorchSimpleCNN(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.conv2 = conv(3, width, 3, 1, 1, True), conv(width, 2 * width, 3, 1, 1, True)
        self.fc1, self.fc2 = nn.Linear(2 * width * (SIZE // 4) ** 2, 4 * width), nn.Linear(4 * width, CLASSES)

    def forward(self, x):
        for layer in (self.conv1, self.conv2):
            x = nn.functional.max_pool2d(torch.relu(layer(x)), 2)
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))


class TorchCifarCNN(nn.Module):
    def __init__(self, width):
        super().__init__()
        channels = 3
        for stage in range(4):
            features = width * 2**stage
            block: Any = nn.Module()
            block.conv1, block.bn1 = conv(channels, features, 3, 1, 1), nn.BatchNorm2d(features)
            block.conv2, block.bn2 = conv(features, features, 3, 1, 1), nn.BatchNorm2d(features)
            setattr(self, f"block{stage + 1}", block)
            channels = features
        self.fc1 = nn.Linear(channels * (SIZE // 16) ** 2, 16 * width)
        self.fc2, self.fc3 = nn.Linear(16 * width, 8 * width), nn.Linear(8 * width, CLASSES)

    def forward(self, x):
        blocks: list[Any] = [self.block1, self.block2, self.block3, self.block4]
        for block in blocks:
            x = torch.relu(block.bn1(block.conv1(x)))
            x = nn.functional.max_pool2d(torch.relu(block.bn2(block.conv2(x))), 2)
        return self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(x.flatten(1))))))


class TorchSpeedrunNet(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.whiten = conv(3, 24, 2, bias=True)
        self.whiten.weight.requires_grad_(False)
        channels = 24
        for index, features in enumerate((width, 4 * width, 4 * width), start=1):
            group: Any = nn.Module()
            group.conv1, group.bn1 = conv(channels, features, 3, 1, 1), nn.BatchNorm2d(features, 1e-12, 0.4)
            group.conv2, group.bn2 = conv(features, features, 3, 1, 1), nn.BatchNorm2d(features, 1e-12, 0.4)
            group.bn1.weight.requires_grad_(False)
            group.bn2.weight.requires_grad_(False)
            setattr(self, f"group{index}", group)
            channels = features
        self.head = nn.Linear(channels, CLASSES, bias=False)

    def forward(self, x):
        gelu = nn.functional.gelu
        x = gelu(self.whiten(x))
        groups: list[Any] = [self.group1, self.group2, self.group3]
        for group in groups:
            x = gelu(group.bn1(nn.functional.max_pool2d(group.conv1(x), 2)))
            x = gelu(group.bn2(group.conv2(x)))
        return self.head(x.amax((2, 3))) / 9


def torch_name(path):
    path = re.sub(r"_(\d+)(?=/)", r".\1", path).replace("/", ".")
    return re.sub(r"(kernel|scale)$", "weight", re.sub(r"\b(mean|var)$", r"running_\1", path))


def to_torch(tree, flatten_channels):
    """Nested JAX arrays as a PyTorch state dict; `flatten_channels`: channels of the map that fc1 reads, 0 for none."""
    state = {}
    for path, leaf in flatten_dict(tree, sep="/").items():
        value = np.array(leaf)
        if path == "fc1/kernel" and flatten_channels:
            side = int((value.shape[0] // flatten_channels) ** 0.5)
            value = value.reshape(side, side, flatten_channels, -1).transpose(2, 0, 1, 3).reshape(value.shape)
        axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(value.ndim, (0,))
        state[torch_name(path)] = torch.from_numpy(value.transpose(axes).copy())
    return state


def resnet(block, stem):
    stages = (1, 2)
    ours = ResNet(CLASSES, stages, block, width=4, stem=stem, **F64)
    return ours, TorchResNet(stages, 4, block is Bottleneck, stem == "imagenet"), 0


NETWORKS = {
    "basic": lambda: resnet(BasicBlock, "cifar"),
    "bottleneck": lambda: resnet(Bottleneck, "imagenet"),
    "simple_cnn": lambda: (SimpleCNN(CLASSES, norm="none", width=3, **F64), TorchSimpleCNN(3), 6),
    "cifar_cnn": lambda: (CifarCNN(CLASSES, width=2, dropout=0.0, **F64), TorchCifarCNN(2), 16),
    "speedrun_net": lambda: (SpeedrunNet(CLASSES, width=2, **F64), TorchSpeedrunNet(2), 0),
}


def drawn(model):
    """Random variables: fresh ones are ones and zeros in places, which would hide mistakes."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)), train=False))
    draws = np.random.default_rng(2)

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            return jnp.asarray(draws.normal(size=leaf.shape) / np.prod(leaf.shape[:-1]) ** 0.5)
        return jnp.asarray(draws.uniform(-0.3, 0.3, size=leaf.shape) + (1 if name in ("scale", "var") else 0))

    return {"batch_stats": {}} | jax.tree_util.tree_map_with_path(draw, shapes)


def jax_side(model, variables, images, weights):
    """Training logits, running statistics after the pass, gradients of a weighted sum, evaluation logits."""

    @functools.partial(jax.jit, compiler_options=QUICK_COMPILE)
    def everything(params):
        def loss(params):
            tree = {**variables, "params": params}
            logits, updated = model.apply(tree, images, train=True, mutable=["batch_stats"])
            return jnp.sum(logits * weights), (logits, updated.get("batch_stats", {}))

        (_, (logits, stats)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return logits, stats, grads, model.apply({"params": params, "batch_stats": stats}, images, train=False)

    return everything(variables["params"])


def evaluate(model, variables, images):
    call = functools.partial(model.apply, train=False)
    return jax.jit(call, compiler_options=QUICK_COMPILE)(variables, images)


def torch_side(judge, state, images, weights):
    counters = {name: value for name, value in judge.state_dict().items() if name.endswith("num_batches_tracked")}
    judge.double().load_state_dict({**state, **counters}, strict=True)
    inputs = torch.from_numpy(np.moveaxis(np.array(images), -1, 1).copy())
    logits = judge(inputs)
    (logits * torch.from_numpy(weights)).sum().backward()
    judge.eval()
    with torch.no_grad():
        return logits.detach(), judge(inputs)


def setting(name):
    model, judge, flatten_channels = NETWORKS[name]()
    draws = np.random.default_rng(1)
    images, weights = jnp.asarray(draws.normal(size=(BATCH, SIZE, SIZE, 3))), draws.normal(size=(BATCH, CLASSES))
    variables = drawn(model)
    state = to_torch(variables["params"], flatten_channels) | to_torch(variables["batch_stats"], 0)
    return model, judge, flatten_channels, variables, images, weights, state


@pytest.mark.parametrize("name", NETWORKS)
def test_network(name):
    model, judge, flatten_channels, variables, images, weights, state = setting(name)
    logits, stats, grads, evaluated = jax_side(model, variables, images, weights)
    expected, expected_evaluated = torch_side(judge, state, images, weights)
    assert logits.dtype == jnp.float64
    assert_close(logits, expected.numpy(), "float64 network", "logits in training")
    assert_close(evaluated, expected_evaluated.numpy(), "float64 network", "logits in evaluation")
    buffers = dict(judge.named_buffers())
    for path, value in to_torch(stats, 0).items():
        assert_close(value.numpy(), buffers[path].numpy(), "float64 network", path)
    ours = to_torch(grads, flatten_channels)
    for path, parameter in judge.named_parameters():
        zero = torch.zeros_like(parameter)
        expected = zero if parameter.grad is None else parameter.grad
        assert_close(ours[path].numpy(), expected.numpy(), "float64 network", path)
    frozen = {
        torch_name(row[0])
        for row in parameter_table(grads)
        if any(re.search(p, row[0]) for p in frozen_parameters(model))
    }
    assert frozen == {path for path, parameter in judge.named_parameters() if not parameter.requires_grad}


@pytest.mark.parametrize("name", ["basic", "bottleneck"])
def test_same_padding_does_not_agree(name, monkeypatch):
    def same(x, kernel, strides, padding):
        return jax.lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    model, judge, _, variables, images, _, state = setting(name)
    monkeypatch.setattr(layers, "conv2d", same)
    logits = evaluate(model, variables, images)
    judge.double().eval().load_state_dict(state, strict=False)
    with torch.no_grad():
        expected = judge(torch.from_numpy(np.moveaxis(np.array(images), -1, 1).copy()))
    assert np.abs(logits - expected.numpy()).max() > 1e-2


def test_a_dense_kernel_in_the_wrong_flatten_order_does_not_agree():
    model, judge, _, variables, images, weights, _ = setting("simple_cnn")
    expected, _ = torch_side(judge, to_torch(variables["params"], 0), images, weights)
    logits = evaluate(model, variables, images)
    assert np.abs(logits - expected.numpy()).max() > 1e-2


@pytest.mark.parametrize("name", ["tiny_cnn", "simple_cnn", "cifar_cnn", "resnet18", "resnet50"])
def test_relu_passes_no_gradient_at_zero(name):
    """With kernels and biases of zero every ReLU but the dense ones stands exactly at zero."""
    config = ModelConfig(name=name, norm="none", width=2, dropout=0.0)
    model = models.create_model(config, CLASSES, jnp.float64, jnp.float64)
    images = jnp.asarray(np.random.default_rng(1).normal(size=(BATCH, SIZE, SIZE, 3)))
    variables = drawn(model)
    params = {
        layer: values if layer.startswith("fc") else jax.tree.map(jnp.zeros_like, values)
        for layer, values in variables["params"].items()
    }

    @functools.partial(jax.jit, compiler_options=QUICK_COMPILE)
    def gradients(params):
        return jax.grad(lambda params: jnp.sum(model.apply({"params": params}, images, train=True)))(params)

    judge = create_model(config, CLASSES, SIZE).double()
    judge.load_state_dict(convert.to_torch({"params": jax.device_get(params)}, judge))
    judge(torch.from_numpy(np.moveaxis(np.array(images), -1, 1).copy())).sum().backward()
    theirs = {path: np.zeros(p.shape) if p.grad is None else p.grad.numpy() for path, p in judge.named_parameters()}
    ours = convert.to_torch({"params": jax.device_get(gradients(params))}, judge)
    for path, expected in theirs.items():
        assert_close(ours[path].numpy(), expected, "float64 network", path)
