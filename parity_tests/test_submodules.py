"""Whole networks in float64, layer by layer: outputs in forward order, gradients from the last layer backwards.

Where the two frameworks part, the first layer that differs is named, not only the logits that suffer from it.
"""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict
from networks import QUICK_COMPILE, draw_variables, shorten, shorten_judge
from tolerances import agree
from torch import nn

from jax_cifar import capture, models
from jax_cifar.config import ModelConfig
from jax_cifar.config.spec import InputSpec
from jax_cifar.models.network import Network
from torch_ref.convert import to_torch, torch_name
from torch_ref.models import create_model

CLASSES, BATCH = 5, 3
# Strides meet odd and even sizes, and the plain CNNs flatten more than one pixel.
SIZES = {"tiny_cnn": 19, "simple_cnn": 10, "cifar_cnn": 32}
SIZE = 18
NAMES = ("tiny_cnn", "simple_cnn", "cifar_cnn", "resnet18", "resnet50", "speedrun_net")
CONFIGS = {
    f"{name}-{norm}": ModelConfig(name, norm=norm, width=2, dropout=None if name == "speedrun_net" else 0.0)
    for name in NAMES
    for norm in ("batch", "group", "none")
} | {
    "resnet18-imagenet": ModelConfig("resnet18", width=2, stem="imagenet"),
    "resnet34-whole": ModelConfig("resnet34", width=2),
    "speedrun_net-shallow": ModelConfig(
        "speedrun_net", width=2, convs_per_group=1, whiten_bias=False, whiten_stride=2, whiten_pairs=8
    ),
    "speedrun_net-residual": ModelConfig("speedrun_net", width=2, convs_per_group=3, early_average=True),
    "speedrun_net-residual-none": ModelConfig("speedrun_net", norm="none", width=2, convs_per_group=3),
}
CONTAINERS = (nn.Identity, nn.Sequential, nn.Dropout, nn.MaxPool2d)
Arrays = dict[str, np.ndarray]


class Trace(NamedTuple):
    """What one framework computed, under PyTorch's names and in PyTorch's layout."""

    evaluated: Arrays  # outputs of every layer and block in evaluation; the whole network's are "logits"
    trained: Arrays  # the same in training
    gradients: Arrays  # of every parameter
    statistics: Arrays  # running ones, after the pass in training


pytestmark = pytest.mark.usefixtures("x64")


def first_difference(actual: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> str | None:
    """Name of the first value, in the order of `expected`, that `actual` does not agree with; None if all agree."""

    def differs(name: str) -> bool:
        same_shape = actual[name].shape == expected[name].shape
        finite = np.isfinite(actual[name]).all()
        return not (same_shape and finite and agree(actual[name], expected[name], "float64 network"))

    return next(filter(differs, expected), None)


def inputs(case):
    """Images, and the weights of the sum of the logits whose gradient is taken."""
    size, draws = SIZES.get(CONFIGS[case].name, SIZE), np.random.default_rng(1)
    return draws.normal(size=(BATCH, size, size, 3)), draws.normal(size=(BATCH, CLASSES))


def shortened(case) -> bool:
    # One ResNet is whole.
    return CONFIGS[case].name.startswith("resnet") and not case.endswith("whole")


def network(case) -> Any:
    model: Any = models.create_model(CONFIGS[case], CLASSES, jnp.float64, jnp.float64)
    return shorten(model) if shortened(case) else model


@functools.cache
def drawn(case) -> Any:
    init = functools.partial(network(case).init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), jnp.asarray(inputs(case)[0]))
    return draw_variables({"batch_stats": {}} | shapes, np.float64)


def judge_of(case) -> nn.Module:
    judge: Any = create_model(CONFIGS[case], CLASSES, SIZES.get(CONFIGS[case].name, SIZE)).double()
    if shortened(case):
        judge = shorten_judge(judge)
    judge.load_state_dict(to_torch(drawn(case), judge), strict=True)
    return judge


