"""Checkpoints that can be trusted: saved in the background, verified when read.

    <directory>/<step>/state/           the arrays, written by Orbax as one flat dict {path: array}
    <directory>/<step>/manifest.json    step, extra; every array's shape, dtype, sha256; every file's size, sha256
    <directory>/best/<step>/...         the same for the best state

A checkpoint is written under `<step>.<random>.partial` and renamed when it is whole, so a killed run leaves no half
checkpoint under a step's name. Orbax takes an empty folder for a checkpoint: hence the manifest, written last and so
the commit marker too. A damaged checkpoint is renamed to `<step>.damaged`, never deleted, and the one before it is
taken; one that cannot be read now is left as it is, and ends the run.
"""

import json
import os
import shutil
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from jax_cifar.errors import CheckpointError, UserError, print_warning
from jax_cifar.files import sha256_of_json, to_disk
from jax_cifar.run.arrays import STATE, write_arrays
from jax_cifar.run.manifest import (
    FORMAT,
    MANIFEST,
    Damaged,
    Foreign,
    cause,
    leaves_by_path,
    sha256,
    signature,
)
from jax_cifar.run.reading import (
    DAMAGED,
    PARTIAL,
    Restored,
    Which,
    entries,
    folder_of,
    is_finished,
    read_state,
    steps,
    unused,
)

MAX_PENDING = 2  # a last and a best state of the same step wait together; more would only cost host memory


class _Save(NamedTuple):
    """A state on its way to the disk."""

    folder: Path
    step: int
    arrays: dict[str, np.ndarray]
    extra: dict
    keep: int


