"""The source of an experiment, kept in its run folder: source.json says what came from where, source/ holds the files.

It documents every run, and is run only for objects of a user's own: where the user says so, or where the files still
lie unchanged at their places, so that it is the user's own code that runs.
"""

import ast
import hashlib
import importlib
import importlib.util
import os
import sys
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from jax_cifar.config.modules import PROGRAMS, belongs_to_the_library, origin_of, running, source_file
from jax_cifar.config.record import code_of
from jax_cifar.config.revive import is_installed
from jax_cifar.config.sections import Config
from jax_cifar.errors import ConfigError
from jax_cifar.files import read_bytes, read_record, write_record, write_text

_LARGEST = 1 << 24  # bytes of a source file
# Of each module as it was loaded what lay in its file when that was first looked at: it may be edited meanwhile.
_seen: dict[str, tuple[Any, bytes]] = {}


@dataclass(frozen=True)
class SourceFile:
    """One file of an experiment."""

    name: str  # relative to the folder of the config file: "my_layers.py"
    path: Path  # where it lies
    sha256: str  # of what was run
    text: str


def source_of(config: Config) -> list[SourceFile]:
    """The config file, the files of objects that come from elsewhere, and all that these import, directly or not.

    Empty for a configuration that was made in Python of the library's parts. What is installed is not listed.

    Raises:
        ConfigError: a file is not UTF-8, or two of the same name are needed.
    """
    files: dict[str, SourceFile] = {}
    for module in _reached(filter(None, (config.loaded_as, *code_of(config).values()))):
        for name, path, source in _files(module):
            file = SourceFile(name, path, _digest(source), _decoded(path, source))
            if files.setdefault(name, file).path != path:
                raise ConfigError(f"The run needs two files called {name}, {files[name].path} and {path}: rename one.")
    return list(files.values())


def _files(module: str) -> Iterable[tuple[str, Path, bytes]]:
    """Name, place and content of the files that belong to a module."""
    if module in PROGRAMS:
        program = PROGRAMS[module][0]
        return [(name, program.folder / name, source) for name, source in program.sources.items()]
    path = source_file(module)
    if path is None:
        return []
    loaded = sys.modules[module]
    made = getattr(loaded, "__spec__", None) or loaded  # reloaded, a module has another specification
    if module not in _seen or _seen[module][0] is not made:
        _seen[module] = made, path.read_bytes()
    return [(_file_name(module, path), path, _seen[module][1])]


def _reached(modules: Iterable[str]) -> list[str]:
    """These modules, and those of the user's own that they import, and so on."""
    reached = list(dict.fromkeys(modules))
    for module in reached:  # which grows
        for _, _, source in _files(module):
            names = _imports(source, getattr(sys.modules.get(module), "__package__", None) or "")
            reached += [name for name in names if name not in reached and source_file(name) is not None]
    return reached