def outputs_by_name(intermediates: Any) -> Arrays:
    """What flax captured, less its dropouts, which PyTorch has in other places."""
    outputs: Arrays = {}
    captured: dict[Any, Any] = dict(flatten_dict(intermediates))
    for (*path, _), (value,) in captured.items():
        if not any(part.startswith("Dropout") for part in path):
            name = torch_name("/".join(("params", *path, "kernel"))).removesuffix(".weight") if path else "logits"
            outputs[name] = np.moveaxis(np.array(value), -1, 1)
    return outputs


@functools.cache
def jax_trace(case) -> Trace:
    model, variables = network(case), drawn(case)
    images, weights = map(jnp.asarray, inputs(case))

    @functools.partial(jax.jit, compiler_options=QUICK_COMPILE)
    def everything(params, batch_stats):
        def forward(params, train):
            tree = {"params": models.hold_frozen(model, params), "batch_stats": batch_stats}
            kept = ["batch_stats", "intermediates"]
            return model.apply(tree, images, train=train, mutable=kept, capture_intermediates=True)

        def loss(params):
            logits, updated = forward(params, True)
            return jnp.sum(logits * weights), updated

        grads, updated = jax.grad(loss, has_aux=True)(params)
        return forward(params, False)[1]["intermediates"], updated, grads

    evaluated, updated, grads = jax.device_get(everything(variables["params"], variables["batch_stats"]))
    judge, stats = judge_of(case), updated.get("batch_stats", {})
    by_name = {name: x.numpy() for name, x in to_torch({"params": grads, "batch_stats": stats}, judge).items()}
    gradients = {name: by_name[name] for name, _ in judge.named_parameters()}
    statistics = {name: x for name, x in by_name.items() if "running" in name}
    return Trace(outputs_by_name(evaluated), outputs_by_name(updated["intermediates"]), gradients, statistics)


def torch_outputs(judge: nn.Module, images) -> tuple[torch.Tensor, Arrays]:
    """The logits, and what every layer returned in the order in which they returned."""
    outputs: Arrays = {}

    def keep(name, _module, _inputs, output):
        if re.fullmatch(r"group\d\.conv1", name):  # ours leaves out the odd last row and column, which no pool reads
            height, width = (size // 2 * 2 for size in output.shape[2:])
            output = output[:, :, :height, :width]
        outputs[name or "logits"] = output.detach().numpy()

    layers = [(name, module) for name, module in judge.named_modules() if not isinstance(module, CONTAINERS)]
    handles = [module.register_forward_hook(functools.partial(keep, name)) for name, module in layers]
    logits = judge(torch.from_numpy(np.moveaxis(images, -1, 1).copy()))
    for handle in handles:
        handle.remove()
    return logits, outputs


def torch_trace(case, plant: Callable[[Any], Any] = lambda judge: None) -> Trace:
    """`plant` may make a fault in the network."""
    (images, weights), judge = inputs(case), judge_of(case)
    plant(judge)
    with torch.no_grad():
        _, evaluated = torch_outputs(judge.eval(), images)
    logits, trained = torch_outputs(judge.train(), images)
    (logits * torch.from_numpy(weights)).sum().backward()
    parameters = [
        (f"{layer}.{leaf}", parameter)
        for layer in reversed([name for name in trained if name != "logits"])
        for leaf, parameter in judge.get_submodule(layer).named_parameters(recurse=False)
    ]
    gradients = {
        name: np.zeros(tuple(parameter.shape)) if parameter.grad is None else parameter.grad.numpy()
        for name, parameter in parameters
    }
    statistics = {name: x.numpy() for name, x in judge.named_buffers() if "running" in name}
    return Trace(evaluated, trained, gradients, statistics)


# Every architecture but the deepest, and every norm; the rest is left to the slow tests.
QUICK = ("tiny_cnn-batch", "simple_cnn-none", "resnet18-batch", "speedrun_net-batch")


@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CONFIGS]
)
def test_every_layer_agrees(case):
    ours, theirs = jax_trace(case), torch_trace(case)
    for part, actual, expected in zip(Trace._fields, ours, theirs, strict=True):
        assert actual.keys() == expected.keys()
        name = first_difference(actual, expected)
        assert name is None, f"{part}: {name} is the first to differ"
    assert theirs.gradients.keys() == dict(judge_of(case).named_parameters()).keys()


