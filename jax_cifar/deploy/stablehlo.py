"""A trained network as StableHLO, in one file that JAX alone reads: no network's code, no configuration, no Flax.

The file is a ZIP archive with two entries, neither compressed: `metadata.json`, and `module.bin`, which is what
`jax.export` serialises: weights and preparation of the images inside, for any number of uint8 images [batch, height,
width, channel], to float32 logits, on CPU, CUDA and TPU. JAX promises to read it for six months after it was written.
"""

import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from jax_cifar.backend.compiler import one_program_at_a_time
from jax_cifar.config.spec import InputSpec
from jax_cifar.data.dataset import Images, as_pixels
from jax_cifar.deploy.model import ExportedModel
from jax_cifar.errors import ConfigError, ExportError
from jax_cifar.files import expand, require_regular

if TYPE_CHECKING:
    from jax_cifar.models.network import Network

METADATA, MODULE = "metadata.json", "module.bin"
PLATFORMS = ("cpu", "cuda", "tpu")
LARGEST_METADATA, LARGEST_FILE = 1 << 20, 1 << 32  # bytes
BATCH = 128  # images in a call; a program is compiled for every number of images that comes
# All that an exported network asks of its runtime beside arithmetic: that the batch has the shape it was made for.
KNOWN_CALLS = {"shape_assertion"}
_WAY_OUT = "Name a file that scripts/export.py wrote."


@dataclass(frozen=True)
class StablehloModel(ExportedModel):
    """A trained network from a StableHLO file."""

    call: Callable[[Any], Any]  # the compiled program: uint8 images to logits

    def logits(self, images: Images) -> Float32[np.ndarray, "n classes"]:
        """As `ExportedModel.logits` says, on JAX's default device."""
        pixels = as_pixels(images, self.image_shape)
        count, size = len(pixels), min(BATCH, len(pixels))
        logits = np.zeros((count, self.spec.num_classes), np.float32)
        for start in range(0, count, max(size, 1)):
            # The last batch is filled up with the last image, so that nothing is compiled for it alone.
            rows = np.minimum(np.arange(start, start + size), count - 1)
            with one_program_at_a_time():
                logits[start : start + size] = self.call(pixels[rows])[: count - start]
        return logits


def to_stablehlo(network: "Network", variables: Any, metadata: Mapping[str, Any]) -> bytes:
    """The content of a file with this network, its weights and these metadata; raises as `to_program`."""
    return _packed({METADATA: json.dumps(metadata, indent=2).encode(), MODULE: to_program(network, variables)})


def to_program(network: "Network", variables: Any) -> bytes:
    """The network with its weights, as `jax.export` serialises it.

    It is the same program for all platforms: float32 throughout, with none of the forms that are chosen for a CPU.

    Raises:
        ConfigError: the network cannot be traced for an unknown number of images.
    """
    variables = jax.device_get(variables)

    def logits(images: jax.Array) -> jax.Array:
        constants = jax.tree.map(jnp.asarray, variables)
        return network.logits(constants, images).astype(jnp.float32)

    batch = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((*batch, *network.spec.image_shape), jnp.uint8)
    try:
        # Accelerators would round the factors of products to fewer bits; and no path of this machine goes along.
        with jax.default_matmul_precision("highest"), _without_places():
            exported = jax.export.export(jax.jit(logits), platforms=PLATFORMS)(images)
    except Exception as error:
        first = (str(error).splitlines() or [""])[0].rstrip(".")
        raise ConfigError(
            f"{type(network.model).__name__} cannot be exported for any number of images: {type(error).__name__}:"
            f" {first}. x.shape[0] stands for that number; len(x) and int(...) want to know it."
        ) from error
    return bytes(exported.serialize())


@contextmanager
def _without_places() -> Iterator[None]:
    """Programs that are traced inside do not say which files and lines they come from."""
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)


