"""Checkpoints that can be trusted: saved in the background, verified when read. The only file that knows Orbax.

    <directory>/<step>/state/           the arrays, written by Orbax as one flat dict {path: array}
    <directory>/<step>/manifest.json    step, extra, and shape, dtype and sha256 of every array
    <directory>/best/<step>/...         the same for the best state

A checkpoint is written under `<step>.<random>.partial` and renamed when it is whole, so a killed run leaves no half
checkpoint under a step's name. Orbax itself reads flipped bits back without complaint and takes an empty folder for a
checkpoint: hence the manifest, written last and so the commit marker too. A damaged checkpoint is renamed to
`<step>.damaged`, never deleted, and the one before it is taken.
"""

import functools
import json
import logging
import shutil
import sys
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from jaxtyping import PyTree

from jax_cifar.errors import CheckpointError, printable
from jax_cifar.run.manifest import (
    FORMAT,
    MANIFEST,
    Damaged,
    cause,
    leaves_by_path,
    read_manifest,
    require_same_leaves,
    sha256,
    sha256_of_json,
    signature,
)
from jax_cifar.run.untrusted import Leaves, check_claims, check_state

PARTIAL = ".partial"
DAMAGED = ".damaged"
MAX_PENDING = 2  # a last and a best state of the same step wait together; more would only cost host memory


class Restored(NamedTuple):
    """What a checkpoint held: completed updates, the state on the template's devices, `extra` as it was saved."""

    step: int
    state: PyTree
    extra: dict


def _print_warning(message: str) -> None:
    print(printable(f"warning: {message}"), file=sys.stderr)


