"""A user's Python file run as a module of its own: its neighbours are found, its faults are told in one message."""

import contextlib
import itertools
import os
import re
import sys
import sysconfig
import traceback
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from jax_cifar.errors import ConfigError

_numbers = itertools.count(1)
_PACKAGE = Path(__file__).resolve().parents[1]
_LIBRARY = tuple(f"{sysconfig.get_path(name)}{os.sep}" for name in ("purelib", "platlib", "stdlib", "platstdlib"))


@dataclass
class Program:
    """A file that was run and the neighbours that it imported, each by its name relative to the file's folder."""

    folder: Path
    modules: dict[str, types.ModuleType] = field(default_factory=dict)  # "my_layers.py" -> module; the file first
    sources: dict[str, bytes] = field(default_factory=dict)  # the same names -> what was run


# The program that a module belongs to and its file's name there, by the module's name.
PROGRAMS: dict[str, tuple[Program, str]] = {}


def origin_of(module: str) -> str:
    """Where the code of a module is from: its file's name, or the name that it is imported by."""
    if module in PROGRAMS:
        return PROGRAMS[module][1]
    if module == "__main__" and (file := source_file(module)) is not None:
        return file.name
    return module


def source_file(module: str) -> Path | None:
    """The file of a module that was not installed; None for what has no readable one."""
    name = getattr(sys.modules.get(module), "__file__", None)
    if not name or name.startswith(_LIBRARY):  # most of what is loaded, told at once
        return None
    path = Path(name).resolve()
    good = path.suffix == ".py" and path.is_file() and not _is_installed(path)
    return path if good else None


def belongs_to_the_library(path: Path) -> bool:
    """Whether a file is installed, or one of this project's scripts or of its reference: nobody's experiment."""
    return _is_installed(path) or path.parent in (_PACKAGE.parent / "scripts", _PACKAGE.parent / "torch_ref")


def own_line(error: BaseException) -> traceback.FrameSummary | None:
    """The last line of the user's own, in a file or a notebook, that an error came by; None where it came by none."""
    for line in reversed(traceback.extract_tb(error.__traceback__)):
        # What `dataclasses` writes has no text, and Python itself is partly "frozen".
        written = line.line and not line.filename.startswith("<frozen ")
        if written and not belongs_to_the_library(Path(line.filename).resolve()):
            return line
    return None


def is_of_a_program(error: BaseException) -> bool:
    """Whether an error came by a line of a config file, or of a neighbour of one."""
    files = {program.folder / name for program, name in PROGRAMS.values()}
    return any(Path(line.filename).resolve() in files for line in traceback.extract_tb(error.__traceback__))


def in_one_line(error: BaseException) -> str:
    """`TypeError: no such field (net.py, line 8: return make(x))`: what failed in code of the user's own, and where."""
    first, line = (str(error).splitlines() or [""])[0].rstrip("."), own_line(error)
    place = "" if line is None else f" ({Path(line.filename).name}, line {line.lineno}: {line.line})"
    return f"{type(error).__name__}: {first}".removesuffix(": ") + place


def unreadable_setting(error: BaseException) -> str | None:
    """What is said of an environment variable that JAX reads when it is imported, and cannot; None of other errors."""
    lines = traceback.extract_tb(error.__traceback__)
    in_jax = [line for line in lines if Path(line.filename).parts[-3:-1] == ("jax", "_src")]
    at_import = any(line.name == "<module>" for line in in_jax)
    if not (at_import and lines[-1] is in_jax[-1] and Path(lines[-1].filename).name == "config.py"):
        return None
    named = (word.upper() for word in re.findall(r"(?i)jax_\w+", str(error)))
    setting = next((f"{name}={os.environ[name]}" for name in named if name in os.environ), None)
    told = " ".join(str(error).split())
    return setting and f"The environment variable {setting} cannot be read by JAX: {told}. Mend it, or unset it."


