"""ONNX files that stand on their own: one file, any batch size, the images' preparation inside, proved before written.

`to_onnx` makes a model of a network, `require_agreement` runs it in ONNX Runtime against the logits that it has to
give, `save` writes it. Nothing here knows JAX: expected logits come in as NumPy.
"""

import contextlib
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from jaxtyping import Float32, Num
from torch import Tensor, nn

from jax_cifar.errors import ConfigError, ExportError
from jax_cifar.files import atomic_write, expand

BATCHES = (1, 2, 7, 64)  # sizes that every exported model is run with; all images with the last
TOLERANCE = 1e-5  # of the largest logit: float32, in which runtimes sum in different orders

Images = Num[np.ndarray, "images axis1 axis2 axis3"]
Logits = Float32[np.ndarray, "images classes"]


class Deployed(nn.Module):
    """A network behind the preparation of its images: uint8 [batch, height, width, channel], 0 to 255, to logits."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.to(torch.float32) / 255
        return self.network(((pixels - self.mean) / self.std).permute(0, 3, 1, 2))


def normalize(
    images: Num[np.ndarray, "images height width channel"], mean: Sequence[float], std: Sequence[float]
) -> Float32[np.ndarray, "images channel height width"]:
    """What a model exported with `float_input` takes: float32 NCHW from uint8 NHWC."""
    pixels = images.astype(np.float32) / np.float32(255)
    normalized = (pixels - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return np.ascontiguousarray(normalized.transpose(0, 3, 1, 2))


def to_onnx(
    network: nn.Module,
    image_shape: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
    float_input: bool = False,
) -> onnx.ModelProto:
    """The network at evaluation as an ONNX model with input `images`, output `logits`, and a free batch size.

    Args:
        network: from `torch_ref.models.create_model`, with its weights; it is left in evaluation mode.
        image_shape: height, width, channels.
        mean, std: of the training images' channels, in units of the full range.
        float_input: False: uint8 [batch, height, width, channel], normalised inside the graph. True: float32
            [batch, channel, height, width], normalised by the caller as `normalize` does.
    """
    # Two images: from one, older exporters conclude that there is always one.
    example = torch.zeros(2, *image_shape, dtype=torch.uint8)
    module = Deployed(network, mean, std)
    if float_input:
        example, module = torch.from_numpy(normalize(example.numpy(), mean, std)), network
    with _quiet():
        program: Any = torch.onnx.export(
            module.eval(),
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


def require_agreement(model: onnx.ModelProto, images: Images, expected: Logits) -> Logits:
    """Run the model in ONNX Runtime on all images, and on the first ones in batches of every size in `BATCHES`.

    Returns the logits of all images.

    Raises:
        ExportError: a logit is further from the expected one than `TOLERANCE` times the largest.
    """
    session, scale = open_session(model), np.abs(expected).max()
    for size in BATCHES:
        count = len(images) if size == BATCHES[-1] else min(2 * size, len(images))
        logits = predict(session, images[:count], size)
        gap = np.abs(logits - expected[:count]).max()
        if not gap <= TOLERANCE * scale:  # a NaN is no agreement
            raise ExportError(
                f"The exported model does not give the network's logits: at batch size {size} they differ by {gap:.2g}"
                f" at a scale of {scale:.2g}. Nothing was written. Please report this, with the configuration."
            )
    return logits


def check_destination(path: str | Path) -> Path:
    """The path to write to, found writable before minutes are spent; raises `ConfigError` where it is not."""
    path = expand(path)
    if path.suffix != ".onnx":
        raise ConfigError(f"{path} does not end in .onnx.")
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name a file in it.")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            return path
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}. Choose another place.") from None


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write the model; the file appears whole, in the place of an older one, or not at all. Raises `ConfigError`."""
    try:
        with atomic_write(path) as file:
            file.write(model.SerializeToString())
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}. Choose another place.") from None


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
