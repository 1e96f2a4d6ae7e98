"""ONNX files as the export writes them, made by hand of three operations: no PyTorch, and milliseconds."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WEIGHTS = np.array([[2, 0, 0], [0, 2, 0], [0.5, 0, 2]], np.float32)  # [channel, class]
METADATA = {
    "label_names": json.dumps(["red", "green", "blue"]),
    "mean": json.dumps([0.5, 0.4, 0.3]),
    "std": json.dumps([0.2, 0.25, 0.3]),
    "image_shape": json.dumps([4, 4, 3]),
    "side": "null",
    "variant": "float32",
    "dataset": "colours",
}


def tensor(name: str, values: Any) -> TensorProto:
    """An initializer."""
    return numpy_helper.from_array(np.asarray(values), name)


def node(operation: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
    """An operation with one output."""
    return helper.make_node(operation, inputs, [output], **attributes)


def make_model(float_input: bool = False, metadata: Mapping[str, str] = METADATA) -> onnx.ModelProto:
    """The mean of every channel times `WEIGHTS`, for images of 4 x 4 pixels, normalised inside or by the caller."""
    normalising = [
        node("Cast", ["images"], "float", to=TensorProto.FLOAT),
        node("Div", ["float", "255"], "pixels"),
        node("Sub", ["pixels", "mean"], "centred"),
        node("Div", ["centred", "std"], "normal"),
    ]
    constants: dict[str, Any] = {
        "255": np.float32(255),
        "mean": np.array([0.5, 0.4, 0.3], np.float32),
        "std": np.array([0.2, 0.25, 0.3], np.float32),
        "axes": np.array([2, 3] if float_input else [1, 2]),
        "weights": WEIGHTS,
    }
    mean = node("ReduceMean", ["images" if float_input else "normal", "axes"], "means", keepdims=0)
    kind, shape = (TensorProto.FLOAT, [3, 4, 4]) if float_input else (TensorProto.UINT8, [4, 4, 3])
    graph = helper.make_graph(
        [*([] if float_input else normalising), mean, node("MatMul", ["means", "weights"], "logits")],
        "colours",
        [helper.make_tensor_value_info("images", kind, ["batch", *shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [tensor(name, values) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, dict(metadata))
    return model


def save(model: onnx.ModelProto, folder: Path) -> Path:
    """Write the model to `model.onnx` in this folder."""
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path