def _is_installed(path: Path) -> bool:
    library = (Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    packages = {"site-packages", "dist-packages"} & set(path.parts)
    return bool(packages) or path.is_relative_to(_PACKAGE) or any(map(path.is_relative_to, library))


@contextlib.contextmanager
def running(path: Path, folder: Path | None = None) -> Iterator[types.ModuleType]:
    """Run a file and give its module; while the block lasts, its folder is the first that imports are looked for in.

    `folder` is that folder where the file lies deeper, in a package.

    Every run is a new module with a name of its own, in `sys.modules` as `dataclasses` and `typing.get_type_hints`
    want it. Neighbours that it imports get names of their own too, so that the next file's are not taken for them.

    Raises:
        ConfigError: the file, or the block, failed; with file, line and error.
    """
    file = path.resolve()
    name = f"file_{next(_numbers)}_" + re.sub(r"\W", "_", file.stem)
    module = types.ModuleType(name)
    module.__file__ = str(file)
    program = Program(folder.resolve() if folder else file.parent)
    called = file.relative_to(program.folder).as_posix()
    try:
        with _neighbours(program, name):
            program.modules[called], program.sources[called] = module, file.read_bytes()
            PROGRAMS[name], sys.modules[name] = (program, called), module
            exec(compile(program.sources[called], str(file), "exec", dont_inherit=True), module.__dict__)
            yield module
    except (Exception, SystemExit) as error:
        raise ConfigError(_told(error, path)) from (None if isinstance(error, ConfigError) else error)


def _told(error: BaseException, path: Path) -> str:
    """`my_experiment.py, line 3: KeyError: 'NAME'`: where in the user's own files an error came from, and the error."""
    if (setting := unreadable_setting(error)) is not None:
        return setting  # the file has no part in it
    file, line = path.resolve(), None
    if (last := own_line(error)) is not None:
        file, line = Path(last.filename).resolve(), last.lineno
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_file():
        file, line = Path(error.filename).resolve(), error.lineno
    where = path if file == path.resolve() else file
    text = " ".join((error.msg if isinstance(error, SyntaxError) else str(error)).split())
    said = text if isinstance(error, ConfigError) else f"{type(error).__name__}: {text}".removesuffix(": ")
    return f"{where}, line {line}: {said}" if line else f"{where}: {said}"


@contextlib.contextmanager
def _neighbours(program: Program, owner: str) -> Iterator[None]:
    """Put the folder of a program first for imports, and file in it what was imported from there."""
    folder = program.folder
    here = {file.stem for file in folder.glob("*.py")} | {file.parent.name for file in folder.glob("*/__init__.py")}
    # A module of that name from another folder of the user's would be taken for the neighbour.
    tops = {name for name in here & sys.modules.keys() if (at := source_file(name)) and not _lies_in(at, folder)}
    aside = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in tops}
    for name in aside:
        del sys.modules[name]
    before, writes = set(sys.modules), sys.dont_write_bytecode
    sys.path.insert(0, str(folder))
    # A file edited within a second would be read from the bytecode of before.
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = writes
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name not in before and name.partition(".")[0] in here - before]:
            if (at := source_file(name)) is not None and at.is_relative_to(folder):
                _rename(sys.modules.pop(name), name, f"{owner}.{name}", program, at)
        sys.modules.update(aside)


def _lies_in(path: Path, folder: Path) -> bool:
    return folder in (path.parent, path.parent.parent if path.name == "__init__.py" else None)


def _rename(module: types.ModuleType, old: str, new: str, program: Program, file: Path) -> None:
    """File a neighbour under a name that is its own, and tell it to what it defines."""
    name = file.relative_to(program.folder).as_posix()
    program.modules[name], program.sources[name] = module, file.read_bytes()
    module.__name__ = new
    sys.modules[new], PROGRAMS[new] = module, (program, name)
    for value in list(vars(module).values()):
        # Classes, functions, and what wraps a function.
        if hasattr(value, "__qualname__") and getattr(value, "__module__", None) == old:
            with contextlib.suppress(AttributeError, TypeError):
                value.__module__ = new
