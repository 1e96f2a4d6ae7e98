"""Weights cross over exactly: JAX variables and PyTorch state dicts of every network, in both directions."""

import functools
import re
from typing import Any

import jax
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict
from networks import (
    CLASSES,
    CONFIGS,
    NAMES,
    QUICK_COMPILE,
    draw_variables,
    image_size,
    shorten,
    shorten_judge,
    template,
)
from tolerances import assert_close, difference

from jax_cifar import models
from jax_cifar.config import ModelConfig
from jax_cifar.errors import CheckpointError
from torch_ref import convert
from torch_ref.convert import from_torch, to_torch
from torch_ref.models import create_model

every_network = pytest.mark.parametrize("case", CONFIGS)
plain_network = pytest.mark.parametrize("case", ["tiny_cnn-batch", "simple_cnn-batch", "cifar_cnn-batch"])


def judge_of(case):
    return create_model(CONFIGS[case], CLASSES, image_size(case))


def drawn(case):
    return draw_variables(template(case))


@functools.cache
def jax_logits(case):
    """Images, and the JAX network's logits for them in evaluation."""
    size = image_size(case)
    images = np.random.default_rng(1).normal(size=(3, size, size, 3)).astype(np.float32)
    apply = functools.partial(models.create_model(CONFIGS[case], CLASSES).apply, train=False)
    return images, np.asarray(jax.jit(apply, compiler_options=QUICK_COMPILE)(drawn(case), images))


def torch_logits(case, images):
    judge = judge_of(case).eval()
    judge.load_state_dict(to_torch(drawn(case), judge), strict=True)
    with torch.no_grad():
        return judge(torch.from_numpy(np.moveaxis(images, -1, 1).copy())).numpy()


def flat(tree) -> dict[str, Any]:
    return dict(flatten_dict(tree, sep="/"))


def same_bits(actual, expected):
    actual, expected = flat(actual), flat(expected)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype and actual[name].shape == value.shape, name
        assert np.asarray(actual[name]).tobytes() == np.asarray(value).tobytes(), name


# Of every network test_submodules.py compares all layers.
@pytest.mark.parametrize("case", ["simple_cnn-batch", "cifar_cnn-batch", "resnet18-batch"])
def test_logits_agree(case):
    images, expected = jax_logits(case)
    assert_close(torch_logits(case, images), expected, "float32 network", "logits")


@pytest.mark.parametrize("case", [*(f"{name}-batch" for name in NAMES), "resnet18-imagenet", "speedrun_net-shallow"])
def test_logits_of_grey_images_that_are_no_squares_agree(case):
    size = image_size(case), image_size(case) + 16
    images = np.random.default_rng(1).normal(size=(3, *size, 1)).astype(np.float32)
    model = shorten(models.create_model(CONFIGS[case], CLASSES))
    apply = functools.partial(model.apply, train=False)
    variables = draw_variables(jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images))
    expected = np.asarray(jax.jit(apply, compiler_options=QUICK_COMPILE)(variables, images))
    judge = shorten_judge(create_model(CONFIGS[case], CLASSES, size, image_channels=1)).eval()
    judge.load_state_dict(to_torch(variables, judge), strict=True)
    with torch.no_grad():
        actual = judge(torch.from_numpy(images.reshape(3, 1, *size))).numpy()
    assert_close(actual, expected, "float32 network", "logits")


@plain_network
def test_without_the_flatten_permutation_logits_disagree(case, monkeypatch):
    monkeypatch.setattr(convert, "_FLATTENED", ())
    images, expected = jax_logits(case)
    gap, scale = difference(torch_logits(case, images), expected)
    assert gap > 1e-2 * scale


@pytest.mark.parametrize("case", ["simple_cnn-batch", "speedrun_net-batch"])
def test_with_kernels_transposed_wrongly_logits_disagree(case, monkeypatch):
    monkeypatch.setitem(convert._TO_TORCH, 4, (3, 2, 1, 0))
    images, expected = jax_logits(case)
    gap, scale = difference(torch_logits(case, images), expected)
    assert gap > 1e-2 * scale


@every_network
def test_round_trip_from_jax(case):
    judge, variables = judge_of(case), drawn(case)
    judge.load_state_dict(to_torch(variables, judge), strict=True)
    back = from_torch(judge.state_dict(), template(case))
    assert back.keys() == {"params", "batch_stats"}
    same_bits(back, variables)


@every_network
def test_round_trip_from_torch(case):
    judge = judge_of(case)
    draws = torch.Generator().manual_seed(3)
    state = {
        name: torch.randn(value.shape, generator=draws) if value.is_floating_point() else torch.tensor(7)
        for name, value in judge.state_dict().items()
    }
    judge.load_state_dict(state, strict=True)
    back = to_torch(from_torch(state, template(case)), judge)
    assert list(back) == list(judge.state_dict())
    same_bits(back, state)


