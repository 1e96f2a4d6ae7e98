"""Whole programs, kept from one process to the next: a start like one before it traces, lowers and compiles nothing.

JAX's own cache spares the compiler alone, and of a warm start that is less than half. Here a program is found by what
decides what it would be, before it is traced: the experiment, the shapes and places of what it is given, every source
file that may have a part in it (this library's and the user's own by their content, installed ones by size and time),
JAX's settings, devices and processor. One changed line, and it is made anew. An interactive session, where what runs
lies in no file, keeps none; nor does an experiment with code of a user's own in it, as that may hold numbers that it
read elsewhere when it was loaded. Such programs are traced, and found by what they are, in JAX's own cache.
"""

import enum
import hashlib
import json
import os
import pickle
import platform
import sys
import sysconfig
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import jax
from jax._src import compilation_cache as jax_cache
from jax._src import config as jax_settings  # thread by thread, which no public name tells
from jax._src.lib import xla_client  # pyright: ignore[reportPrivateImportUsage]
from jax.experimental import serialize_executable

from jax_cifar.backend.compiler import ProgramFiles, compiler_options, files_are_ours, take_asked
from jax_cifar.backend.threads import NAMES, cpu_count
from jax_cifar.config.modules import source_file
from jax_cifar.files import LOADED, user_cache_dir

# Of every program that JAX compiled here None, of one that it found what lay in its files.
_origins: "WeakKeyDictionary[Any, bytes | None]" = WeakKeyDictionary()

PACKAGE = Path(__file__).resolve().parents[1]
SECONDS_TO_LOAD = 5  # what a process may take from its first module to `jax_cifar.files`
STANDARD = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib")})  # of which the version is enough
VARIABLES = ("XLA_", "LIBTPU_", "JAX_", "FLAX_", *NAMES)  # how those of the environment begin that may have a part


class Stored:
    """The programs of one experiment; each is made once in a process, and where they are kept once for all."""

    def __init__(self, experiment: str | None = None) -> None:
        """What the programs belong to, in words that hold everything that decides them; None: none is kept.

        None is kept outside `compilation_cache` either, or where the user has chosen another place for programs.
        """
        base = machine_and_sources() if experiment is not None and files_are_ours() else None
        self._base = None if base is None else f"{base}\n{experiment}"
        self._files = ProgramFiles(user_cache_dir() / "programs")
        self._made: dict[str, Any] = {}

    def part(self, name: str) -> "Stored":
        """For programs that something decides which is neither in their names nor in what they are given."""
        stored = Stored()
        stored._base = None if self._base is None else f"{self._base}\n{name}"
        return stored

    def program(self, name: str, function: Any, *arguments: Any) -> "Program":
        """The program of a function that `jax.jit` returned, for arguments like these; traced where it is not there.

        `name` tells it from others of the experiment that are given the same.
        """
        key = _digest(f"{name}\n{_described(arguments)}\n{self._base}")
        if key not in self._made:
            found = None if self._base is None else self._load(key)
            self._made[key] = Program(function.trace(*arguments) if found is None else None, found, self._keeper(key))
        return self._made[key]

    def call(self, name: str, function: Any, *arguments: Any) -> Any:
        """What the function returns, by its program."""
        return self.program(name, function, *arguments).compile()(*arguments)

    def value(self, name: str, make: Callable[[], Any]) -> Any:
        """A value that JSON can hold and that the same things decide, looked up or made."""
        if self._base is None:
            return make()
        key = _digest(f"{name}\n{self._base}")
        if (data := self._files.get(key)) is not None:
            return json.loads(data)
        value = make()
        self._files.put(key, json.dumps(value).encode())
        return value

    def _load(self, key: str) -> Any:
        data = self._files.get(key)
        if data is None:
            return None
        try:
            places, program = pickle.loads(data)
            # Without them it is taken for one of all devices, whatever it was compiled for.
            devices = [device for place in places for device in jax.devices() if device.id == place]
            return serialize_executable.deserialize_and_load(*program, execution_devices=devices)
        except Exception:  # another jaxlib, say, that bears the same version: it is made anew
            return None

    def _keeper(self, key: str) -> Callable[[Any], None] | None:
        if self._base is None:
            return None

        def keep(compiled: Any) -> None:
            executable = compiled._executable
            if asked := take_asked():
                _origins[executable] = asked[-1]
            elif executable not in _origins:
                return  # JAX had it in memory, and it may come from its files
            try:
                places = [device.id for device in compiled.runtime_executable().local_devices()]
                data = pickle.dumps((places, _serialized(compiled, _origins[executable])))
            except Exception:  # a backend that cannot hand its programs out, or a tree that cannot be pickled
                return
            self._files.put(key, data)

        return keep


