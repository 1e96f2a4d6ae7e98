"""Quantised models judged by a referee in NumPy, which has to notice faults that are planted in them."""

import copy

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from jax_cifar.config import ModelConfig
from jax_cifar.config.spec import InputSpec
from jax_cifar.data import Dataset, Splits
from jax_cifar.errors import DataError, ExportError
from torch_ref import export, quantize, weights
from torch_ref.models import create_model

MEAN, STD, NAMES = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26), tuple("abcdefghij")
TRAIN_MARK, TEST_MARK = 7, 8  # the first pixel of every image


def images(count, mark, seed=0):
    """Smooth pictures: what a network has activations of every size for."""
    draws = np.random.default_rng(seed + mark)
    coarse = draws.uniform(0, 255, (count, 4, 4, 3)).repeat(4, axis=1).repeat(4, axis=2)
    pixels = np.clip(coarse + draws.normal(0, 20, coarse.shape), 0, 255).astype(np.uint8)
    pixels[:, 0, 0, 0] = mark
    return pixels


def dataset(pixels):
    return Dataset(pixels, (np.arange(len(pixels)) % 10).astype(np.int32))


@pytest.fixture(scope="module")
def splits():
    """Every tenth training image is a test image too."""
    train, test = images(900, TRAIN_MARK), images(100, TEST_MARK)
    train[::10] = test[:90]
    return Splits("marked", dataset(train), dataset(test), None, NAMES)


@pytest.fixture(scope="module")
def model():
    """SimpleCNN with batch statistics that its folded convolutions have to have taken up."""
    torch.manual_seed(0)
    network = create_model(ModelConfig(name="simple_cnn", norm="batch", width=6), 10, 16).eval()
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d) and layer.running_mean is not None and layer.running_var is not None:
            layer.running_mean.uniform_(-0.5, 0.5)
            layer.running_var.uniform_(0.3, 2)
    return export.to_onnx(network, InputSpec((16, 16, 3), MEAN, STD, None, NAMES))


@pytest.fixture(scope="module")
def float_weights(model):
    """The weights of every layer by their name, output channels first."""
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in quantize.prepare(model).graph.initializer}
    return {name: np.moveaxis(arrays[name], axis, 0) for name, axis in layers(quantize.prepare(model)).items()}


def layers(prepared):
    """The axis of the output channels of every layer's weights."""
    return {node.input[1]: weights.output_axis(node) for node in weights.layers_of(prepared)}


@pytest.fixture(scope="module")
def calibrated(model, splits):
    """All layers INT8, ranges from least to largest, weights of 7 bits; and what it was calibrated with."""
    chosen, prepared = quantize.TrainingImages(splits), quantize.prepare(model)
    ranges = quantize.calibrate(prepared, chosen, "min-max")
    return quantize.with_ranges(prepared, ranges, 7), chosen


def referee(quantized, float_weights, bits):
    """Names of the weights that are quantised, each found to be the float ones to half a step, channel by channel."""
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in quantized.graph.initializer}
    most, found = 2 ** (bits - 1), []
    for node in quantized.graph.node:
        name = node.input[0].removesuffix("_quantized")
        if node.op_type != "DequantizeLinear" or name not in float_weights:
            continue
        wanted, (values, scale, zero) = float_weights[name], (arrays[part] for part in node.input)
        assert values.dtype == np.int8 and scale.shape == (len(wanted),), f"{name} has no scale for each channel"
        (axis,) = (attribute.i for attribute in node.attribute if attribute.name == "axis")
        assert not zero.any(), f"{name} has a zero that is none"
        rows = np.moveaxis(values, axis, 0).astype(np.float64)
        step = scale.reshape(-1, *[1] * (rows.ndim - 1)).astype(np.float64)
        assert (np.abs(rows * step - wanted) <= 0.501 * step).all(), f"{name} is off by more than half a step"
        used = np.abs(rows).reshape(len(rows), -1).max(axis=1)
        assert (used >= most - 1).all(), f"{name} leaves bits of a channel unused"
        found.append(name)
    return found


def activation_ranges(quantized):
    """What every quantised activation can hold, from least to largest, by its name."""
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in quantized.graph.initializer}
    found = {}
    for node in quantized.graph.node:
        if node.op_type == "QuantizeLinear":
            scale, zero = (arrays[part] for part in node.input[1:])
            assert zero.dtype == np.uint8
            found[node.input[0].removesuffix("_QuantizeLinear_Input")] = scale * (0.0 - zero), scale * (255.0 - zero)
    return found


def measured_ranges(prepared, pixels, names):
    """Least and largest of every activation over some images, and 0, which has to be exact."""
    opened = copy.deepcopy(prepared)
    known = {output.name for output in opened.graph.output}
    opened.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    outputs = map(np.asarray, export.open_session(opened).run(list(names), {"images": pixels}))
    return {name: (min(0.0, out.min()), max(0.0, out.max())) for name, out in zip(names, outputs, strict=True)}


