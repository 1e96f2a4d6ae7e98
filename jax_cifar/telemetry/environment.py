"""What a run ran on: versions, devices, commit; and a word if a GPU lies idle."""

import os
import platform
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from jax_cifar.files import write_json

PACKAGES = {
    "jax_cifar": "jax-cifar",
    "jax": "jax",
    "jaxlib": "jaxlib",
    "flax": "flax",
    "optax": "optax",
    "orbax": "orbax-checkpoint",
    "numpy": "numpy",
}
# What the pip wheels of CUDA 13 need; CUDA 12's run on older drivers and older GPUs.
CUDA13_DRIVER = 580
CUDA13_CAPABILITY = 7.5
# Settings by which a user keeps the GPU out of sight, on purpose or not.
HIDING = {"JAX_PLATFORMS": ("cpu",), "CUDA_VISIBLE_DEVICES": ("", "-1")}


class NvidiaGpu(NamedTuple):
    """The first NVIDIA GPU of this machine; what could not be found out is None."""

    driver: int | None  # major version of the driver
    capability: float | None  # compute capability


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages whose behaviour a result rests on; without those not installed."""
    versions = {"python": platform.python_version()}
    for name, package in PACKAGES.items():
        try:
            versions[name] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def cpu_count() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_devices() -> str:
    """One line, such as `8 x TPU v4 (tpu) on 2 hosts; CPU cores: 96`."""
    import jax

    kinds = Counter((device.device_kind, device.platform) for device in jax.devices())
    parts = [f"{count} x {kind}" + ("" if kind == name else f" ({name})") for (kind, name), count in kinds.items()]
    hosts = f" on {jax.process_count()} hosts" if jax.process_count() > 1 else ""
    return f"{', '.join(parts)}{hosts}; CPU cores: {cpu_count()}"


def describe_versions() -> str:
    """One line, such as `python 3.12.3, jax 0.7.2, ...`."""
    return ", ".join(f"{name} {number}" for name, number in package_versions().items())


def write_environment(workdir: Path) -> Path:
    """Write `environment.json` in one piece: versions, devices, host, commit and command line. Returns its path."""
    import jax

    devices = jax.devices()
    environment = {
        "versions": package_versions(),
        "platform": platform.platform(),
        "backend": jax.default_backend(),
        "devices": dict(Counter(device.device_kind for device in devices)),
        "device_count": len(devices),
        "process_count": jax.process_count(),
        "cpu_count": cpu_count(),
        "commit": git_commit(Path(__file__).parents[2]),
        "argv": sys.argv,
    }
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / "environment.json"
    write_json(path, environment)
    return path


def git_commit(root: Path) -> str | None:
    """Commit checked out in `root`, with `-dirty` if files differ from it; None where that cannot be told."""
    # Installed into the environment of another project, `git` would name that project's commit.
    if not (root / ".git").exists():
        return None
    described = _output(["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"])
    return described or None


def gpu_warning() -> str | None:
    """A warning, with the command that helps, if an NVIDIA GPU is there and JAX runs on the CPU; else None."""
    import jax

    backend = jax.default_backend()
    return gpu_advice(backend, find_nvidia_gpu(), os.environ) if backend == "cpu" else None


def gpu_advice(backend: str, gpu: NvidiaGpu | None, environ: Mapping[str, str]) -> str | None:
    """The text of `gpu_warning` for a given machine."""
    if backend != "cpu" or gpu is None:
        return None
    for name, values in HIDING.items():
        if environ.get(name) in values:
            return f"JAX runs on the CPU: {name}={environ[name]!r} hides the NVIDIA GPU. Unset it to train on the GPU."
    recent = (gpu.driver is None or gpu.driver >= CUDA13_DRIVER) and (
        gpu.capability is None or gpu.capability >= CUDA13_CAPABILITY
    )
    extra = "cuda13" if recent else "cuda12"
    return f'JAX runs on the CPU although an NVIDIA GPU is there. To use it: pip install -U "jax[{extra}]"'


def find_nvidia_gpu(root: Path = Path("/")) -> NvidiaGpu | None:
    """The first NVIDIA GPU that this process could use, or None. `root` is where the system's files lie."""
    listed = _output(["nvidia-smi", "--query-gpu=driver_version,compute_cap", "--format=csv,noheader"])
    match = re.match(r"(\d+)\.[\d.]+, *(\d+\.\d+)", listed)
    if match:
        return NvidiaGpu(int(match[1]), float(match[2]))
    # A container without access to the GPU still sees the driver's version, hence the device node.
    if not list(root.glob("dev/nvidia[0-9]*")):
        return None
    driver = root / "proc/driver/nvidia/version"
    match = re.search(r"\b(\d+)\.\d+", driver.read_text(encoding="utf-8")) if driver.exists() else None
    return NvidiaGpu(int(match[1]) if match else None, None)


def _output(command: Sequence[str]) -> str:
    """What a command prints; nothing if it is not there, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
