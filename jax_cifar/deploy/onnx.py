"""ONNX files that `scripts/export.py` wrote, read back: predictions with ONNX Runtime, without JAX and PyTorch."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from jax_cifar.config.spec import InputSpec
from jax_cifar.data.dataset import Images, as_pixels, normalize
from jax_cifar.deploy.model import ExportedModel
from jax_cifar.errors import ConfigError, ExportError
from jax_cifar.files import expand, read_bytes

LARGEST_FILE = (1 << 31) - 1  # bytes: the format has no more
BATCH = 64  # images in a forward pass: more gain nothing on a CPU, and take memory
_WAY_OUT = "Name a file that scripts/export.py wrote."


@dataclass(frozen=True)
class OnnxModel(ExportedModel):
    """A trained network from an ONNX file."""

    is_normalized: bool  # the graph takes images as `jax_cifar.data.dataset.normalize` makes them, not pixels
    session: Any  # onnxruntime.InferenceSession

    def logits(self, images: Images) -> Float32[np.ndarray, "n classes"]:
        """As `ExportedModel.logits` says, in ONNX Runtime on the CPU."""
        pixels = as_pixels(images, self.image_shape)
        logits = np.zeros((len(pixels), self.spec.num_classes), np.float32)
        for start in range(0, len(pixels), BATCH):
            part = pixels[start : start + BATCH]
            inputs = normalize(part, self.spec.mean, self.spec.std) if self.is_normalized else part
            logits[start : start + BATCH] = self.session.run(["logits"], {"images": inputs})[0]
        return logits


def load_onnx(path: str | Path) -> OnnxModel:
    """Read an ONNX file that `scripts/export.py` wrote, on the CPU. Nothing in it is executed but its graph.

    Raises:
        ExportError: the file is missing, damaged, or another model: with other inputs or outputs, without metadata, or
            with operations that ONNX Runtime does not have.
        ConfigError: ONNX Runtime is not installed.
    """
    path = expand(path)
    session = _open(path, _read(path))
    metadata = session.get_modelmeta().custom_metadata_map
    is_normalized, shape = _images(path, session)
    model = OnnxModel(_spec(path, metadata, shape), metadata, is_normalized, session)
    try:
        logits = np.asarray(session.run(["logits"], {"images": _example(model)})[0])
    except Exception as error:
        raise _refused(path, f"does not run: {_first_line(error)}") from None
    expected = (2, model.spec.num_classes)
    if logits.dtype != np.float32 or logits.shape != expected:
        raise _refused(path, f"gives {logits.dtype} {list(logits.shape)} for 2 images of {expected[1]} classes")
    return model


def _read(path: Path) -> bytes:
    try:
        content = read_bytes(path, LARGEST_FILE)
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror}. {_WAY_OUT}") from None
    if content.startswith(b"PK\x03\x04") and b"module.bin" in content:
        raise ExportError(
            f"{path} is a StableHLO file, which jax_cifar.load_stablehlo reads in Python. For an ONNX file: export.py"
            f" --out {path.with_suffix('.onnx').name}"
        )
    # Weights in another file are found by their `location`: a stranger's may lead anywhere.
    if b"location" in content and any(_weights_elsewhere(path, content)):
        raise _refused(path, "keeps weights in another file")
    return content


def _weights_elsewhere(path: Path, content: bytes) -> Iterator[bool]:
    """For every tensor in the file, whether its values are said to lie elsewhere."""
    try:
        import onnx

        messages: list[Any] = [onnx.load_model_from_string(content)]
    except ImportError:
        raise _refused(path, "may keep weights in another file; install onnx to have it looked at") from None
    except Exception as error:
        raise _refused(path, f"is damaged, or no ONNX file ({_first_line(error)})") from None
    while messages:
        message = messages.pop()
        yield isinstance(message, onnx.TensorProto) and message.data_location == onnx.TensorProto.EXTERNAL
        values = (value for field, value in message.ListFields() if field.message_type is not None)
        messages += [each for value in values for each in (value if hasattr(value, "append") else [value])]


def _open(path: Path, content: bytes) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError("Reading an ONNX file needs onnxruntime. Install it with: pip install onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is wrong is raised too
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise _refused(path, f"is no ONNX file that can be used ({_first_line(error)})") from None


def _images(path: Path, session: Any) -> tuple[bool, list[Any]]:
    """Whether the graph takes normalised images, and their shape as height, width, channel."""
    inputs = {each.name: (each.type, each.shape) for each in session.get_inputs()}
    outputs = [each.name for each in session.get_outputs()]
    if list(inputs) == ["images"] and "logits" in outputs:
        kind, shape = inputs["images"]
        if kind == "tensor(uint8)" and len(shape) == 4 and not isinstance(shape[0], int):
            return False, shape[1:]
        if kind == "tensor(float)" and len(shape) == 4 and not isinstance(shape[0], int):
            return True, [*shape[2:], shape[1]]
    takes = ", ".join(f"{name} {kind} {shape}" for name, (kind, shape) in inputs.items())
    expected = "images, uint8 [batch, height, width, channel] or float [batch, channel, height, width]"
    raise _refused(path, f"takes {takes or 'nothing'} and gives {', '.join(outputs)}; expected {expected}, and logits")


def _spec(path: Path, metadata: Mapping[str, str], shape: list[Any]) -> InputSpec:
    """What the metadata say of the images and classes; files of earlier versions leave the shape to the graph."""
    values = {"image_shape": shape, "side": None}
    for name in ("label_names", "mean", "std", "image_shape", "side"):
        try:
            values |= {name: json.loads(metadata[name])} if name in metadata else {}
        except (ValueError, RecursionError):
            raise _refused(path, f"says {metadata[name][:80]!r} for {name}, which is no JSON") from None
    missing = [name for name in ("label_names", "mean", "std") if name not in values]
    if missing:
        raise _refused(path, f"does not say its {', '.join(missing)} in its metadata")
    try:
        spec = InputSpec.from_json(values)
    except ConfigError as error:
        raise _refused(path, f"has metadata that cannot be ({str(error).rstrip('.')})") from None
    if list(spec.image_shape) != shape:
        raise _refused(path, f"takes images of {shape}, while its metadata say {list(spec.image_shape)}")
    return spec


def _example(model: OnnxModel) -> np.ndarray:
    """Two images, to see that the graph runs."""
    images = np.zeros((2, *model.image_shape), np.uint8)
    return normalize(images, model.spec.mean, model.spec.std) if model.is_normalized else images


def _refused(path: Path, fault: str) -> ExportError:
    return ExportError(f"{path} {fault}. {_WAY_OUT}")


def _first_line(error: Exception) -> str:
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", first)[:200].rstrip(".")