def _imports(source: bytes, package: str) -> list[str]:
    """The modules that a file of a package imports, and what may be one, with the packages that they are in."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (package or not node.level):
            origin = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names += [origin, *(f"{origin}.{alias.name}" for alias in node.names)]
    within = ([name.split(".")[: i + 1] for i in range(name.count(".") + 1)] for name in names)
    return list(dict.fromkeys(".".join(parts) for each in within for parts in each))


def _file_name(module: str, path: Path) -> str:
    """`my_layers.py`, or with the packages that it is in `package/my_layers.py`."""
    packages = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    return "/".join([*packages, path.name])


def _digest(source: bytes) -> str:
    return hashlib.sha256(source).hexdigest()


def _decoded(path: Path, source: bytes) -> str:
    try:
        return source.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is kept with the run and has to be UTF-8: save it as that.") from None


def has_own_code(config: Config) -> bool:
    """Whether a part of the configuration is code that comes neither with the library nor with what it stands on."""
    return not all(map(is_installed, code_of(config)))


def own_code(config: Config) -> dict[str, str]:
    """SHA-256 of every file that may have a part in the code of one's own; none where all code is the library's.

    The config file is one where it holds such code: what else it says are the values of the configuration.
    """
    if not has_own_code(config):
        return {}
    origins, config_file = code_of(config), config.loaded_as and origin_of(config.loaded_as)
    return {file.name: file.sha256 for file in source_of(config) if file.name != config_file or file.name in origins}


def record_source(folder: Path, config: Config) -> None:
    """Write `source.json` and the files in `source/` into a run folder."""
    files = source_of(config)
    for file in files:
        place = folder / "source" / file.name
        place.parent.mkdir(parents=True, exist_ok=True)
        write_text(place, file.text)
    # Which file an object's "from" means; null where it is a module without one.
    origins = {}
    for origin, module in code_of(config).items():
        if not is_installed(origin):
            path = source_file(module)
            named = PROGRAMS[module][1] if module in PROGRAMS else path and _file_name(module, path)
            origins[origin] = named
    listed = [{"name": file.name, "path": str(file.path), "sha256": file.sha256} for file in files]
    write_record(folder / "source.json", {"files": listed, "origins": origins})


def trusted_namespaces(folder: Path, trust_code: bool) -> dict[str, types.ModuleType]:
    """The modules of a run's own code by origin, for `revive_all`; call it only for a run that has any.

    With `trust_code` the files in the run folder are run. Without it, those at their old places, and only where each
    is byte for byte what the run folder keeps.

    Raises:
        ConfigError: the code is not to be trusted without being told so, is missing or fails.
    """
    files, origins = _read(folder)
    loaded: dict[str, types.ModuleType] = {}
    if not trust_code:
        _check_unchanged(folder, files, origins)
    # The config file first: what it imports are the same modules for all.
    names = {file["name"]: origin for file in files for origin, name in origins.items() if name == file["name"]}
    for name, origin in names.items():
        if origin not in loaded:
            place = next(Path(file["path"]) for file in files if file["name"] == name)
            loaded |= _run(folder / "source" / name if trust_code else place, name, origin, names)
    for origin, name in origins.items():
        if name is None:
            loaded[origin] = _imported(origin)
    return loaded


def unchanged_config_file(folder: Path) -> Path | None:
    """The config file of a run, where it and all that it imported lie at their places as the run keeps them."""
    try:
        files, _ = _read(folder)
    except ConfigError:
        return None
    return Path(files[0]["path"]) if files and all(_is_unchanged(folder, file) for file in files) else None


def _run(path: Path, name: str, origin: str, names: Mapping[str, str]) -> dict[str, types.ModuleType]:
    """Run a file, or find it running already; the modules of all origins that came of it."""
    main = sys.modules.get("__main__")
    if source_file("__main__") == path.resolve():
        return {origin: main} if main is not None else {}
    if not path.is_file():
        raise ConfigError(f"{path}, which {origin} of this run is from, is missing.")
    root = path.parents[len(PurePosixPath(name).parts) - 1]
    with running(path, root) as module:
        pass
    program = PROGRAMS[module.__name__][0]
    return {names[found]: module for found, module in program.modules.items() if found in names}


def _imported(origin: str) -> types.ModuleType:
    try:
        return importlib.import_module(origin)
    except ImportError as error:
        raise ConfigError(f"The run needs the module {origin}, which cannot be imported: {error}.") from None


def _check_unchanged(folder: Path, files: Iterable[Mapping[str, str]], origins: Mapping[str, Any]) -> None:
    """Raise `ConfigError` unless every file lies at its place as it is kept, and nothing else is needed."""
    changed = [file["path"] for file in files if not _is_unchanged(folder, file)]
    # What was typed into this very session is the user's own; what a script defines is found by its file.
    session = {"__main__"} if source_file("__main__") is None else set()
    changed += [f"the module {origin}" for origin, name in origins.items() if name is None and origin not in session]
    if changed:
        raise ConfigError(
            f"{folder} has code of its own, and {', '.join(changed)} is not, or no longer, known to be what the run "
            "used. Read the files in its folder source/, then say --trust-code (trust_code=True in Python) to run them."
        )


def _is_unchanged(folder: Path, file: Mapping[str, str]) -> bool:
    """Whether a file of the user's own lies at its place, byte for byte as it is kept."""
    place, kept, name = Path(file["path"]), folder / "source" / file["name"], PurePosixPath(file["name"])
    try:
        # A file that came with the run folder proves nothing, nor does one that a link leads to: places are recorded
        # without links. Its folder, where its neighbours are looked for, must be the one that its name says.
        good = place.is_absolute() and os.path.realpath(place) == str(place) and not _lies_in(place, folder)
        good = good and place.parts[-len(name.parts) :] == name.parts and not belongs_to_the_library(place)
        good = good and _is_ours(place) and _lies_in(kept, folder)
        return good and read_bytes(place, _LARGEST) == read_bytes(kept, _LARGEST)
    except (OSError, ValueError):
        return False


def _lies_in(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _is_ours(place: Path) -> bool:
    """Whether a file is the user's, or the system's: in /tmp anybody may lay one down."""
    return not hasattr(os, "geteuid") or place.stat().st_uid in (os.geteuid(), 0)


def _read(folder: Path) -> tuple[list[dict[str, str]], dict[str, str | None]]:
    """The content of source.json; raises `ConfigError` where there is none, or it is not what `record_source` wrote."""
    path = folder / "source.json"
    try:
        values = read_record(path)
        files = [{key: str(file[key]) for key in ("name", "path", "sha256")} for file in values["files"]]
        origins = {str(origin): name if name is None else str(name) for origin, name in values["origins"].items()}
    except FileNotFoundError:
        raise ConfigError(f"{folder} has code of its own, but {path.name} is missing.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is damaged: {type(error).__name__}: {error}.") from None
    for name in (file["name"] for file in files):
        parts = PurePosixPath(name).parts
        if not name.endswith(".py") or name.startswith("/") or ".." in parts or not (name.isprintable() and parts):
            raise ConfigError(f"{path} names {name!r}, which is no file in the folder source/.")
        if not _lies_in(folder / "source" / name, folder):
            raise ConfigError(f"{folder / 'source' / name} is a link that leaves the run folder.")
    return files, origins
