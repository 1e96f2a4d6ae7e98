"""A page that runs an exported model in the browser: a folder of files that need no server and no network.

`make_page` gives the files, `write_page` puts them into a folder. The page's own files lie in `page/`, as they are;
what differs from model to model is data beside them, in scripts: a page that was opened from the disk may load those,
and nothing else.
"""

import base64
import gzip
import io
import json
import secrets
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from jax_cifar.data.folder import find_files
from jax_cifar.data.pictures import try_pictures
from jax_cifar.deploy.onnx import LARGEST_FILE, OnnxModel
from jax_cifar.deploy.web_runtime import VERSION, WebRuntime
from jax_cifar.errors import ConfigError, DataError, check
from jax_cifar.files import atomic_write, read_bytes
from jax_cifar.telemetry.html import PALETTE

MOST_BYTES = 4_000_000  # of the page beside its model, gzipped
MOST_SAMPLES = 10
_PAGE = Path(__file__).parent / "page"
_MADE_BY = "made-by-jax_cifar.txt"  # by this file a later call knows its own folder
_SAMPLE_SIDE = 256  # pixels


class Sample(NamedTuple):
    """An image to try, and its name as a reader is shown it."""

    name: str
    pixels: UInt8[np.ndarray, "height width channel"]  # one channel is grey, three are RGB


def make_page(path: Path, model: OnnxModel, samples: Iterable[Sample], runtime: WebRuntime) -> dict[str, bytes]:
    """The files of a page, by name.

    Args:
        path: ONNX file that `model` was read from.
        model: it takes square images of one channel (grey) or three.
        samples: images to try.
        runtime: from `load_runtime`.

    Raises:
        ConfigError: the model takes other images, or such as were normalised before.
    """
    height, width, channels = model.image_shape
    if height != width or channels not in (1, 3):
        raise ConfigError(f"{path} takes images of {height} x {width} x {channels}; a page makes squares, grey or RGB.")
    if model.is_normalized:
        raise ConfigError(f"{path} takes normalised images. Export it without --float-input to make a page of it.")
    onnx = read_bytes(path, LARGEST_FILE)
    name = _name(path, model)
    told = {"name": name, "facts": _facts(name, model, len(onnx)), "label_names": model.label_names}
    wasm = _base64(gzip.compress(runtime.wasm, 9, mtime=0))
    files = {file.name: file.read_bytes() for file in sorted(_PAGE.iterdir()) if file.is_file()}
    return files | {
        "style.css": PALETTE.read_bytes() + b"\n" + files["style.css"],
        "model.js": _script("model", {**told, "size": height, "channels": channels, "onnx": _base64(onnx)}),
        "samples.js": _script("samples", [_encode(sample) for sample in samples]),
        "ort.js": runtime.script,
        "runtime.js": _script("runtime", {"loader": runtime.loader.decode(), "wasm": wasm}),
        _MADE_BY: b"scripts/demo.py of jax_cifar made this folder, and may replace its files.\n",
    }


def _name(path: Path, model: OnnxModel) -> str:
    """The name of the experiment, where the file has it as `scripts/export.py` writes it."""
    with suppress(ValueError, RecursionError):
        config = json.loads(model.metadata.get("config", ""))
        if isinstance(config, dict) and isinstance(config.get("name"), str):
            return config["name"]
    return path.stem


def _facts(name: str, model: OnnxModel, size: int) -> str:
    """What the file says of itself, in a sentence; `size` in bytes."""
    said = f"{name}: {model.metadata.get('variant', 'float32')}, {size / 1e6:.1f} MB"
    with suppress(ValueError, KeyError):
        accuracy = float(model.metadata["test_accuracy"])
        said += f", right for {100 * accuracy:.1f} % of the test images of {model.metadata['dataset']}"
    return f"{said}. Computed by ONNX Runtime Web {VERSION}."


def weight(files: Mapping[str, bytes]) -> int:
    """Bytes of a page beside its model, as a server sends them gzipped."""
    return sum(len(gzip.compress(content, 9)) for name, content in files.items() if name != "model.js")


def check_destination(out: Path, overwrite: bool) -> None:
    """Raise `ConfigError` where a page must not, or cannot, be put into `out`."""
    check(out.parent.is_dir(), "--out", str(out), f"there is no folder {out.parent}")
    check(not out.exists() or out.is_dir(), "--out", str(out), "it is a file; name a folder")
    if out.is_dir() and any(out.iterdir()) and not (overwrite or (out / _MADE_BY).exists()):
        expected = "Name another folder, or say --overwrite."
        raise ConfigError(f"{out} holds files that scripts/demo.py did not make. {expected}")


def write_page(files: Mapping[str, bytes], out: Path) -> None:
    """Put the files into `out`: a new folder appears whole or not at all, in an old one each file is replaced at once.

    Raises:
        ConfigError: the folder cannot be written to, or the disk is full.
    """
    try:
        if out.exists():
            for name in sorted(files, key=lambda name: name == "index.html"):
                with atomic_write(out / name) as file:
                    file.write(files[name])
            return
        unfinished = out.with_name(f".{out.name}.{secrets.token_hex(4)}.unfinished")
        try:
            unfinished.mkdir()
            for name, content in files.items():
                (unfinished / name).write_bytes(content)
            unfinished.rename(out)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror}. Choose another place.") from None


def samples_of_set(
    images: UInt8[np.ndarray, "n height width channel"], labels: Int[np.ndarray, " n"], label_names: Sequence[str]
) -> list[Sample]:
    """The first image of each class, in the order of the set, for up to `MOST_SAMPLES` classes."""
    _, firsts = np.unique(labels, return_index=True)
    return [Sample(label_names[int(labels[i])], images[i]) for i in sorted(firsts)[:MOST_SAMPLES]]


def samples_of_folder(folder: Path) -> list[Sample]:
    """The first `MOST_SAMPLES` pictures in a folder: of each the central square, of at most `_SAMPLE_SIDE` pixels.

    Nothing else of a file gets into the page, such as the place that a camera has written into it.

    Raises:
        ConfigError: there is no such folder, or no picture in it.
    """
    check(folder.is_dir(), "--samples", str(folder), "it must be a folder of pictures")
    found = (_read_sample(path) for path, error in find_files(folder, folder) if not error)
    samples = list(islice((sample for sample in found if sample), MOST_SAMPLES))
    check(bool(samples), "--samples", str(folder), "no file in it can be read as a picture")
    return samples


def _read_sample(path: Path) -> Sample | None:
    (picture,) = try_pictures([path], _SAMPLE_SIDE)
    if isinstance(picture, DataError):
        return None
    side = min(picture.width, picture.height)
    if side < _SAMPLE_SIDE:
        (picture,) = try_pictures([path], side)  # as it is, not enlarged
    return None if isinstance(picture, DataError) else Sample(path.stem, picture.pixels)


def _encode(sample: Sample) -> dict[str, str]:
    """A sample as the page takes it: small images exactly, larger ones as JPEG."""
    pixels = sample.pixels
    kind, options = ("PNG", {"optimize": True}) if len(pixels) < _SAMPLE_SIDE else ("JPEG", {"quality": 90})
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(file, kind, **options)
    return {"name": sample.name, "type": f"image/{kind.lower()}", "picture": _base64(file.getvalue())}


def _script(name: str, values: Any) -> bytes:
    """A script that sets a global variable to JSON; in ASCII, so that no character of a text can mean anything else."""
    return f"globalThis.{name} = {json.dumps(values)};\n".encode("ascii")


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
