"""An exported model with INT8 weights and activations, calibrated on training images and on nothing else.

`to_int8` tries several ways to choose the activations' ranges, and layers that stay float, and keeps what comes nearest
to the float model on training images that it was not calibrated with. `to_int8_dynamic` needs no images, as ranges are
found anew for every batch. What quantises weights alone stands in `torch_ref/weights.py`.

The arithmetic is ONNX Runtime's own (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html).
"""

import contextlib
import copy
import hashlib
import io
import logging
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import onnx
from jaxtyping import Float, UInt8
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QDQQuantizer,
    QuantType,
    create_calibrator,
    quant_pre_process,
    quantize_dynamic,
)

from jax_cifar.data import Splits
from jax_cifar.errors import DataError
from torch_ref import weights
from torch_ref.export import open_session, predict
from torch_ref.weights import LAYERS

Variant = Literal["float32", "int8", "int8-dynamic", "int8-weights", "bfloat16", "float16"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)
CALIBRATION_IMAGES, HELD_OUT_IMAGES, LEAST_HELD_OUT = 512, 2048, 128
CPU_INFO = Path("/proc/cpuinfo")  # of Linux
BATCH = 64  # images whose activations are in memory at once

# How the range of an activation is found. The histograms' defaults are those of symmetric ranges, of which an
# activation behind a ReLU would use half.
METHODS: dict[str, tuple[CalibrationMethod, dict[str, Any]]] = {
    "min-max": (CalibrationMethod.MinMax, {}),
    "entropy": (CalibrationMethod.Entropy, {"num_bins": 512}),
    "percentile": (CalibrationMethod.Percentile, {"num_bins": 4096, "percentile": 99.99, "symmetric": False}),
}
_BITS = {
    7: "this processor has no VNNI, and its sums of products of 8 bits would overflow",
    8: "for processors with VNNI or of another kind than x86; on others sums may overflow",
}
QUANTIZED = (*LAYERS, "Add", "Relu", "MaxPool", "AveragePool", "GlobalAveragePool", "Flatten", "Reshape", "Transpose")

Images = UInt8[np.ndarray, "images height width channel"]
Logits = Float[np.ndarray, "images classes"]


class TrainingImages:
    """Images to calibrate with, and others to choose by, of the training part: there is no way to put others in.

    They lie evenly over the whole part, so that of a set in order of its classes every class is there. An image that is
    in the test part too is left out.

    Raises:
        DataError: the part has too few images.
    """

    def __init__(self, splits: Splits) -> None:
        images = splits.train.images
        tested = set(map(_digest, splits.test.images))
        wanted = CALIBRATION_IMAGES + HELD_OUT_IMAGES
        spread = np.unique(np.linspace(0, len(images) - 1, wanted).astype(int))
        chosen = [i for i in spread if _digest(images[i]) not in tested]
        if len(chosen) < CALIBRATION_IMAGES + LEAST_HELD_OUT:
            raise DataError(
                f"{splits.name} has {len(chosen)} training images that are not test images too; INT8 needs"
                f" {CALIBRATION_IMAGES} to calibrate with and {LEAST_HELD_OUT} to judge by. --int8 weights needs none."
            )
        calibrating = np.zeros(len(chosen), bool)
        calibrating[np.linspace(0, len(chosen) - 1, CALIBRATION_IMAGES).astype(int)] = True
        self.calibration: Images = images[np.array(chosen)[calibrating]]
        self.held_out: Images = images[np.array(chosen)[~calibrating]]


class Candidate(NamedTuple):
    """One way to quantise, and how near it comes to the float model on the held-out training images."""

    method: str
    float_layers: tuple[str, ...]  # of "first" and "last", those that stay float
    divergence: float  # mean Kullback-Leibler divergence of the probabilities from the float model's, nats
    same: float  # share of images of the same class

    def __str__(self) -> str:
        kept = f", {' and '.join(self.float_layers)} layer float" if self.float_layers else ""
        return f"{self.method}{kept}: {self.same:.2%} of classes the same, divergence {self.divergence:.2g} nats"


class Quantized(NamedTuple):
    """An INT8 model, and the ways that were tried, the one that was taken first."""

    model: onnx.ModelProto
    tried: tuple[Candidate, ...]
    weight_bits: int


def make_variant(model: onnx.ModelProto, variant: Variant, splits: Splits | None) -> tuple[onnx.ModelProto, list[str]]:
    """A float32 model in another precision, and lines that tell how it was made.

    Args:
        model: from `torch_ref.export.to_onnx`, with uint8 images.
        variant: "int8" is calibrated; the others need no images.
        splits: the data set of the network; None will do for all but "int8".

    Raises:
        DataError: there are no training images to calibrate with, or too few.
        ExportError: a weight is beyond the range of float16.
    """
    match variant:
        case "float32":
            return model, []
        case "int8":
            if splits is None:
                raise DataError("There are no training images to calibrate with.")
            images = TrainingImages(splits)
            quantized = to_int8(model, images)
            lines = [f"{candidate}{', taken' * (i == 0)}" for i, candidate in enumerate(quantized.tried)]
            calibrating, judging = len(images.calibration), len(images.held_out)
            return quantized.model, [
                f"calibrated on {calibrating} training images, compared with the float model on {judging:,} others:",
                *(f"  {line}" for line in lines),
                f"weights of {quantized.weight_bits} bits: {_BITS[quantized.weight_bits]}",
            ]
        case "int8-dynamic":
            bits = safe_weight_bits()
            return to_int8_dynamic(model, bits), [f"weights of {bits} bits: {_BITS[bits]}"]
        case "int8-weights":
            return weights.to_int8_weights(model), []
    return weights.to_half_weights(model, variant), []


