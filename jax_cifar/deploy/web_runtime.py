"""ONNX Runtime Web, which runs exported models in a browser: a pinned version from npm, verified, kept in the cache."""

import base64
import hashlib
import io
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

from jax_cifar.errors import ConfigError
from jax_cifar.files import read_bytes, user_cache_dir

VERSION = "1.30.0"
PACKAGE = f"onnxruntime-web@{VERSION}"
# As `npm view onnxruntime-web@1.30.0 dist.integrity` prints it.
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
_LARGEST_PACKAGE = 1 << 26  # bytes; it has 33 MB
_LARGEST_FILE = 1 << 25
_SECONDS = 900  # npm has its own patience; this is for one that hangs


class WebRuntime(NamedTuple):
    """What a page needs to run a model on the processor, with one thread or several."""

    script: bytes  # classic script that defines `ort`
    loader: bytes  # module that the script imports, to start what follows
    wasm: bytes


_FILES = ("ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")


def load_runtime(source: Path | None = None) -> WebRuntime:
    """The runtime from the cache folder; from npm where it is not there yet, about 33 MB once.

    npm asks the registry, through the proxy, that its own configuration names (`npm_config_registry`).

    Args:
        source: instead, the package's .tgz, which has to be the pinned one; or a folder with the files of its `dist`,
            taken as they are.

    Raises:
        ConfigError: npm is missing or fails, or the files are not there or not the published ones.
    """
    if source is not None and source.is_dir():
        return _read_folder(source)
    path = source or user_cache_dir() / f"onnxruntime-web-{VERSION}.tgz"
    if source is None and not path.exists():
        _download(path)
    try:
        package = read_bytes(path, _LARGEST_PACKAGE)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}. It has to be the .tgz of {PACKAGE}.") from None
    _check_integrity(package, path)
    with tarfile.open(fileobj=io.BytesIO(package), mode="r:gz") as archive:
        return WebRuntime(*(_member(archive, f"package/dist/{name}") for name in _FILES))


def integrity(package: bytes) -> str:
    """The sum of a package as npm writes it."""
    return f"sha512-{base64.b64encode(hashlib.sha512(package).digest()).decode()}"


def _check_integrity(package: bytes, path: Path) -> None:
    if integrity(package) != INTEGRITY:
        way_out = f"Remove it where it is there, and get it anew with: npm pack {PACKAGE}"
        raise ConfigError(f"{path} is not {PACKAGE} as it was published: its SHA-512 differs. {way_out}")


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file is not None, name  # the archive is the published one
    return file.read()


def _read_folder(folder: Path) -> WebRuntime:
    folder = folder / "dist" if (folder / "dist").is_dir() else folder
    try:
        return WebRuntime(*(read_bytes(folder / name, _LARGEST_FILE) for name in _FILES))
    except OSError as error:
        expected = f"It has to hold {', '.join(_FILES)} of {PACKAGE}."
        raise ConfigError(f"{folder} has no ONNX Runtime Web: {error.filename}: {error.strerror}. {expected}") from None


def _download(path: Path) -> None:
    """Have npm fetch the package; `path` appears whole or not at all."""
    npm = shutil.which("npm")
    otherwise = f"or name a file from elsewhere: --runtime FILE.tgz (it is made by: npm pack {PACKAGE})"
    if npm is None:
        raise ConfigError(f"{PACKAGE} is fetched once, with npm, which is not installed. Install Node.js, {otherwise}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="npm-") as folder:
        # No retries: without a network one wants to know in seconds.
        command = [npm, "pack", PACKAGE, "--silent", "--fetch-retries=0", "--loglevel=error"]
        try:
            ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            raise ConfigError(f"npm did not fetch {PACKAGE} within {_SECONDS} s. Try again, {otherwise}") from None
        found = Path(folder) / path.name
        if ended.returncode or not found.exists():
            told = "; ".join(line for line in ended.stderr.splitlines() if line.strip())[:300]
            raise ConfigError(f"npm cannot fetch {PACKAGE}: {told or 'it does not say why'}. Try again, {otherwise}")
        _check_integrity(read_bytes(found, _LARGEST_PACKAGE), path)
        found.replace(path)
