"""An exported model with its weights in fewer bits; it computes in float32 as before, with the rounded weights."""

import copy
from collections.abc import Callable
from typing import Literal

import numpy as np
import onnx
import torch
from jaxtyping import Float32, Int8
from onnx import TensorProto, helper, numpy_helper

from jax_cifar.errors import ExportError

LAYERS = ("Conv", "Gemm", "MatMul")  # operators with weights
Weights = Float32[np.ndarray, "..."]
# What stands for a tensor of weights, and the node that makes float32 of it again, of this name.
Stored = tuple[list[TensorProto], onnx.NodeProto]


def to_int8_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Weights as whole numbers from -127 to 127, with a scale for every output channel: no images are needed."""

    def store(name: str, weights: Weights, axis: int) -> Stored:
        values, scale = round_to_int8(weights, axis)
        parts = {f"{name}_int8": values, f"{name}_scale": scale, f"{name}_zero": np.zeros(scale.shape, np.int8)}
        node = helper.make_node("DequantizeLinear", list(parts), [name], f"{name}_dequantized", axis=axis)
        return [numpy_helper.from_array(value, part) for part, value in parts.items()], node

    return _with_stored_weights(model, store)


def round_to_int8(weights: Weights, axis: int) -> tuple[Int8[np.ndarray, "..."], Float32[np.ndarray, "channels"]]:
    """The nearest multiples of a scale for every channel along `axis`, whose largest weight becomes 127 or -127."""
    rows = np.moveaxis(weights, axis, 0)
    largest = np.abs(rows).reshape(len(rows), -1).max(axis=1)
    scale = np.where(largest > 0, largest, 1).astype(np.float32) / np.float32(127)
    values = np.rint(rows / scale.reshape(-1, *[1] * (rows.ndim - 1)))
    return np.ascontiguousarray(np.moveaxis(values.astype(np.int8), 0, axis)), scale


def to_half_weights(model: onnx.ModelProto, dtype: Literal["bfloat16", "float16"]) -> onnx.ModelProto:
    """Weights as bfloat16 or float16, rounded to the nearest.

    Raises:
        ExportError: a weight is beyond the range of float16.
    """

    def store(name: str, weights: Weights, axis: int) -> Stored:
        rounded = torch.from_numpy(weights.copy()).to(getattr(torch, dtype))
        if not rounded.isfinite().all():
            largest = np.abs(weights).max()
            raise ExportError(f"A weight is {largest:.3g}, beyond what {dtype} can hold. bfloat16 has float32's range.")
        raw = rounded.view(torch.int16).numpy().tobytes()
        kind = getattr(TensorProto, dtype.upper())
        tensor = helper.make_tensor(f"{name}_{dtype}", kind, weights.shape, raw, raw=True)
        node = helper.make_node("Cast", [tensor.name], [name], f"{name}_float32", to=TensorProto.FLOAT)
        return [tensor], node

    return _with_stored_weights(model, store)


def _with_stored_weights(model: onnx.ModelProto, store: Callable[[str, Weights, int], Stored]) -> onnx.ModelProto:
    model = copy.deepcopy(model)
    graph = model.graph
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    nodes, done = [], set()
    for layer in layers_of(model):
        name = layer.input[1]
        if name not in done:
            tensors, node = store(name, numpy_helper.to_array(initializers[name]), output_axis(layer))
            graph.initializer.remove(initializers[name])
            graph.initializer.extend(tensors)
            nodes.append(node)
            done.add(name)
    layers = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *layers])
    onnx.checker.check_model(model, full_check=True)
    return model


def layers_of(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The operators that have weights, from the first convolution on: before it images are prepared."""
    names, nodes = {tensor.name for tensor in model.graph.initializer}, list(model.graph.node)
    start = next((i for i, node in enumerate(nodes) if node.op_type == "Conv"), 0)
    return [node for node in nodes[start:] if node.op_type in LAYERS and node.input[1] in names]


def output_axis(layer: onnx.NodeProto) -> int:
    """The axis of a layer's weights along which its output channels lie."""
    transposed = any(attribute.name == "transB" and attribute.i for attribute in layer.attribute)
    return 0 if layer.op_type == "Conv" or transposed else 1
