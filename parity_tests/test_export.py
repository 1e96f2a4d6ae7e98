"""Exported networks against the JAX networks: ONNX models in ONNX Runtime, and StableHLO programs."""

import dataclasses
import functools
import os
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
import torch
from networks import CLASSES, CONFIGS, QUICK_COMPILE, draw_variables, image_size, template
from tolerances import TOLERANCES, assert_close

from jax_cifar import models
from jax_cifar.config.spec import InputSpec
from jax_cifar.data.dataset import normalize
from jax_cifar.deploy import artefact, stablehlo
from jax_cifar.deploy.agreement import Expected, require_agreement, sample_of
from jax_cifar.errors import ConfigError, ExportError
from jax_cifar.evaluation.exact import in_float64
from jax_cifar.models.network import Network, downsample
from torch_ref import convert, export
from torch_ref.models import create_model

BATCHES = (1, 2, 7, 64)


def spec_of(case, side=None):
    size = image_size(case)
    names = tuple(map(str, range(CLASSES)))
    return InputSpec((size, size, 3), (0.49, 0.48, 0.45), (0.25, 0.24, 0.26), side, names)


def pixels(case, count=65):
    return np.random.default_rng(1).integers(0, 256, (count, *spec_of(case).image_shape), dtype=np.uint8)


def jax_network(case, side=None):
    return Network(models.create_model(CONFIGS[case], CLASSES), spec_of(case, side))


@functools.cache
def exact(case, side=None) -> Any:
    images = pixels(case)
    return in_float64(jax_network(case, side), draw_variables(template(case)), images[sample_of(len(images))])


@functools.cache
def expected(case, side=None):
    """What the JAX network makes of `pixels`."""
    compute = jax.jit(jax_network(case, side).logits, compiler_options=QUICK_COMPILE)
    return Expected(np.asarray(compute(draw_variables(template(case)), pixels(case))), exact(case, side).logits)


def torch_network(case):
    network = create_model(CONFIGS[case], CLASSES, image_size(case))
    network.load_state_dict(convert.to_torch(draw_variables(template(case)), network), strict=True)
    return network


def exported(case, network, side=None, float_input=False):
    return export.to_onnx(network, spec_of(case, side), float_input)


def run_onnx(model, images):
    """Logits of all images, and of the first ones in calls of every size."""
    session = export.open_session(model)
    return [export.predict(session, images if size == 64 else images[: 2 * size], size) for size in BATCHES]


# The rest is left to the slow tests.
QUICK = ("simple_cnn-batch",)


@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CONFIGS]
)
def test_every_network_agrees_at_every_batch_size(case):
    network = torch_network(case)
    export.require_twin(network, exact(case).inputs, exact(case).logits)
    model = exported(case, network)
    (images,), (logits,) = model.graph.input, model.graph.output
    dims = images.type.tensor_type.shape.dim
    assert (images.name, images.type.tensor_type.elem_type) == ("images", onnx.TensorProto.UINT8)
    assert dims[0].dim_param and [d.dim_value for d in dims[1:]] == [*spec_of(case).image_shape]
    assert (logits.name, logits.type.tensor_type.elem_type) == ("logits", onnx.TensorProto.FLOAT)
    for found in run_onnx(model, pixels(case)):
        seen = require_agreement(found, expected(case))
        assert seen.gap <= TOLERANCES["onnxruntime"].limit


def test_float_images_in_torchs_layout():
    case = "simple_cnn-batch"
    model = exported(case, torch_network(case), float_input=True)
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    images = normalize(pixels(case), spec_of(case).mean, spec_of(case).std)
    assert require_agreement(run_onnx(model, images)[-1], expected(case)).same == 65


@pytest.mark.parametrize("side", [7, 16, 18, 24, 31])
@pytest.mark.usefixtures("x64")
def test_downsampling_by_two_products_is_jaxs(side):
    images = np.random.default_rng(0).random((3, 32, 40, 3))
    rows, columns = export.downsampling(32, side), export.downsampling(40, side)
    found = np.einsum("rh,bhwc,sw->brsc", rows, images, columns)
    assert_close(found, np.asarray(downsample(jnp.asarray(images), side)), "float64 operation")


def test_a_network_that_looks_at_smaller_images_has_them_made_in_the_graph():
    case, side = "speedrun_net-shallow", 16
    (found, *_) = reversed(run_onnx(exported(case, torch_network(case), side), pixels(case)))
    assert require_agreement(found, expected(case, side)).gap <= TOLERANCES["onnxruntime"].limit
    without_antialiasing = torch.nn.functional.interpolate(torch.eye(18)[None, None], (side, 18), mode="bilinear")
    network = export.Deployed(torch_network(case), spec_of(case, side)).eval()
    network.rows, network.columns = without_antialiasing[0, 0], without_antialiasing[0, 0].T
    with torch.no_grad(), pytest.raises(ExportError, match="where rounding explains"):
        require_agreement(network(torch.from_numpy(pixels(case))).numpy(), expected(case, side))