def _packed(entries: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            archive.writestr(zipfile.ZipInfo(name), content)  # of no date: the same network gives the same bytes
    return file.getvalue()


def load_stablehlo(path: str | Path) -> StablehloModel:
    """Read a StableHLO file that `scripts/export.py` wrote, for JAX's default device.

    Nothing in it is executed but its arithmetic; a program that would call anything of the host is refused.

    Raises:
        ExportError: the file is missing, damaged, something else, or of a version that this JAX does not read.
    """
    path = expand(path)
    metadata, module = _read(path)
    try:
        spec = InputSpec.from_json({name: metadata[name] for name in InputSpec.__dataclass_fields__})
    except (KeyError, TypeError, ConfigError) as error:
        raise _refused(path, f"does not say what its network sees ({error})") from None
    return StablehloModel(spec, metadata, jax.jit(_deserialize(path, module, spec, metadata).call))


def read_metadata(path: Path) -> dict[str, Any]:
    """What a StableHLO file says of itself; raises `ExportError` where it is no such file."""
    return _read(path, module=False)[0]


def _read(path: Path, module: bool = True) -> tuple[dict[str, Any], bytes]:
    try:
        size = require_regular(path, LARGEST_FILE)
        with zipfile.ZipFile(path) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries.values())
            if [*entries] != [METADATA, MODULE] or not stored or entries[METADATA].file_size > LARGEST_METADATA:
                raise _refused(path, "is another archive")
            if sum(entry.file_size for entry in entries.values()) > size:
                raise _refused(path, "claims to hold more than it has")
            metadata = json.loads(archive.read(METADATA))
            content = archive.read(MODULE) if module else b""
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror or error}. {_WAY_OUT}") from None
    except (zipfile.BadZipFile, ValueError, RecursionError, NotImplementedError, RuntimeError) as error:
        raise _refused(path, f"is damaged, or no StableHLO file of ours ({error})") from None
    if not isinstance(metadata, dict):
        raise _refused(path, "has no table of metadata")
    return metadata, content


def _deserialize(path: Path, module: bytes, spec: InputSpec, metadata: Mapping[str, Any]) -> jax.export.Exported:
    try:
        exported = jax.export.deserialize(bytearray(module))
        calls = custom_calls(exported)
    except Exception as error:
        written = f"jax {str(metadata.get('jax', 'of an unknown version'))[:20]}"
        raise _refused(
            path,
            f"cannot be read by jax {jax.__version__} ({type(error).__name__}). It was written by {written}; such files"
            " are promised to be readable for six months. Export it anew from its run folder",
        ) from None
    if calls - KNOWN_CALLS:
        raise _refused(path, f"calls {', '.join(sorted(calls - KNOWN_CALLS))} of its host, which no network needs")
    images, logits = exported.in_avals, exported.out_avals
    good = len(images) == len(logits) == 1
    good = good and images[0].shape[1:] == spec.image_shape and images[0].dtype == np.uint8
    good = good and logits[0].shape[1:] == (spec.num_classes,) and logits[0].dtype == np.float32
    if not good:
        raise _refused(path, f"takes {images} and gives {logits}, not what its metadata say")
    return exported


def custom_calls(exported: jax.export.Exported) -> set[str]:
    """The names of what a program calls that is no arithmetic."""
    from jax.extend.mlir.dialects import stablehlo
    from jax.interpreters import mlir

    found = set()

    def look(operation: Any) -> Any:
        if "custom_call" in operation.name:
            found.add(str(operation.attributes["call_target_name"]).split('"')[1])
        return mlir.ir.WalkResult.ADVANCE

    with mlir.make_ir_context() as context:
        # Out of the versioned form that is stored, which jaxlib 0.7 does not parse.
        module: Any = stablehlo.deserialize_portable_artifact(context, exported.mlir_module_serialized)
        module.operation.walk(look)
    return found


def _refused(path: Path, fault: str) -> ExportError:
    return ExportError(f"{path} {fault}. {_WAY_OUT}")