@pytest.mark.parametrize(
    ("case", "layer", "field", "value"),
    [
        ("resnet18-batch", "layer2.0.bn1", "eps", 1e-3),
        ("resnet18-batch", "layer2.1.conv2", "padding_mode", "circular"),
        ("resnet18-batch", "layer3.0.downsample.1", "eps", 1.1e-5),
        pytest.param("cifar_cnn-group", "block4.bn1", "num_groups", 1, marks=pytest.mark.slow),
        ("speedrun_net-batch", "group2.bn1", "eps", 1e-5),
        ("speedrun_net-batch", "group1.conv2", "padding_mode", "replicate"),
        pytest.param("speedrun_net-residual", "group2.bn3", "eps", 1e-5, marks=pytest.mark.slow),
        ("simple_cnn-none", "fc1", "bias", None),
    ],
)
def test_a_fault_in_one_layer_is_found_there(case, layer, field, value):
    ours = jax_trace(case)
    theirs = torch_trace(case, lambda judge: setattr(judge.get_submodule(layer), field, value))
    assert first_difference(ours.evaluated, theirs.evaluated) == layer
    assert first_difference(ours.trained, theirs.trained) == layer


def test_a_wrong_gradient_of_one_parameter_is_found_there():
    ours = jax_trace("resnet18-batch")
    for name in ("fc.bias", "layer2.1.bn2.weight", "conv1.weight"):
        theirs = torch_trace(
            "resnet18-batch", lambda judge, name=name: judge.get_parameter(name).register_hook(lambda g: 1.001 * g)
        )
        assert first_difference(ours.gradients, theirs.gradients) == name
        assert first_difference(ours.trained, theirs.trained) is None


def test_a_wrong_gradient_of_the_input_is_found_in_the_layer_before():
    def plant(judge):
        judge.layer2[1].conv2.register_full_backward_hook(lambda _module, grads, _outputs: (1.001 * grads[0],))

    ours, theirs = jax_trace("resnet18-batch"), torch_trace("resnet18-batch", plant)
    assert first_difference(ours.gradients, theirs.gradients) == "layer2.1.bn1.weight"
    assert first_difference(ours.trained, theirs.trained) is None


@pytest.mark.parametrize("case", ["simple_cnn-batch", "resnet18-batch"])
def test_capture_gives_what_forward_hooks_see(case):
    size = SIZES.get(CONFIGS[case].name, SIZE)
    images = np.random.default_rng(3).integers(0, 256, (BATCH, size, size, 3), np.uint8)
    spec = InputSpec((size, size, 3), (0.5, 0.4, 0.3), (0.25, 0.2, 0.3), None, tuple("abcde"))
    watched = Network(network(case), spec)
    # Compiled, as it is there: versions of XLA differ in how they round a division, and in which operations they join.
    seen = jax.jit(lambda images: watched.inputs(images.astype(jnp.float32) / 255))(images)
    with torch.no_grad():
        _, theirs = torch_outputs(judge_of(case).eval(), np.asarray(seen, np.float64))
    del theirs["logits"]
    found = capture((watched, drawn(case)), images, batch_size=2)
    kernels = {name: torch_name(f"params/{name}/kernel").removesuffix(".weight") for name in found}
    ours = {kernels[name]: np.moveaxis(x, -1, 1) for name, x in found.items() if not name.startswith("Dropout")}
    assert list(ours) == list(theirs)
    assert first_difference(ours, theirs) is None
    assert first_difference({**ours, "bn1": ours["conv1"]}, theirs) == "bn1"


def test_another_momentum_of_one_layers_statistics_is_found_there():
    ours = jax_trace("resnet18-batch")
    theirs = torch_trace("resnet18-batch", lambda judge: setattr(judge.layer2[1].bn2, "momentum", 0.11))
    assert first_difference(ours.statistics, theirs.statistics) == "layer2.1.bn2.running_mean"
    assert first_difference(ours.gradients, theirs.gradients) is None