class Checkpoints:
    """The checkpoints of one run. A context manager; leaving it waits for the saves under way.

    Args:
        directory: folder of the checkpoints, made at the first save; relative paths are resolved.
        keep: how many of the newest checkpoints stay; the best is kept apart and does not count.
        warn: receives one line for each damaged or unfinished checkpoint; default: a line on stderr.
        former_path: where a leaf of the template lies in a checkpoint of the first format.

    Errors of a save surface as `CheckpointError` at the next `save`, `save_best`, `wait` or `close`.
    """

    def __init__(
        self,
        directory: Path | str,
        keep: int,
        warn: Callable[[str], None] = _print_warning,
        former_path: Callable[[str], str] = lambda path: path,
    ) -> None:
        self.directory = Path(directory).expanduser().resolve()
        self._keep = keep
        self._warn = warn
        self._former_path = former_path
        self._pending: list[tuple[Path, Future]] = []
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        try:
            self.close()
        except CheckpointError as failure:
            if kind is None:
                raise
            self._warn(str(failure))  # the error that is already on its way matters more

    def save(self, step: int, state: PyTree, extra: dict) -> None:
        """Save `state` after `step` completed updates; returns once the arrays are copied to the host.

        A step that is saved already is left as it is. `extra` is small JSON.

        Raises:
            CheckpointError: an earlier save failed.
        """
        self._submit(self.directory, step, state, extra, self._keep)

    def save_best(self, step: int, state: PyTree, extra: dict) -> None:
        """As `save`, for the best state so far; it takes the place of the best before it once it is whole."""
        self._submit(self.directory / "best", step, state, extra, 1)

    def restore(self, template: PyTree, which: Literal["last", "best"] = "last") -> Restored | None:
        """The newest (or best) whole checkpoint, bit for bit as saved; None where there is none.

        `template` is a state of arrays or of `jax.ShapeDtypeStruct`: it gives structure, shapes, dtypes and shardings.

        Raises:
            CheckpointError: it belongs to another configuration, or all there are are damaged.
        """
        self.wait()
        folder = self.directory / "best" if which == "best" else self.directory
        for path in sorted(folder.glob(f"[0-9]*{PARTIAL}")):
            self._warn(f"{path} is an unfinished save (cut short, or still going on); it is not used.")
        skipped: set[int] = set()
        while steps := [step for step in _steps(folder) if step not in skipped]:
            path = folder / str(steps[-1])
            try:
                return _read(path, template, self._former_path)
            except Damaged as damage:
                skipped.add(steps[-1])
                self._quarantine(path, str(damage))
        if skipped or any(folder.glob(f"[0-9]*{DAMAGED}*")):
            raise CheckpointError(
                f"No checkpoint in {folder} can be used: all are damaged (kept there as *{DAMAGED}). "
                "To start over, choose another --workdir or move that folder away."
            )
        return None

    def latest_step(self) -> int | None:
        """Completed updates of the newest finished checkpoint; its arrays are verified only by `restore`."""
        self.wait()
        finished = [step for step in _steps(self.directory) if _finished(self.directory / str(step))]
        return finished[-1] if finished else None

    def wait(self) -> None:
        """Wait for the saves under way.

        Raises:
            CheckpointError: one of them failed.
        """
        self._reap(0)

    def close(self) -> None:
        """Wait for the saves under way and end the background thread; raises as `wait` does."""
        try:
            self.wait()
        finally:
            self._worker.shutdown()

    def _reap(self, allowed: int) -> None:
        while self._pending and (len(self._pending) > allowed or self._pending[0][1].done()):
            path, future = self._pending.pop(0)
            error = future.exception()
            if error is not None:
                raise CheckpointError(
                    f"Checkpoint {path} could not be saved: {cause(error)}. Older checkpoints are "
                    "untouched; see to free space and write permission there, then run the same command."
                ) from error

    def _submit(self, folder: Path, step: int, state: PyTree, extra: dict, keep: int) -> None:
        self._reap(MAX_PENDING - 1)
        if jax.process_index() != 0:
            return  # every host holds the whole state; one writes it
        extra = json.loads(json.dumps(extra))  # as it will be read back, and a mistake shows at the caller's line
        # A copy of our own: the next training step may be given the memory of `state` to write in (donation).
        arrays = {path: np.array(leaf) for path, leaf in leaves_by_path(state).items()}
        future = self._worker.submit(self._write, folder, step, arrays, extra, keep)
        self._pending.append((folder / str(step), future))

    def _write(self, folder: Path, step: int, arrays: dict[str, np.ndarray], extra: dict, keep: int) -> None:
        final = folder / str(step)
        if _finished(final):
            return
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f"*{PARTIAL}"):
            shutil.rmtree(leftover, ignore_errors=True)
        if final.exists():
            self._quarantine(final, f"it has no {MANIFEST}")
        # A name of its own: threads of a save that failed may still be writing under theirs.
        partial = folder / f"{step}.{uuid.uuid4().hex[:8]}{PARTIAL}"
        partial.mkdir()
        leaves = {path: [*signature(array), sha256(array)] for path, array in arrays.items()}
        _write_arrays(partial / "state", arrays)
        body = {"format": FORMAT, "step": step, "extra": extra, "leaves": leaves}
        (partial / MANIFEST).write_text(json.dumps({"sha256": sha256_of_json(body), **body}, indent=1))
        partial.rename(final)
        others = [folder / str(other) for other in _steps(folder) if other != step]
        others = [path for path in others if _finished(path)]
        for old in others[: max(0, len(others) - keep + 1)]:
            # Renamed first, so that a kill in the middle of the deletion leaves no half checkpoint either.
            shutil.rmtree(old.rename(folder / f"{old.name}{PARTIAL}"))

    def _quarantine(self, path: Path, damage: str) -> None:
        """Rename a damaged checkpoint and say so; one that vanished meanwhile was removed by the run that owns it."""
        if not path.exists():
            return
        count = len(list(path.parent.glob(f"{path.name}{DAMAGED}*")))
        target = path.with_name(f"{path.name}{DAMAGED}{count or ''}")
        try:
            if jax.process_index() == 0:
                path.rename(target)
            self._warn(f"checkpoint {path} is damaged: {damage}. It is kept as {target.name}, and not used.")
        except OSError as error:
            self._warn(f"checkpoint {path} is damaged: {damage}. It is not used ({cause(error)}).")


