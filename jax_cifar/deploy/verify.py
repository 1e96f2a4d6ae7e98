"""Exported files loaded afresh: `logits_elsewhere` has another process read one, and compute with it.

That process knows the file and the images, and nothing of what made the file.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

from jax_cifar.errors import ExportError

ALL = 0  # the key of all images
BATCHES = (1, 7)  # sizes of a call that the first images are computed with too
CALLS = 2  # of each size

Logits = Float32[np.ndarray, "images classes"]


def logits_elsewhere(
    file: Path, suffix: str, images: UInt8[np.ndarray, "n height width channel"]
) -> Mapping[int, Logits]:
    """Logits by a file in another process: of all images under `ALL`, and of the first ones by the size of a call.

    Args:
        file: where it lies now, under whatever name.
        suffix: what it is, ".onnx" or ".stablehlo".
        images: as the file takes them.

    Raises:
        ExportError: it cannot be loaded or run there.
        OSError: there is no space for the images.
    """
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/images.npy", images)
        # The library itself, wherever this process has it from; and a CPU, as accelerators are not to be shared.
        paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-P", "-m", "jax_cifar.deploy.verify", str(file), suffix, folder]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise ExportError(f"The file was written, but cannot be used in another process: {last}. It was removed.")
        return {size: np.load(f"{folder}/{size}.npy", allow_pickle=False) for size in (ALL, *BATCHES)}


def main(arguments: Sequence[str]) -> None:
    """Load a file and write the logits of the images: what runs in the other process."""
    file, suffix, folder = arguments
    if suffix == ".onnx":
        from jax_cifar.deploy.onnx import load_onnx as load
    else:
        from jax_cifar.deploy.stablehlo import load_stablehlo as load
    model, images = load(file), np.load(f"{folder}/images.npy", allow_pickle=False)
    np.save(f"{folder}/{ALL}.npy", model.logits(images))
    for size in BATCHES:
        starts = range(0, min(CALLS * size, len(images)), size)
        parts = [model.logits(images[start : start + size]) for start in starts]
        np.save(f"{folder}/{size}.npy", np.concatenate(parts))


if __name__ == "__main__":
    main(sys.argv[1:])
