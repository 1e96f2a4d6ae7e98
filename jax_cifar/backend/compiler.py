"""How the programs of a run are compiled: the options, and the cache that spares the second start all compiling."""

import contextlib
import functools
import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

# No public name takes another cache; this one is the same in jax 0.7 to 0.10.
from jax._src import compilation_cache as jax_cache
from jax._src import xla_bridge  # no public name tells whether XLA has read its flags

from jax_cifar.allocator import is_kept
from jax_cifar.backend.hosts import several
from jax_cifar.backend.threads import leave_threads_free
from jax_cifar.config import Config
from jax_cifar.errors import print_warning
from jax_cifar.files import atomic_write, user_cache_dir

# On a CPU, matrix products by YNNPACK, and nothing else: batched ones of few channels take Eigen up to three times as
# long; convolutions, which by default YNNPACK gets too, it takes a third longer. By XNNPACK, that of jaxlib 0.7, a
# program uses the weights that it packed once, also when others came to their place: there they go by Eigen.
CPU_OPTIONS = (
    {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"},
    {"xla_cpu_use_xnnpack": False},
)
# On a CPU, LLVM unrolls no loops: a program compiles in 0.75 to 0.9 of the time, and updates take 0.93 to 1 of theirs.
# No option of a single program says so.
NO_UNROLLING = "--xla_backend_extra_options=xla_cpu_disable_loop_unrolling"
# On a GPU, no operation whose result depends on the order in which its parts end, and no algorithm chosen by its time.
GPU_DETERMINISTIC = {"xla_gpu_deterministic_ops": True}
LARGEST = 1 << 31  # bytes of all programs that are kept


def compiler_options(deterministic: bool = False) -> dict[str, Any]:
    """XLA's options for `jax.jit` on the default backend; of a CPU's none where XLA_FLAGS or a jaxlib rule them out."""
    if jax.default_backend() == "gpu":
        return GPU_DETERMINISTIC if deterministic else {}
    return _cpu_options() if jax.default_backend() == "cpu" else {}


@functools.cache
def _cpu_options() -> dict[str, Any]:
    chosen = os.environ.get("XLA_FLAGS", "")
    for options in CPU_OPTIONS:
        if any(name in chosen for name in options):
            return {}
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # an option that this jaxlib does not have
            jax.jit(lambda: 0, compiler_options=options).lower().compile()
            return options
    return {}


def options_for_one_call() -> dict[str, Any]:
    """XLA's options for a program of many operations that runs once: on a CPU not the passes that only pay with time.

    Drawing the weights of SimpleCNN is compiled in a third of the time and has the same bits; an update would take up
    to a fifth longer.
    """
    chosen = "xla_backend_optimization_level" in os.environ.get("XLA_FLAGS", "")
    return {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" and not chosen else {}


def unroll_no_loops() -> None:
    """Have LLVM unroll no loop of a CPU's programs, unless XLA_FLAGS has options of this kind already.

    Sums have other last bits by it. XLA reads its flags where JAX is first asked for anything; after that nothing is
    changed, so that the variable says what the programs are like.
    """
    flags = os.environ.get("XLA_FLAGS", "").strip()
    if xla_bridge.backends_are_initialized() or NO_UNROLLING.partition("=")[0] in flags:
        return
    if not flags or flags.startswith("-"):  # else it is the name of a file of flags
        os.environ["XLA_FLAGS"] = f"{flags} {NO_UNROLLING}".strip()


def xla_flags() -> str:
    """XLA_FLAGS, as far as the default backend minds them: `NO_UNROLLING` is for a CPU alone."""
    flags = os.environ.get("XLA_FLAGS", "")
    return flags if jax.default_backend() == "cpu" else flags.replace(NO_UNROLLING, "").strip()


_turn = threading.RLock()


def one_program_at_a_time() -> contextlib.AbstractContextManager[Any]:
    """To be held while a program runs: on a CPU those of several Python threads then wait for one another.

    Together they would keep all of XLA's threads, and their convolutions be wrong: `backend.threads` says why. Each
    has all cores to itself this way.
    """
    return _turn if jax.default_backend() == "cpu" else contextlib.nullcontext()


def compute_where_memory_is_kept() -> None:
    """On a CPU have programs run in the thread that calls them, not in one of XLA's, where memory is kept.

    There it is the main thread's that keeps what is large (`jax_cifar.allocator`). Nothing is lost: a CPU has one call
    at a time to do, and its caller waits for it. JAX has no variable for this, and reads it when it makes its client.
    """
    if is_kept():
        jax.config.update("jax_cpu_enable_async_dispatch", False)


unroll_no_loops()
compute_where_memory_is_kept()
# Here, as XLA makes its threads where JAX is first asked for anything; `find_devices` once more, for who sets it later.
leave_threads_free(getattr(jax.config, "jax_num_cpu_devices"))  # noqa: B009


class ProgramFiles:
    """Compiled programs in a folder, in place of JAX's own files, which it neither verifies nor replaces.

    JAX warns of an entry that it cannot decompress each time anew; with zstandard it runs what was flipped. Here every
    program lies behind its SHA-256, is written at once or not at all, and what differs makes way for the program that
    is then compiled; where there are too many, those that were used least of late go. A folder that cannot be used
    costs compiling and a line, once.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder  # JAX asks for it by this name
        self._told = False
        # The program that was asked for last of all, as it lay there; None: it was not there. See `backend.stored`.
        self.asked: list[bytes | None] = []

    def get(self, key: str) -> bytes | None:
        """The program of a key; None where there is no sound one, or another user's."""
        file = self._file(key)
        self.asked = [None]
        try:
            if not _trusted(file.stat().st_uid):
                return None
            data = file.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            return self._tell("read", error)
        digest, program = data[:32], data[32:]
        if hashlib.sha256(program).digest() == digest:
            self.asked = [program]
            with contextlib.suppress(OSError):
                os.utime(file)  # it was used
            return program
        with contextlib.suppress(OSError):
            file.unlink()
        return None

    def put(self, key: str, program: bytes) -> None:
        """Keep the program of a key."""
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            with atomic_write(self._file(key)) as file:
                file.write(hashlib.sha256(program).digest() + program)
            self._make_room()
        except OSError as error:
            self._tell("written", error)

    def _make_room(self) -> None:
        with contextlib.suppress(FileNotFoundError):  # another process does the same
            files = [(file.stat(), file) for file in self._path.glob("*.program")]
            total = sum(found.st_size for found, _ in files)
            for found, file in sorted(files, key=lambda pair: pair[0].st_mtime):
                if total <= LARGEST:
                    break
                file.unlink()
                total -= found.st_size

    def _file(self, key: str) -> Path:
        return self._path / f"{key}.program"

    def _tell(self, done: str, error: OSError) -> None:
        if not self._told:
            print_warning(f"compiled programs in {self._path} cannot be {done}: {error.strerror}. They are made anew.")
        self._told = True


def _trusted(owner: int) -> bool:
    """Whether machine code of this user's may be run: one's own, and the system's."""
    return not hasattr(os, "getuid") or owner in (os.getuid(), 0)


_files: list[ProgramFiles] = []  # those that JAX uses now


def take_asked() -> list[bytes | None]:
    """What JAX asked of its files since this was called last, if anything: a program as it lay there, or None."""
    asked: list[bytes | None] = []
    if _files:
        asked, _files[-1].asked = _files[-1].asked, asked
    return asked


def files_are_ours() -> bool:
    """Whether JAX keeps its compiled programs where `compilation_cache` says."""
    return bool(_files)


@contextlib.contextmanager
def compilation_cache(config: Config) -> Iterator[None]:
    """Keep compiled programs in the user's cache folder while inside, unless the user has chosen another or none.

    Several processes with GPUs keep none: JAX writes for the first alone, and at the next start the others would wait
    for that one's share of XLA's autotuning, which it has no need to do.
    """
    chosen = getattr(jax.config, "jax_compilation_cache_dir", None)
    if not config.train.compilation_cache or chosen or (several() and jax.default_backend() == "gpu"):
        yield
        return
    folder = user_cache_dir() / "programs"
    settings: dict[str, Any] = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.5,
        # XLA's own for GPUs, beside the programs, ends the process where the folder cannot be written.
        "jax_persistent_cache_enable_xla_caches": "none",
    }
    before = {name: getattr(jax.config, name) for name in settings}
    make, files = getattr(jax_cache, "get_file_cache", None), ProgramFiles(folder)
    try:
        _files.append(files)
        jax_cache.get_file_cache = lambda path: (files, path)
        for name, value in settings.items():
            jax.config.update(name, value)
        # JAX makes its cache at the first program that it compiles, and never looks at the settings again.
        jax_cache.reset_cache()
        yield
    finally:
        _files.remove(files)
        jax_cache.get_file_cache = make
        for name, value in before.items():
            jax.config.update(name, value)
        jax_cache.reset_cache()