class Checkpoints:
    """The checkpoints of one run. A context manager; leaving it waits for the saves under way.

    Args:
        directory: folder of the checkpoints, made at the first save in one that is there; relative paths are resolved.
        keep: how many of the newest checkpoints stay; the best is kept apart and does not count.
        warn: receives one line for each thing that is not as it should be; default: a line on stderr.
        former_path: where a leaf of the template lies in a checkpoint of the first format.
        require_place: raises a `UserError` where nothing may be written into the folder any more; asked at every save.

    A save that fails harms no older checkpoint and stops no training: it is warned of, once for each cause, and tried
    again with the next, which has the newer state (a best state is kept for that). If the last save fails too, that is
    a `CheckpointError` at the next `wait`, `restore` or `close`.
    """

    def __init__(
        self,
        directory: Path | str,
        keep: int,
        warn: Callable[[str], None] = print_warning,
        former_path: Callable[[str], str] = lambda path: path,
        require_place: Callable[[], None] = lambda: None,
    ) -> None:
        self.directory = Path(directory).expanduser().absolute()
        self._keep = keep
        self._warn = warn
        self._former_path = former_path
        self._require_place = require_place
        self._pending: list[tuple[_Save, Future]] = []
        self._failed: dict[Path, tuple[_Save, BaseException]] = {}  # by folder, what has not been saved since
        self._causes: list[str] = []  # of all saves that failed
        self._warned: set[str] = set()  # causes that were told
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        try:
            self.close()
        except UserError as failure:
            if kind is None:
                raise
            if str(failure) != str(error):
                self._warn(str(failure))  # the error that is already on its way matters more

    def save(self, step: int, state: PyTree, extra: dict) -> None:
        """Save `state` after `step` completed updates; returns once the arrays are copied to the host.

        A step that is saved already is left as it is. `extra` is small JSON. Raises what `require_place` does.
        """
        self._submit(self.directory, step, state, extra, self._keep)

    def save_best(self, step: int, state: PyTree, extra: dict) -> None:
        """As `save`, for the best state so far; it takes the place of the best before it once it is whole."""
        self._submit(folder_of(self.directory, "best"), step, state, extra, 1)

    def restore(self, template: PyTree, which: Which = "last") -> Restored | None:
        """The newest (or best) whole checkpoint, bit for bit as saved; None where there is none.

        `template` is a state of arrays or of `jax.ShapeDtypeStruct`: it gives structure, shapes, dtypes and shardings.

        Raises:
            CheckpointError: it belongs to another configuration or a later version, it cannot be read now, or all there
                are are damaged.
        """
        self.wait()
        folder = folder_of(self.directory, which)
        for line in unused(folder):
            self._warn(line)
        for step in reversed(steps(folder)):
            path = folder / str(step)
            try:
                return read_state(path, template, self._former_path)
            except Damaged as damage:
                self._quarantine(path, str(damage))
            except Foreign as fault:
                self._warn(f"{path} is no checkpoint of jax_cifar: {fault}. It is not used.")
        if steps(folder) or any(DAMAGED in name for name in entries(folder)):
            raise CheckpointError(
                f"No checkpoint in {folder} can be used: all are damaged (kept there as *{DAMAGED}) or none of"
                " jax_cifar. To start over, choose another --workdir or move that folder away."
            )
        return None

    def latest_step(self) -> int | None:
        """Completed updates of the newest finished checkpoint; its arrays are verified only by `restore`."""
        self._settle(0)
        finished = [step for step in steps(self.directory) if is_finished(self.directory / str(step))]
        return finished[-1] if finished else None

    def wait(self) -> None:
        """Wait for the saves under way.

        Raises:
            CheckpointError: the last one failed, of the newest states or of the best.
        """
        self._settle(0)
        if self._failed:
            self._require_place()
            save, error = list(self._failed.values())[-1]
            self._failed.clear()
            self._causes.clear()
            raise CheckpointError(
                f"Checkpoint {save.folder / str(save.step)} could not be saved: {cause(error)}. Older checkpoints are "
                "untouched; see to free space and write permission there, then run the same command."
            ) from error

    def close(self) -> None:
        """Wait for the saves under way and end the background thread; raises as `wait` does."""
        try:
            self.wait()
            if self._causes:
                count, told = len(self._causes), ", ".join(dict.fromkeys(self._causes))
                self._warn(f"checkpoints that could not be saved on the way: {count} ({told}). The last one is saved.")
        finally:
            self._worker.shutdown()

    def _settle(self, allowed: int) -> None:
        """Wait until so many saves are under way at most, and take note of those that failed."""
        while self._pending and (len(self._pending) > allowed or self._pending[0][1].done()):
            save, future = self._pending.pop(0)
            error = future.exception()
            self._failed.pop(save.folder, None)
            if error is not None:
                self._failed[save.folder] = save, error
                self._causes.append(cause(error))

    def _submit(self, folder: Path, step: int, state: PyTree, extra: dict, keep: int) -> None:
        self._settle(MAX_PENDING - 1)
        if jax.process_index() != 0:
            return  # every host holds the whole state; one writes it
        self._require_place()
        extra = json.loads(json.dumps(extra))  # as it will be read back, and a mistake shows at the caller's line
        # A copy of our own: the next training step may be given the memory of `state` to write in (donation).
        arrays = {path: np.array(leaf) for path, leaf in leaves_by_path(state).items()}
        others = []
        for failed, error in self._failed.values():
            if (told := cause(error)) not in self._warned:
                path = failed.folder / str(failed.step)
                self._warn(
                    f"checkpoint {path} could not be saved: {told}. Training goes on; the next save tries again."
                )
                self._warned.add(told)
            others += [failed] if failed.folder != folder else []  # one of this folder is older than this one
        self._failed.clear()
        for save in [*others, _Save(folder, step, arrays, extra, keep)]:
            self._pending.append((save, self._worker.submit(self._write, save)))

    def _write(self, save: _Save) -> None:
        folder, step = save.folder, save.step
        final = folder / str(step)
        if is_finished(final):
            return
        self._require_place()
        for made in (self.directory, folder):  # and none above: a run that was moved away has no folder here
            made.mkdir(exist_ok=True)
        _remove_leftovers(folder)
        if os.path.lexists(final):
            self._quarantine(final, f"it has no {MANIFEST}")
        # A name of its own: threads of a save that failed may still be writing under theirs.
        partial = folder / f"{step}.{uuid.uuid4().hex[:8]}{PARTIAL}"
        partial.mkdir()
        try:
            _write_checkpoint(partial, save)
            self._require_place()
            partial.rename(final)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)  # the next save may need its space
            self._require_place_or_leave(folder)
            raise
        _remove_leftovers(folder)  # again: threads of a save that failed have written while they were removed
        self._prune(folder, step, save.keep)

    def _require_place_or_leave(self, folder: Path) -> None:
        """Where the run's folder has gone meanwhile, remove what TensorStore has made anew of it, and raise."""
        try:
            self._require_place()
        except UserError:
            for made in (folder, self.directory, self.directory.parent):
                with suppress(OSError):  # somebody else's: there is something in it
                    made.rmdir()
            raise

    def _prune(self, folder: Path, newest: int, keep: int) -> None:
        """Delete the oldest checkpoints; what cannot be deleted now is tried again after the next save."""
        others = [folder / str(other) for other in steps(folder) if other != newest]
        others = [path for path in others if is_finished(path)]
        for old in others[: max(0, len(others) - keep + 1)]:
            with suppress(OSError):
                # Renamed first, so that a kill in the middle of the deletion leaves no half checkpoint either.
                shutil.rmtree(old.rename(folder / f"{old.name}{PARTIAL}"))

    def _quarantine(self, path: Path, damage: str) -> None:
        """Rename a damaged checkpoint and say so; one that vanished meanwhile was removed by the run that owns it."""
        if not os.path.lexists(path):
            return
        count = len(list(path.parent.glob(f"{path.name}{DAMAGED}*")))
        target = path.with_name(f"{path.name}{DAMAGED}{count or ''}")
        try:
            if jax.process_index() == 0:
                path.rename(target)
            self._warn(f"checkpoint {path} is damaged: {damage}. It is kept as {target.name}, and not used.")
        except OSError as error:
            self._warn(f"checkpoint {path} is damaged: {damage}. It is not used ({cause(error)}).")


def _remove_leftovers(folder: Path) -> None:
    """Remove what saves that failed, or were killed, have left."""
    for leftover in folder.glob(f"[0-9]*{PARTIAL}"):
        shutil.rmtree(leftover, ignore_errors=True)


def _write_checkpoint(path: Path, save: _Save) -> None:
    """Arrays first, and the manifest last."""
    leaves = {name: [*signature(array), sha256(array)] for name, array in save.arrays.items()}
    files = write_arrays(path / STATE, save.arrays)
    body = {"format": FORMAT, "step": save.step, "extra": save.extra, "leaves": leaves, "files": files}
    with (path / MANIFEST).open("w") as file:
        json.dump({"sha256": sha256_of_json(body), **body}, file, indent=1)
        to_disk(file)  # as Orbax does with the arrays: a power cut must not empty all that are kept