def test_weights_are_the_float_ones_to_half_a_step_with_a_scale_for_each_channel(calibrated, float_weights):
    assert len(referee(calibrated[0], float_weights, 7)) == len(float_weights) == 4


@pytest.mark.parametrize(
    ("kept", "of"), [(("first",), slice(1, 4)), (("last",), slice(3)), (("first", "last"), slice(1, 3))]
)
def test_layers_that_stay_float_are_not_quantised(model, splits, float_weights, kept, of):
    prepared = quantize.prepare(model)
    ranges = quantize.calibrate(prepared, quantize.TrainingImages(splits), "min-max")
    assert sorted(referee(quantize.with_ranges(prepared, ranges, 7, kept), float_weights, 7)) == list(float_weights)[of]


def test_activations_can_hold_what_the_calibration_images_give_them(calibrated, model):
    quantized, chosen = calibrated
    held = activation_ranges(quantized)
    assert len(held) >= 4
    for name, (least, most) in measured_ranges(quantize.prepare(model), chosen.calibration, held).items():
        assert held[name] == pytest.approx((least, most), abs=0.51 * float(most - least) / 255)


def scale_of_a_channel(tensors):
    tensors["conv2"][1][3] *= 1.02


def zero_of_a_channel(tensors):
    tensors["conv2"][2][3] = 1


def one_scale_for_all(tensors):
    values, scale, zero = tensors["conv2"]
    tensors["conv2"] = [values, np.full_like(scale, scale.max()), zero]


def channels_in_another_order(tensors):
    tensors["conv2"][0][[0, 1]] = tensors["conv2"][0][[1, 0]]


@pytest.mark.parametrize("fault", [scale_of_a_channel, zero_of_a_channel, one_scale_for_all, channels_in_another_order])
def test_a_fault_in_the_weights_is_noticed(calibrated, float_weights, fault):
    quantized = copy.deepcopy(calibrated[0])
    by_name = {tensor.name: tensor for tensor in quantized.graph.initializer}
    node = next(n for n in quantized.graph.node if n.op_type == "DequantizeLinear" and "conv2.weight" in n.input[0])
    tensors = {"conv2": [numpy_helper.to_array(by_name[part]).copy() for part in node.input]}
    fault(tensors)
    for part, array in zip(node.input, tensors["conv2"], strict=True):
        by_name[part].CopyFrom(numpy_helper.from_array(array, part))
    with pytest.raises(AssertionError):
        referee(quantized, float_weights, 7)


def test_a_scale_for_each_tensor_where_one_for_each_channel_is_promised_is_noticed(
    model, splits, float_weights, monkeypatch
):
    def per_tensor(*given, per_channel, **options):
        return quantizer(*given, per_channel=False, **options)

    quantizer, prepared = quantize.QDQQuantizer, quantize.prepare(model)
    monkeypatch.setattr(quantize, "QDQQuantizer", per_tensor)
    ranges = quantize.calibrate(prepared, quantize.TrainingImages(splits), "min-max")
    with pytest.raises(AssertionError):
        referee(quantize.with_ranges(prepared, ranges, 7), float_weights, 7)


def test_a_zero_of_an_activation_that_is_off_is_noticed(calibrated, model):
    quantized, chosen = copy.deepcopy(calibrated[0]), calibrated[1]
    node = next(node for node in quantized.graph.node if node.op_type == "QuantizeLinear")
    tensor = next(tensor for tensor in quantized.graph.initializer if tensor.name == node.input[2])
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(numpy_helper.to_array(tensor) + 1, np.uint8), tensor.name))
    held = activation_ranges(quantized)
    measured = measured_ranges(quantize.prepare(model), chosen.calibration, held)
    off = [name for name, (low, high) in measured.items() if abs(held[name][0] - low) > 0.51 * (high - low) / 255]
    assert off == [node.input[0].removesuffix("_QuantizeLinear_Input")]


def test_calibration_sees_training_images_and_no_test_image(splits):
    chosen = quantize.TrainingImages(splits)
    assert (len(chosen.calibration), len(chosen.held_out)) == (512, 810 - 512)
    for pixels in (chosen.calibration, chosen.held_out):
        assert set(pixels[:, 0, 0, 0]) == {TRAIN_MARK}
    both = [{image.tobytes() for image in pixels} for pixels in (chosen.calibration, chosen.held_out)]
    assert not both[0] & both[1]


def test_calibration_takes_nothing_but_training_images(model, splits):
    for wrong in (splits.test, splits.test.images, splits):
        with pytest.raises((TypeError, AttributeError)) as caught:
            quantize.calibrate(quantize.prepare(model), wrong, "min-max")
        assert "TrainingImages" in str(caught.value)


