"""The published CIFAR-10 record in its own code: KellerJordan/cifar10-airbench, airbench94_muon.py, beside ours.

Nothing of it is in this repository: its file is given by its path. It is run as it runs itself, one run to compile and
then n runs, with its data where it looks for them and its clock kept: seconds of training and of the last evaluation
with six views, by the GPU's own events, without the evaluations in between.
"""

import importlib.util
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.processes import report


def main(job: dict[str, Any]) -> None:
    """In the child: report the seconds of the first run, then accuracy and seconds of every other one."""
    import torch

    peer, seconds = load(Path(job["file"]).resolve()), []

    def keep(variables: dict[str, Any], is_final_entry: bool) -> None:
        if is_final_entry:
            seconds.append(variables["time_seconds"])

    setattr(peer, "print_training_details", keep)  # noqa: B010
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        write_data(Path("cifar10"))
        started = time.perf_counter()
        model: Any = peer.CifarNet().cuda().to(memory_format=torch.channels_last)
        model.compile(mode="max-autotune")
        peer.main("warmup", model)
        report({"setup": time.perf_counter() - started})
        for run in range(job["runs"]):
            started = time.perf_counter()
            accuracy = float(peer.main(run, model))
            report({"accuracy": accuracy, "seconds": seconds[-1], "wall": time.perf_counter() - started})
        os.chdir("/")


def load(file: Path) -> ModuleType:
    """Import the peer's file without running what it does as a script."""
    spec = importlib.util.spec_from_file_location("airbench94_muon", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.argv[0] = str(file)  # it reads its own code from there
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def write_data(folder: Path) -> None:
    """CIFAR-10 as the peer keeps it: tensors, one file for each part."""
    import torch

    from jax_cifar.config import DataConfig
    from jax_cifar.data import load_data

    splits = load_data(DataConfig(name="cifar10"))
    folder.mkdir()
    for name, part in (("train", splits.train), ("test", splits.test)):
        images, labels = torch.tensor(part.images), torch.tensor(part.labels, dtype=torch.int64)
        torch.save({"images": images, "labels": labels, "classes": list(splits.label_names)}, folder / f"{name}.pt")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