def to_int8(model: onnx.ModelProto, images: TrainingImages, weight_bits: int | None = None) -> Quantized:
    """Weights INT8 per output channel, activations UINT8 per tensor, as pairs of QuantizeLinear and DequantizeLinear.

    What comes before the first layer, the images' preparation, stays float and exact.

    Args:
        model: from `torch_ref.export.to_onnx`, with uint8 images.
        images: to calibrate with and to choose by.
        weight_bits: 8, or 7 for processors on which a sum of two products of 8 bits overflows; default: by this one.
    """
    bits, prepared = weight_bits or safe_weight_bits(), prepare(model)
    expected = predict(open_session(prepared), images.held_out, BATCH)

    def attempt(method: str, kept: tuple[str, ...]) -> tuple[Candidate, onnx.ModelProto]:
        quantized = with_ranges(prepared, ranges[method], bits, kept)
        logits = predict(open_session(quantized), images.held_out, BATCH)
        same = float((logits.argmax(1) == expected.argmax(1)).mean())
        return Candidate(method, kept, divergence(expected, logits), same), quantized

    ranges = {method: calibrate(prepared, images, method) for method in METHODS}
    attempts = [attempt(method, ()) for method in METHODS]
    best = min(attempts, key=_distance)[0].method
    attempts += [attempt(best, kept) for kept in (("first",), ("last",), ("first", "last"))]
    attempts.sort(key=_distance)
    return Quantized(attempts[0][1], tuple(candidate for candidate, _ in attempts), bits)


def to_int8_dynamic(model: onnx.ModelProto, weight_bits: int | None = None) -> onnx.ModelProto:
    """Weights INT8 per tensor; the range of an activation is that of the batch at hand, found while the model runs."""
    reduced, prepared = (weight_bits or safe_weight_bits()) == 7, prepare(model)
    # Shapes are inferred again; before ONNX Runtime 1.32 those noted here would be compared with weights it transposes.
    del prepared.graph.value_info[:]
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "dynamic.onnx")
        # ONNX Runtime convolves integers only where the weights are unsigned, with one scale for all of them.
        quantize_dynamic(prepared, path, weight_type=QuantType.QUInt8, reduce_range=reduced)
        return onnx.load(path)


def safe_weight_bits() -> int:
    """8 where this processor adds products of 8 bits without overflow (VNNI, or no x86), else 7.

    Before VNNI, x86 adds two products of an unsigned and a signed byte in 16 bits, and cuts the sum off.
    """
    if platform.machine().lower() not in ("x86_64", "amd64", "i386", "i686"):
        return 8
    return 8 if CPU_INFO.is_file() and "vnni" in CPU_INFO.read_text() else 7


def divergence(expected: Logits, logits: Logits) -> float:
    """Mean Kullback-Leibler divergence of the probabilities of `logits` from those of `expected`, in nats."""
    wanted, found = _log_softmax(expected), _log_softmax(logits)
    return float((np.exp(wanted) * (wanted - found)).sum(axis=1).mean())


def prepare(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with shapes inferred and what is constant computed, as quantisation wants it."""
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        onnx.save(model, path)
        quant_pre_process(path, path, skip_symbolic_shape=True)
        return onnx.load(path)


def calibrate(model: onnx.ModelProto, images: TrainingImages, method: str) -> Any:
    """The range of every activation over the images to calibrate with; a few images' activations in memory at once."""
    if not isinstance(images, TrainingImages):
        raise TypeError(f"Calibration takes TrainingImages and nothing else, no {type(images).__name__}.")
    kind, options = METHODS[method]
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        onnx.save(model, path)
        calibrator: Any = create_calibrator(
            path, QUANTIZED, str(path.with_stem("augmented")), kind, extra_options=options
        )
        for start in range(0, CALIBRATION_IMAGES, BATCH):
            calibrator.collect_data(_OneBatch(images.calibration[start : start + BATCH]))
        return calibrator.compute_data()


class _OneBatch(CalibrationDataReader):
    def __init__(self, images: Images) -> None:
        self._batches = iter([{"images": images}])

    def get_next(self) -> Any:
        return next(self._batches, None)


def with_ranges(model: onnx.ModelProto, ranges: Any, bits: int, kept: tuple[str, ...] = ()) -> onnx.ModelProto:
    """A prepared model quantised, with the ranges that `calibrate` gave.

    Args:
        bits: of the weights, 7 or 8.
        kept: of "first" and "last", the layers that stay float.
    """
    layers = [layer.name for layer in weights.layers_of(model)]
    names = {"first": layers[0], "last": layers[-1]}
    with _quiet():
        quantizer = QDQQuantizer(
            copy.deepcopy(model),
            per_channel=True,
            reduce_range=bits == 7,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=ranges,
            nodes_to_quantize=[],
            nodes_to_exclude=[*_preparation(model, layers[0]), *(names[name] for name in kept)],
            op_types_to_quantize=list(QUANTIZED),
            extra_options={},
        )
        return quantizer.quantize_model()


def _preparation(model: onnx.ModelProto, first_layer: str) -> list[str]:
    """Names of the nodes that lead to the first layer."""
    makers = {output: node for node in model.graph.node for output in node.output}
    first = next(node for node in model.graph.node if node.name == first_layer)
    found, todo = [], list(first.input)
    while todo:
        node = makers.get(todo.pop())
        if node is not None and node.name not in found:
            found.append(node.name)
            todo.extend(node.input)
    return found


def _distance(attempt: tuple[Candidate, onnx.ModelProto]) -> float:
    return attempt[0].divergence


def _digest(image: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()


def _log_softmax(logits: Logits) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the quantisation tools print and log of their own steps from the user."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)