def test_float64_and_bfloat16_take_the_type_of_where_they_go():
    case = "cifar_cnn-batch"
    judge, variables = judge_of(case), jax.tree.map(lambda leaf: leaf.astype(np.float64) / 3, drawn(case))
    judge.double().load_state_dict(to_torch(variables, judge))
    back = from_torch(judge.state_dict(), variables)
    same_bits(back, variables)
    half = judge_of(case).bfloat16().state_dict()
    exact = from_torch({name: value.float() for name, value in half.items()}, template(case))
    same_bits(from_torch(half, template(case)), exact)
    for value in judge.state_dict().values():
        value.zero_()
    same_bits(back, variables)  # they are copies, not windows on the live model


def torchvision_resnet_keys(stage_sizes):
    def norm(name):
        return [f"{name}.{key}" for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]

    keys = ["conv1.weight", *norm("bn1")]
    for stage, blocks in enumerate(stage_sizes, start=1):
        for index in range(blocks):
            block = f"layer{stage}.{index}"
            keys += [f"{block}.conv1.weight", *norm(f"{block}.bn1"), f"{block}.conv2.weight", *norm(f"{block}.bn2")]
            if stage > 1 and index == 0:
                keys += [f"{block}.downsample.0.weight", *norm(f"{block}.downsample.1")]
    return [*keys, "fc.weight", "fc.bias"]


def test_resnet34_is_torchvisions():
    with torch.device("meta"):
        judge = create_model(ModelConfig(name="resnet34"), 100)
    state = judge.state_dict()
    assert list(state) == torchvision_resnet_keys((3, 4, 6, 3))
    assert len(state) == 218
    assert sum(parameter.numel() for parameter in judge.parameters()) == 21_328_292
    assert state["layer4.0.downsample.0.weight"].shape == (512, 256, 1, 1)


SPOILT = [  # what happens to a mapping of "fc1" at SimpleCNN's first dense layer, and what the message says
    ("renamed", r"  missing: fc1\.weight\n  unexpected: fc1\.weights\n"),
    ("missing", r"  missing: fc1\.weight\n"),
    ("misshapen", r"  wrong shape: fc1\.weight \[16, 7\] instead of \[16, 128\]\n"),
]


def spoil(mapping, name, how, wrong):
    value = mapping.pop(name)
    if how == "renamed":
        mapping["fc1.weights" if "." in name else "weights"] = value
    elif how == "misshapen":
        mapping[name] = wrong


@pytest.mark.parametrize(("how", "message"), SPOILT)
def test_spoilt_state_dict_is_refused(how, message):
    state = judge_of("simple_cnn-batch").state_dict()
    spoil(state, "fc1.weight", how, torch.zeros(16, 7))
    with pytest.raises(CheckpointError, match=f"^The state dict does not fit the model:\n{message}Convert with "):
        from_torch(state, template("simple_cnn-batch"))


@pytest.mark.parametrize(("how", "message"), SPOILT)
def test_spoilt_variables_are_refused(how, message):
    variables = drawn("simple_cnn-batch")
    spoil(variables["params"]["fc1"], "kernel", how, np.zeros((7, 16)))
    with pytest.raises(CheckpointError, match=f"^The JAX variables do not fit the model:\n{message}Convert with "):
        to_torch(variables, judge_of("simple_cnn-batch"))


def test_batch_statistics_and_counters_are_accounted_for():
    judge, variables = judge_of("simple_cnn-batch"), drawn("simple_cnn-batch")
    with pytest.raises(CheckpointError, match=r"missing: bn1\.running_mean, bn1\.running_var, bn2\.running_mean"):
        to_torch({"params": variables["params"]}, judge)
    state = judge.state_dict()
    del state["bn2.num_batches_tracked"]
    with pytest.raises(CheckpointError, match=r"missing: bn2\.num_batches_tracked\n"):
        from_torch(state, variables)


def test_the_message_stays_short():
    with pytest.raises(CheckpointError) as raised:
        to_torch(drawn("resnet50-batch"), judge_of("simple_cnn-batch"))
    lines = str(raised.value).splitlines()
    assert len(lines) <= 6 and all(len(line) <= 200 for line in lines)
    assert re.search(r"  unexpected: .* and \d+ more$", str(raised.value), re.MULTILINE)
    with pytest.raises(CheckpointError, match="unexpected: epoch, state_dict\n"):
        from_torch({"epoch": 3, "state_dict": {}}, template("simple_cnn-batch"))  # pyright: ignore[reportArgumentType]