def larger_epsilon(network):
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.eps = 1e-3


def not_a_number(network):
    torch.nn.init.constant_(network.fc2.bias, float("nan"))


def one_channels_scale(network):
    with torch.no_grad():
        network.bn2.weight[3] *= 1.001


@pytest.mark.parametrize("fault", [larger_epsilon, not_a_number, one_channels_scale])
def test_a_model_that_computes_something_else_is_refused(fault):
    case = "simple_cnn-batch"
    network = torch_network(case)
    fault(network)
    with pytest.raises(ExportError, match="The PyTorch network is not the JAX network"):
        export.require_twin(network, exact(case).inputs, exact(case).logits)
    with torch.no_grad(), pytest.raises(ExportError, match=r"batch size 2.* where rounding explains"):
        found = export.Deployed(network.eval(), spec_of(case))(torch.from_numpy(pixels(case)))
        require_agreement(found.numpy(), expected(case), " at batch size 2")


def test_the_bound_is_the_networks_own_error_in_float32():
    case = "simple_cnn-batch"
    right, noise = expected(case), np.random.default_rng(0).normal(size=expected(case).logits.shape)
    scale, own = abs(right.logits).max(), np.sqrt(np.mean((right.logits[sample_of(65)] - right.exact) ** 2))
    require_agreement(right.logits + np.float32(own) * noise.astype(np.float32), right)
    assert own < 1e-6 * scale
    with pytest.raises(ExportError, match="in the mean"):
        require_agreement(right.logits + np.float32(6 * own) * noise.astype(np.float32), right)
    rough = Expected(right.logits + np.float32(1e-4 * scale) * noise.astype(np.float32), right.exact)
    require_agreement(right.logits + np.float32(1e-4 * scale) * noise[::-1].astype(np.float32), rough)


def test_a_network_without_float64_is_bound_by_a_constant():
    logits = expected("simple_cnn-batch").logits
    assert "no float64" in str(require_agreement(logits, Expected(logits, None)))
    with pytest.raises(ExportError, match="where rounding explains"):
        require_agreement(logits + 2e-5 * abs(logits).max(), Expected(logits, None))


def test_another_process_that_gives_other_logits_leaves_the_older_file(tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_text("older")
    right = expected("simple_cnn-batch")
    shifted = {0: right.logits, 7: right.logits[:14] + 1}
    monkeypatch.setattr(artefact, "logits_elsewhere", lambda *given: shifted)
    with pytest.raises(ExportError, match="at batch size 7"):
        artefact.write_verified(path, b"new", pixels("simple_cnn-batch"), right)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("model.onnx", "older")]


@pytest.mark.parametrize(("suffix", "told"), [(".onnx", "no ONNX file"), (".stablehlo", "no StableHLO file")])
def test_what_another_process_cannot_load_is_removed(tmp_path, suffix, told):
    path = tmp_path / f"model{suffix}"
    with pytest.raises(ExportError, match=f"cannot be used in another process: .*{told}"):
        artefact.write_verified(path, b"no network", pixels("simple_cnn-batch"), expected("simple_cnn-batch"))
    assert not [*tmp_path.iterdir()]


def test_a_write_that_fails_leaves_the_older_file(tmp_path, monkeypatch):
    def full(*paths):
        raise OSError(28, "No space left on device")

    path = tmp_path / "model.onnx"
    path.write_text("older")
    monkeypatch.setattr(os, "replace", full)
    monkeypatch.setattr(artefact, "logits_elsewhere", full)
    with pytest.raises(ConfigError, match="No space left on device"):
        artefact.write_verified(path, b"new", pixels("simple_cnn-batch"), expected("simple_cnn-batch"))
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("model.onnx", "older")]


@pytest.mark.parametrize("case", ["cifar_cnn-batch", pytest.param("speedrun_net-residual", marks=pytest.mark.slow)])
def test_a_stablehlo_program_is_the_same_for_all_platforms_and_has_no_form_made_for_a_cpu(case):
    # Wide enough for Winograd's algorithm, which a CPU would get.
    model = models.create_model(dataclasses.replace(CONFIGS[case], width=64), CLASSES)
    network = Network(model, spec_of(case, 16))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)), train=False))
    values = {"batch_stats": {}} | jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)
    program = jax.export.deserialize(bytearray(stablehlo.to_program(network, values)))
    text = program.mlir_module()
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert stablehlo.custom_calls(program) == {"shape_assertion"}
    operations = set(re.findall(r"stablehlo\.(\w+)", text))
    assert "convolution" in operations
    assert operations.isdisjoint({"while", "dynamic_slice", "gather", "dynamic_gather", "optimization_barrier"})
    assert set(re.findall(r"precision (\w+)", text)) == {"HIGHEST"}
    assert "bf16" not in text and "f16" not in text
