"""One trained network in several runtimes: the same classes of all test images, logits, accuracy, size and latency.

In float32: JAX, PyTorch, ONNX Runtime, OpenVINO, and onnxruntime-web in a headless Chromium. In INT8: the last three.
Logits are compared with those of the first of each table. All have as many threads as the process has cores, but for
the browser, which has one. A runtime that is not at hand is named with what it lacks.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.browser import run_onnx_in_browser
from benchmarks.timing import Case
from jax_cifar.backend.threads import cpu_count
from jax_cifar.data import Dataset
from jax_cifar.errors import ConfigError, check
from jax_cifar.evaluation import latency
from jax_cifar.lab import deployed
from jax_cifar.lab.deployed import Figures, Way
from jax_cifar.run.load import Run, load_run
from torch_ref import export, quantize
from torch_ref.twin import make_twin

RUNTIMES = ("jax", "torch", "onnxruntime", "openvino", "onnxruntime-web")
AGREEMENT = 1e-5  # of the largest logit: how near two float32 programs come that sum in different orders
BROWSER_CALLS = 30  # of each batch that is timed
Openers = Mapping[str, Callable[[], Way]]


@dataclass(frozen=True)
class Runtimes(Case):
    """What was measured of one precision."""

    figures: tuple[Figures, ...] = ()  # of every runtime that was at hand
    missing: Mapping[str, str] = field(default_factory=dict)  # the others, and what they lack

    def __str__(self) -> str:
        return f"{self.name} in {', '.join(row.name for row in self.figures)}"


# What --quick asks for where nothing else is said.
QUICK = {"precision": ["float32"], "images": 1000, "seconds": 0.5}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this suite."""
    parser.add_argument("--workdir", metavar="DIR", help="run folder that scripts/train.py wrote")
    parser.add_argument("--data.dir", dest="data_dir", metavar="DIR", help="where the data set lies now")
    parser.add_argument("--precision", nargs="+", choices=["float32", "int8"], default=["float32", "int8"])
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=RUNTIMES, help="default: all")
    parser.add_argument("--images", metavar="N", type=int, help="only the first N test images (default: all)")
    parser.add_argument("--seconds", metavar="S", type=float, default=2.0, help="to time each way for (default 2)")


def cases(options: argparse.Namespace) -> int:
    """How many cases `measure` will yield."""
    return len(options.precision)


def measure(options: argparse.Namespace) -> Iterator[Runtimes]:
    """Run the test images through every runtime, and time it."""
    if options.workdir is None:
        raise ConfigError("The suite runtimes needs a trained network: --workdir DIR, a folder of scripts/train.py.")
    check(options.images is None or options.images >= 1, "--images", options.images, "it must be at least 1")
    trained = load_run(options.workdir, dtype="float32", data_dir=options.data_dir)
    splits = trained.splits(options.data_dir)
    test = splits.test.take(np.arange(len(splits.test))[: options.images])
    network = make_twin(trained)
    exported = export.to_onnx(network, trained.network.spec)
    with tempfile.TemporaryDirectory() as folder:
        for precision in options.precision:
            float32 = precision == "float32"
            model = exported if float32 else quantize.to_int8(exported, quantize.TrainingImages(splits)).model
            path = Path(folder, f"{precision}.onnx")
            path.write_bytes(model.SerializeToString())
            openers = network_openers(trained, network) if float32 else {}
            openers |= file_openers(path, test)
            chosen = {name: opener for name, opener in openers.items() if name in options.runtimes}
            yield run_all(precision, chosen, test, options.seconds)


def network_openers(trained: Run, network: torch.nn.Module) -> dict[str, Callable[[], Way]]:
    """The network in the two frameworks that can train it."""
    pytorch = partial(open_torch, export.Deployed(network, trained.network.spec))
    return {"jax": lambda: Way(trained.logits, None), "torch": pytorch}


def file_openers(path: Path, test: Dataset) -> dict[str, Callable[[], Way]]:
    """An ONNX file in the runtimes that read one."""
    return {
        "onnxruntime": lambda: deployed.onnx_way(path.read_bytes()),
        "openvino": partial(open_openvino, path),
        "onnxruntime-web": partial(open_browser, path, test),
    }


def run_all(precision: str, openers: Openers, test: Dataset, seconds: float) -> Runtimes:
    """Open every runtime, and measure those that are at hand side by side."""
    ways, missing = {}, {}
    for name, opener in openers.items():
        try:
            ways[name] = opener()
        except (ConfigError, ImportError) as error:
            missing[name] = str(error)
    figures = tuple(deployed.compare(ways, test, seconds)) if ways else ()
    return Runtimes(precision, {}, len(test), figures=figures, missing=missing)


def table(cases: Sequence[Runtimes]) -> str:
    """A table for each precision, and a line for what is not as it should be."""
    parts = []
    for case in cases:
        parts.append(f"{case.name}, {case.images:,} test images, {cpu_count()} threads")
        parts += [deployed.table(case.figures)] if case.figures else []
        for row in case.figures if case.name == "float32" else ():
            if row.gap > AGREEMENT or row.same < row.images:
                parts.append(f"{row.name} differs: {row.images - row.same} classes, logits by {row.gap:.1e}.")
        parts += [f"{name} was not at hand: {reason}" for name, reason in case.missing.items()]
    return "\n\n".join(parts)


def open_torch(network: torch.nn.Module) -> Way:
    """The network as PyTorch runs it, behind the preparation of its images."""
    torch.set_num_threads(cpu_count())
    network.eval()

    @torch.inference_mode()
    def predict(images: np.ndarray) -> np.ndarray:
        return network(torch.from_numpy(images)).numpy()

    return Way(deployed.in_batches(predict), None)


def open_openvino(path: Path) -> Way:
    """The file in OpenVINO, in float32 where it holds float32: its own choice may be bfloat16.

    Raises:
        ImportError: OpenVINO is not installed.
    """
    if "openvino_telemetry" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # pyright: ignore[reportArgumentType]  # or importing it tells Intel
    try:
        import openvino  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ImportError("it is not installed. Install it with: pip install -e '.[openvino]'") from None
    hints = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": cpu_count()}
    compiled: Any = openvino.Core().compile_model(path, "CPU", hints)
    predict = deployed.in_batches(lambda images: compiled({"images": images})["logits"])
    return Way(predict, path.stat().st_size)


def open_browser(path: Path, test: Dataset) -> Way:
    """The file in onnxruntime-web, which has run all images already, and has timed itself: the page's clock counts.

    Raises:
        ConfigError: there is no Chromium, or no onnxruntime-web.
    """
    latencies = {}
    for count in latency.BATCHES:
        images = np.resize(test.images, (BROWSER_CALLS * count, *test.images.shape[1:]))
        latencies[count] = latency.of_calls(run_onnx_in_browser(path, images, count)[1])
    logits = run_onnx_in_browser(path, test.images)[0]
    return Way(lambda _: logits, path.stat().st_size, latencies)
