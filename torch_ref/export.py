"""ONNX models that stand on their own: one file, any batch size, the images' preparation inside.

`to_onnx` makes a model of a network, `require_twin` proves before that the network is the right one. Nothing here knows
JAX: expected logits come in as NumPy.
"""

import contextlib
import copy
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from jaxtyping import Float32, Float64, Num
from torch import Tensor, nn

from jax_cifar.config.spec import InputSpec
from jax_cifar.data.dataset import normalize
from jax_cifar.errors import ExportError

TWIN_TOLERANCE = 1e-11  # of the largest logit, in float64; the networks that ship were seen within 5e-15

Images = Num[np.ndarray, "images axis1 axis2 axis3"]
Logits = Float32[np.ndarray, "images classes"]


class Deployed(nn.Module):
    """A network behind the preparation of its images, to logits.

    It takes uint8 [batch, height, width, channel], 0 to 255; or, with `float_input`, float32 [batch, channel, height,
    width] that the caller has normalised. A network that looks at smaller images gets them by two matrix products.
    """

    mean: Tensor
    std: Tensor
    rows: Tensor
    columns: Tensor

    def __init__(self, network: nn.Module, spec: InputSpec, float_input: bool = False) -> None:
        super().__init__()
        self.network, self.takes_pixels = network, not float_input
        self.register_buffer("mean", torch.tensor(spec.mean))
        self.register_buffer("std", torch.tensor(spec.std))
        (height, width, _), side = spec.image_shape, spec.side
        self.shrinks = side is not None and (height, width) != (side, side)
        if self.shrinks:
            self.register_buffer("rows", torch.from_numpy(downsampling(height, side or height)).float())
            self.register_buffer("columns", torch.from_numpy(downsampling(width, side or width).T.copy()).float())

    def forward(self, images: Tensor) -> Tensor:
        if self.takes_pixels:
            images = ((images.to(torch.float32) / 255 - self.mean) / self.std).permute(0, 3, 1, 2)
        return self.network(self.rows @ images @ self.columns if self.shrinks else images)


def downsampling(size: int, side: int) -> Float64[np.ndarray, "side size"]:
    """The weights of `size` pixels in each of `side`, for antialiased bilinear downsampling.

    A triangle as wide as the shrinking asks for, about the middle of the new pixel, cut off at the border and scaled to
    a sum of one: `torch.nn.functional.interpolate(mode="bilinear", antialias=True)`, as
    JAX has it in `jax_cifar.models.network.downsample`.
    """
    ratio = size / side
    middles = (np.arange(side) + 0.5) * ratio - 0.5
    distances = np.abs(middles[:, None] - np.arange(size)) / max(ratio, 1)
    weights = np.maximum(0, 1 - distances)
    return weights / weights.sum(1, keepdims=True)


def to_onnx(network: nn.Module, spec: InputSpec, float_input: bool = False) -> onnx.ModelProto:
    """The network at evaluation as an ONNX model with input `images`, output `logits`, and a free batch size.

    Args:
        network: from `torch_ref.models.create_model` or `torch_ref.twin.load_twin`, with its weights; it is left in
            evaluation mode.
        spec: what it sees of images.
        float_input: False: uint8 [batch, height, width, channel], normalised inside the graph. True: float32
            [batch, channel, height, width], normalised by the caller as `jax_cifar.data.dataset.normalize` does.
    """
    # Two images: from one, older exporters conclude that there is always one.
    example = torch.zeros(2, *spec.image_shape, dtype=torch.uint8)
    if float_input:
        example = torch.from_numpy(normalize(example.numpy(), spec.mean, spec.std))
    with _quiet():
        program: Any = torch.onnx.export(
            Deployed(network, spec, float_input).eval(),
            (example,),
            dynamo=True,
            external_data=False,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
    model = program.model_proto
    _drop_traces(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def require_twin(
    network: nn.Module, inputs: Float64[np.ndarray, "n height width channel"], logits: Float64[np.ndarray, "n classes"]
) -> None:
    """Prove that a PyTorch network computes what the JAX network computes: in float64, where rounding hides nothing.

    Args:
        network: in float32, with its weights; it is not changed.
        inputs: of the JAX network, and its `logits`, both in float64.

    Raises:
        ExportError: the two differ by more than float64's rounding.
    """
    wide = copy.deepcopy(network).double().eval()
    with torch.no_grad():
        found = wide(torch.from_numpy(np.ascontiguousarray(inputs.transpose(0, 3, 1, 2)))).numpy()
    gap, scale = np.abs(found - logits).max(), np.abs(logits).max()
    if not gap <= TWIN_TOLERANCE * scale:
        raise ExportError(
            f"The PyTorch network is not the JAX network: in float64 their logits differ by {gap:.2g} at a scale of"
            f" {scale:.2g}. Nothing was written. A twin of your own has to compute the same (paddings, epsilons, the"
            " order of a flattened map); of a network that ships please report this, with the configuration."
        )


def set_metadata(model: onnx.ModelProto, **entries: Any) -> None:
    """Replace the model's metadata: text as it is, everything else as JSON."""
    text = {name: value if isinstance(value, str) else json.dumps(value) for name, value in entries.items()}
    onnx.helper.set_model_props(model, text)


def get_metadata(model: onnx.ModelProto) -> Mapping[str, str]:
    """The model's metadata, by name."""
    return {entry.key: entry.value for entry in model.metadata_props}


def open_session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """The model, ready to run in ONNX Runtime on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def predict(session: onnxruntime.InferenceSession, images: Images, batch_size: int) -> Logits:
    """Logits of every image, in order; the last batch is as short as it comes."""
    batches = [images[start : start + batch_size] for start in range(0, len(images), batch_size)]
    return np.concatenate([np.asarray(session.run(["logits"], {"images": batch})[0]) for batch in batches])


def _drop_traces(model: onnx.ModelProto) -> None:
    """Delete the exporter's notes, which hold the paths and the source of the machine that it ran on."""
    graph = model.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info):
        del part.metadata_props[:]
    for function in model.functions:
        for part in (function, *function.node):
            del part.metadata_props[:]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's warnings, which are about its own insides, from the user."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
