"""What was made of a network loaded afresh: `logits_elsewhere` has another process read it, and compute with it.

That process knows the file, or the run folder, and the images, and nothing of what made it.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from jax_cifar.errors import ExportError
from jax_cifar.files import with_library
from jax_cifar.signals import ending_with_us, last_acts

RUN = ""  # in place of a file's suffix: a run folder
ALL = 0  # the key of all images
BATCHES = (1, 7)  # sizes of a call that the first images are computed with too
CALLS = 2  # of each size

Logits = Float32[np.ndarray, "images classes"]


def logits_elsewhere(
    file: Path, suffix: str, images: UInt8[np.ndarray, "n height width channel"]
) -> Mapping[int, Logits]:
    """Logits in another process: of all images under `ALL`, and of the first ones by the size of a call.

    Args:
        file: what is read there, under whatever name.
        suffix: what it is, ".onnx" or ".stablehlo"; `RUN`: a run folder, whose network is computed in float32.
        images: as it takes them.

    Raises:
        ExportError: it cannot be loaded or run there.
        OSError: there is no space for the images.
    """
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/images.npy", images)
        # A CPU, as accelerators are not to be shared.
        environment = with_library() | {"JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-P", "-m", "jax_cifar.deploy.verify", str(file), suffix, folder]
        code, errors = _run(command, environment, folder)
        if code:
            last = (errors.strip().splitlines() or [f"exit code {code}"])[-1]
            raise ExportError(f"What was written cannot be used in another process: {last}.")
        return {size: np.load(f"{folder}/{size}.npy", allow_pickle=False) for size in (ALL, *BATCHES)}


def _run(command: Sequence[str], environment: Mapping[str, str], folder: str) -> tuple[int, str]:
    """Exit code and errors of a process that does not outlive this one, nor does the folder that it works in."""

    def clear() -> None:
        shutil.rmtree(folder, ignore_errors=True)

    quiet, kept = subprocess.DEVNULL, subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdout=quiet, stderr=kept, text=True) as process:
        last_acts.append(clear)
        try:
            with ending_with_us(process):
                _, errors = process.communicate()
        finally:
            last_acts.remove(clear)
    return process.returncode, errors


def main(arguments: Sequence[str]) -> None:
    """Load what was made and write the logits of the images: what runs in the other process."""
    file, suffix, folder = arguments
    model, images = _load(file, suffix), np.load(f"{folder}/images.npy", allow_pickle=False)
    np.save(f"{folder}/{ALL}.npy", model.logits(images))
    for size in BATCHES:
        starts = range(0, min(CALLS * size, len(images)), size)
        parts = [model.logits(images[start : start + size]) for start in starts]
        np.save(f"{folder}/{size}.npy", np.concatenate(parts))


def _load(file: str, suffix: str) -> Any:
    if suffix == RUN:
        from jax_cifar.run.load import load_run

        return load_run(file, dtype="float32")
    if suffix == ".onnx":
        from jax_cifar.deploy.onnx import load_onnx

        return load_onnx(file)
    from jax_cifar.deploy.stablehlo import load_stablehlo

    return load_stablehlo(file)


if __name__ == "__main__":
    main(sys.argv[1:])