class Program:
    """A program that was traced, or found; `compile` gives what can be called."""

    def __init__(self, traced: Any, compiled: Any, keep: Callable[[Any], None] | None) -> None:
        self.traced = traced  # `jax.stages.Traced`; None of one that was found
        self._compiled, self._keep = compiled, keep

    def compile(self) -> Any:
        """`jax.stages.Compiled`, compiled unless that is done."""
        if self._compiled is None:
            lowered = self.traced.lower()
            take_asked()  # what was compiled before this
            self._compiled = lowered.compile()
            if self._keep is not None:
                self._keep(self._compiled)
        return self._compiled


def _serialized(compiled: Any, found: bytes | None) -> Any:
    """`serialize_executable.serialize`, of a program that JAX may have found in its files.

    Such a program, handed out once more by XLA, lacks its functions, and fails when it is called, or is not handed out
    at all (jaxlib 0.7 to 0.12 on a CPU). So what lay in the file takes its place.
    """
    if found is None:
        return serialize_executable.serialize(compiled)
    program, _ = jax_cache.extract_executable_and_time(jax_cache.decompress_executable(found))
    pickler: Any = serialize_executable._JaxPjrtPickler

    class AsItLay(pickler):
        def persistent_id(self, obj: Any) -> Any:
            return ("exec", program) if isinstance(obj, xla_client.LoadedExecutable) else super().persistent_id(obj)

    serialize_executable._JaxPjrtPickler = AsItLay  # pyright: ignore[reportAttributeAccessIssue]
    try:
        return serialize_executable.serialize(compiled)
    finally:
        serialize_executable._JaxPjrtPickler = pickler


def machine_and_sources() -> str | None:
    """All but the experiment that decides what a program would be; None where a part of it lies in no file."""
    if (sources := _sources()) is None:
        return None
    plain = (str, int, float, enum.Enum, type(None))
    settings = [str(value) for value in jax_settings.trace_context() if isinstance(value, plain)]
    variables = sorted(f"{name}={value}" for name, value in os.environ.items() if name.startswith(VARIABLES))
    parts = [platform.python_version(), *variables, *settings, *_devices()]
    values = (jax.config.values, compiler_options())
    return "\n".join([sources, *parts, *(json.dumps(each, sort_keys=True, default=str) for each in values)])


def _sources() -> str | None:
    """The sum of all source files; None where there may be other lines in one than those that were loaded."""
    main = sys.modules.get("__main__")
    if getattr(main, "__file__", None) is None:  # typed in, or of a notebook
        return None
    own, others = set(), set()
    for name, module in list(sys.modules.items()):
        if (path := source_file(name)) is not None:
            own.add(path)
        elif (file := getattr(module, "__file__", None)) and not file.startswith(str(PACKAGE)):
            others.add(file)
    sums = [_library_sum(), *map(_sum, sorted(own))]
    return None if None in sums else _digest(f"{sums} {[_stat(file) for file in sorted(filter(_installed, others))]}")


def _installed(file: str) -> bool:
    """Whether it is not Python's own."""
    return not file.startswith(STANDARD) or "-packages" in file


def _stat(file: str) -> str:
    try:
        found = os.stat(file)
    except OSError:  # of a zip file, say
        return file
    return f"{file} {found.st_size} {found.st_mtime_ns}"


@cache
def _library_sum() -> str | None:
    sums = [_sum(path) for path in sorted(PACKAGE.rglob("*.py"))]
    return None if None in sums else _digest(str(sums))


def _sum(path: Path) -> str | None:
    """Path and content of a file; None of one that may have been changed after it was loaded."""
    try:
        data, changed = path.read_bytes(), path.stat().st_ctime
    except OSError:
        return None
    return f"{path} {hashlib.sha256(data).hexdigest()}" if changed < LOADED - SECONDS_TO_LOAD else None


def _devices() -> Iterator[str]:
    """Devices and processor; a program for a CPU holds instructions that another one may lack."""
    devices = jax.devices()
    yield f"{devices[0].platform} {devices[0].client.platform_version} {jax.process_count()}"
    yield " ".join(f"{device.id}:{device.device_kind}" for device in devices)
    yield f"{platform.machine()} {cpu_count()}"
    yield _processor()


@cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def _described(arguments: Any) -> str:
    leaves, tree = jax.tree.flatten(arguments)
    told = [f"{_aval(leaf)} {_place(getattr(leaf, 'sharding', None))}" for leaf in leaves]
    return "\n".join([str(tree), *told])


def _place(sharding: jax.sharding.Sharding | None) -> str:
    """How an array is spread, and over which devices, which is not told of a mesh; one of none has no devices."""
    if isinstance(sharding, jax.sharding.NamedSharding) and isinstance(sharding.mesh, jax.sharding.Mesh):
        return f"{sharding} {sharding.mesh.device_ids.tolist()}"
    return str(sharding)


def _aval(leaf: Any) -> str:
    return f"{leaf.shape} {leaf.dtype} {getattr(leaf, 'weak_type', False)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