def _steps(folder: Path) -> list[int]:
    """Steps of the folders named by a number, ascending, whatever is in them."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal() and name == str(int(name)))


def _finished(path: Path) -> bool:
    return (path / MANIFEST).is_file()


def read_variables(directory: Path, which: Literal["last", "best"] = "last") -> tuple[int, dict[str, PyTree]] | None:
    """Step, and the weights and statistics that are evaluated, of the newest (or best) whole checkpoint: NumPy.

    Needs no template, so neither data nor optimizer, and changes nothing in the folder. None where there is no
    checkpoint; raises `CheckpointError` where all there are are damaged.
    """
    directory = directory.expanduser().resolve()
    folder = directory / "best" if which == "best" else directory
    damage = None
    for step in reversed(_steps(folder)):
        try:
            arrays = _read_verified(folder / str(step), ("ema/", "params/", "batch_stats/"))
        except Damaged as found:
            damage = damage or f"{folder / str(step)} is damaged: {found}"
            continue
        averaged = {name.removeprefix("ema/"): array for name, array in arrays.items() if name.startswith("ema/")}
        return step, {"params": {}, "batch_stats": {}} | unflatten_dict(averaged or arrays, sep="/")
    if damage is not None:
        raise CheckpointError(f"No checkpoint in {folder} can be used: all are damaged. {damage}.")
    return None


def _read(path: Path, template: PyTree, former_path: Callable[[str], str]) -> Restored:
    """Read and verify one checkpoint; raises `Damaged`, or `CheckpointError` if it does not fit the template."""
    manifest = read_manifest(path)
    saved = {name: (shape, dtype) for name, (shape, dtype, _) in manifest["leaves"].items()}
    wanted = leaves_by_path(template)
    if "format" not in manifest:
        wanted = {former_path(name): leaf for name, leaf in wanted.items()}
    require_same_leaves(path, saved, {name: signature(leaf) for name, leaf in wanted.items()})
    arrays = _read_verified(path)
    placed = [_place(arrays[name], leaf) for name, leaf in wanted.items()]
    return Restored(manifest["step"], jax.tree.unflatten(jax.tree.structure(template), placed), manifest["extra"])


def _read_verified(path: Path, prefixes: tuple[str, ...] = ("",)) -> dict[str, np.ndarray]:
    """The arrays of one checkpoint whose paths begin so, every byte as it was saved; raises `Damaged`."""
    leaves = read_manifest(path)["leaves"]
    expected = {name: leaf for name, leaf in leaves.items() if name.startswith(prefixes)}
    check_state(path / "state", leaves)
    try:
        arrays = _read_arrays(path / "state", leaves)
    except (ImportError, MemoryError):
        raise  # no fault of the checkpoint
    except Exception as error:  # Orbax and TensorStore raise every other kind, bare Exception included
        raise Damaged(f"its arrays cannot be read ({cause(error)})") from error
    for name, (shape, dtype, digest) in expected.items():
        if signature(arrays[name]) != (shape, dtype) or sha256(arrays[name]) != digest:
            raise Damaged(f"{name} is not what was saved (sha256 differs)")
    return {name: arrays[name] for name in expected}


def _place(array: np.ndarray, leaf: Any) -> Any:
    return array if isinstance(leaf, np.ndarray) else jax.device_put(array, leaf.sharding)


@functools.cache
def _orbax() -> ModuleType:
    """Orbax, told once to be quiet about failures that reach us as exceptions anyway."""
    import orbax.checkpoint as ocp

    def drop_stragglers(event: Any) -> None:
        # At the first array that fails Orbax closes its event loop, and the other arrays complain to stderr of that.
        if not (event.object is None and str(event.exc_value) == "Event loop is closed"):
            previous(event)

    previous, sys.unraisablehook = sys.unraisablehook, drop_stragglers
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    return ocp


def _write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    ocp = _orbax()
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(path, args=ocp.args.PyTreeSave(arrays))


def _read_arrays(path: Path, leaves: Leaves) -> dict[str, np.ndarray]:
    ocp = _orbax()
    as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in leaves}
    handler = ocp.PyTreeCheckpointHandler()
    metadata = handler.metadata(path)
    # Shapes first: TensorStore ends the process where memory for one cannot be had.
    check_claims(getattr(metadata, "tree", metadata), leaves)
    with ocp.Checkpointer(handler) as checkpointer:
        return checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
