"""What a run ran on: versions, devices, commit."""

import os
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jax_cifar.backend.threads import cpu_count
from jax_cifar.files import write_record

PACKAGES = {
    "jax_cifar": "jax-cifar",
    "jax": "jax",
    "jaxlib": "jaxlib",
    "flax": "flax",
    "optax": "optax",
    "orbax": "orbax-checkpoint",
    "numpy": "numpy",
}


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages whose behaviour a result rests on; without those not installed."""
    versions = {"python": platform.python_version()}
    for name, package in PACKAGES.items():
        try:
            versions[name] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def describe_devices() -> str:
    """One line, such as `8 x TPU v4 (tpu) in 2 processes; CPU cores: 96`.

    Where the environment says which platforms JAX may use, that ends the line: it is the usual reason for a GPU that
    lies idle. Of a jaxlib without CUDA beside an NVIDIA GPU JAX itself warns.
    """
    import jax

    from jax_cifar.backend.mesh import find_devices

    kinds = Counter((device.device_kind, device.platform) for device in find_devices())
    parts = [f"{count} x {kind}" + ("" if kind == name else f" ({name})") for (kind, name), count in kinds.items()]
    count = jax.process_count()  # JAX does not know on how many hosts
    processes = f" in {count} processes" if count > 1 else ""
    allowed = f"; JAX_PLATFORMS={os.environ['JAX_PLATFORMS']}" if os.environ.get("JAX_PLATFORMS") else ""
    return f"{', '.join(parts)}{processes}; CPU cores: {cpu_count()}{allowed}"


def describe_versions() -> str:
    """One line, such as `python 3.12.3, jax 0.7.2, ...`."""
    return ", ".join(f"{name} {number}" for name, number in package_versions().items())


def environment() -> dict[str, Any]:
    """Versions, devices, host, commit and command line of this process."""
    import jax

    from jax_cifar.backend.mesh import find_devices

    devices = find_devices()
    return {
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


def write_environment(workdir: Path) -> Path:
    """Write `environment` to environment.json in one piece. Returns its path."""
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / "environment.json"
    write_record(path, environment())
    return path


def git_commit(root: Path) -> str | None:
    """Commit checked out in `root`, with `-dirty` if files differ from it; None where that cannot be told."""
    # Installed into the environment of another project, `git` would name that project's commit.
    if not (root / ".git").exists():
        return None
    described = _output(["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"])
    return described or None


def _output(command: Sequence[str]) -> str:
    """What a command prints; nothing if it is not there, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
