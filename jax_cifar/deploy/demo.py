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
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, ImageOps

from jax_cifar.deploy.web_runtime import WebRuntime
from jax_cifar.errors import ConfigError, check
from jax_cifar.files import atomic_write, read_bytes

MOST_BYTES = 4_000_000  # of the page beside its model, gzipped
MOST_SAMPLES = 10
_PAGE = Path(__file__).parent / "page"
_MADE_BY = "made-by-jax_cifar.txt"  # by this file a later call knows its own folder
_SAMPLE_SIDE = 512  # pixels that a sample may have a side


class Sample(NamedTuple):
    """A picture to try, and its name as a reader is shown it."""

    name: str
    picture: Image.Image


def make_page(
    onnx: bytes, name: str, label_names: Sequence[str], size: int, facts: str, samples: Iterable[Sample], runtime: WebRuntime
) -> dict[str, bytes]:
    """The files of a page, by name.

    Args:
        onnx: model with input `images`, uint8 [batch, size, size, 3], and output `logits`.
        name: of the model.
        label_names: of its classes, in order.
        size: pixels a side that it takes.
        facts: a line about it, at the foot of the page.
    """
    model = {"name": name, "label_names": list(label_names), "size": size, "facts": facts, "onnx": _base64(onnx)}
    wasm = _base64(gzip.compress(runtime.wasm, 9, mtime=0))
    files = {path.name: path.read_bytes() for path in sorted(_PAGE.iterdir()) if path.is_file()}
    return files | {
        "model.js": _script("model", model),
        "samples.js": _script("samples", [_encode(sample) for sample in samples]),
        "ort.js": runtime.script,
        "runtime.js": _script("runtime", {"loader": runtime.loader.decode(), "wasm": wasm}),
        _MADE_BY: b"scripts/demo.py of jax_cifar made this folder, and may replace its files.\n",
    }


def weight(files: Mapping[str, bytes]) -> int:
    """Bytes of a page beside its model, as a server sends them gzipped."""
    return sum(len(gzip.compress(content, 9)) for name, content in files.items() if name != "model.js")


def check_destination(out: Path, overwrite: bool) -> None:
    """Raise `ConfigError` where a page must not, or cannot, be put into `out`."""
    check(out.parent.is_dir(), "--out", str(out), f"there is no folder {out.parent}")
    check(not out.exists() or out.is_dir(), "--out", str(out), "it is a file; name a folder")
    if out.is_dir() and any(out.iterdir()) and not (overwrite or (out / _MADE_BY).exists()):
        raise ConfigError(f"{out} holds files that scripts/demo.py did not make. Name another folder, or say --overwrite.")


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
    images: UInt8[np.ndarray, "n height width 3"], labels: Int[np.ndarray, "n"], label_names: Sequence[str]
) -> list[Sample]:
    """The first picture of each class, in the order of the set, for up to `MOST_SAMPLES` classes."""
    _, firsts = np.unique(labels, return_index=True)
    return [Sample(label_names[labels[i]], Image.fromarray(images[i])) for i in sorted(firsts)[:MOST_SAMPLES]]


def samples_of_folder(folder: Path) -> list[Sample]:
    """The first pictures of a folder by name, upright, small, and without what a camera wrote into them."""
    check(folder.is_dir(), "--samples", str(folder), "it must be a folder of pictures")
    samples = []
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        with suppress(OSError, ValueError, Image.DecompressionBombError), Image.open(path) as image:
            picture = ImageOps.exif_transpose(image)
            picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
            picture.thumbnail((_SAMPLE_SIDE, _SAMPLE_SIDE))
            samples.append(Sample(path.stem, picture))
        if len(samples) == MOST_SAMPLES:
            break
    check(bool(samples), "--samples", str(folder), "no file in it can be read as a picture")
    return samples


def _encode(sample: Sample) -> dict[str, str]:
    """A sample as the page takes it: small ones and transparent ones exactly, photographs as JPEG."""
    exact = max(sample.picture.size) <= 128 or sample.picture.mode == "RGBA"
    file = io.BytesIO()
    sample.picture.save(file, "PNG" if exact else "JPEG", **({"optimize": True} if exact else {"quality": 88}))
    return {"name": sample.name, "type": f"image/{'png' if exact else 'jpeg'}", "picture": _base64(file.getvalue())}


def _script(name: str, values: Any) -> bytes:
    """A script that sets a global variable to JSON; in ASCII, so that no character of a text can mean anything else."""
    return f"globalThis.{name} = {json.dumps(values)};\n".encode("ascii")


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