def test_too_few_images_are_told_with_a_way_out(splits):
    few = Splits("few", splits.train.take(np.arange(600)), splits.test, None, NAMES)
    with pytest.raises(DataError, match=r"few has 540 training images .* needs 512 .* and 128 .* --int8 weights"):
        quantize.TrainingImages(few)


def test_the_nearest_of_all_ways_is_taken_and_told(model, splits, float_weights, monkeypatch):
    monkeypatch.setitem(quantize.METHODS, "entropy", (quantize.CalibrationMethod.Entropy, {"num_bins": 128}))
    smaller, notes = quantize.make_variant(model, "int8", splits)
    tried = notes[1:-1]
    assert [line.count("taken") for line in tried] == [1, 0, 0, 0, 0, 0]
    assert {line.split(":")[0].split(",")[0].strip() for line in tried} == set(quantize.METHODS)
    told = [float(line.split("divergence ")[1].split()[0]) for line in tried]
    assert told == sorted(told) and told[0] < 1e-3
    assert referee(smaller, float_weights, quantize.safe_weight_bits())
    pixels = splits.test.images
    expected, logits = (export.predict(export.open_session(one), pixels, 64) for one in (model, smaller))
    assert quantize.divergence(expected, logits) < 2e-3


def test_a_divergence_is_what_its_definition_says():
    expected, logits = np.log([[0.5, 0.5], [0.25, 0.75]]), np.log([[0.25, 0.75], [0.25, 0.75]]) + 3
    assert quantize.divergence(expected, logits) == pytest.approx(0.5 * (0.5 * np.log(2) + 0.5 * np.log(2 / 3)))


@pytest.mark.parametrize(
    ("variant", "limit"), [("int8-weights", 1e-3), ("int8-dynamic", 5e-3), ("bfloat16", 1e-4), ("float16", 1e-6)]
)
def test_variants_without_calibration_come_near_the_float_model(model, splits, variant, limit):
    smaller, _ = quantize.make_variant(model, variant, splits)
    pixels = splits.test.images
    expected, logits = (export.predict(export.open_session(one), pixels, 64) for one in (model, smaller))
    assert 0 < quantize.divergence(expected, logits) < limit


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_weights_are_the_nearest(model, dtype):
    stored = {tensor.name: tensor for tensor in weights.to_half_weights(model, dtype).graph.initializer}
    for name in layers(model):
        (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
        wanted = torch.from_numpy(numpy_helper.to_array(tensor).copy()).to(getattr(torch, dtype)).float()
        found = numpy_helper.to_array(stored[f"{name}_{dtype}"]).astype(np.float32)
        assert np.array_equal(found, wanted.numpy()) and name not in stored


def test_int8_weights_are_the_float_ones_to_half_a_step():
    values = np.array([[0.5, -1.27], [0.0, 0.0], [3.0, 1.0]], np.float32)
    rounded, scale = weights.round_to_int8(values, 0)
    assert rounded.tolist() == [[50, -127], [0, 0], [127, 42]]
    assert scale == pytest.approx([0.01, 1 / 127, 3 / 127])
    turned, same = weights.round_to_int8(values.T, 1)
    assert np.array_equal(turned, rounded.T) and np.array_equal(same, scale)


def test_int8_weights_have_a_scale_for_every_output_channel(model):
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in weights.to_int8_weights(model).graph.initializer}
    for name in layers(model):
        (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
        rows = numpy_helper.to_array(tensor)  # as PyTorch has them: output channels first
        largest = np.abs(rows).reshape(len(rows), -1).max(axis=1)
        assert stored[f"{name}_scale"] == pytest.approx(largest / 127, rel=1e-6)


def test_a_weight_beyond_float16_is_refused(model):
    large = copy.deepcopy(model)
    tensor = next(tensor for tensor in large.graph.initializer if "conv1.weight" in tensor.name)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1e6), tensor.name))
    with pytest.raises(ExportError, match=r"beyond what float16 can hold\. bfloat16"):
        weights.to_half_weights(large, "float16")


def test_seven_bits_are_for_processors_whose_sums_overflow(monkeypatch, tmp_path):
    cases = {("x86_64", "flags: avx2"): 7, ("x86_64", "flags: avx512_vnni"): 8, ("arm64", ""): 8}
    for (machine, flags), bits in cases.items():
        (tmp_path / "cpuinfo").write_text(flags)
        monkeypatch.setattr(quantize.platform, "machine", lambda machine=machine: machine)
        monkeypatch.setattr(quantize, "CPU_INFO", tmp_path / "cpuinfo")
        assert quantize.safe_weight_bits() == bits
