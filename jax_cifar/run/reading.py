"""Reading checkpoints: what a folder of them holds, and the newest whole one of it. Nothing here changes a folder."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from jaxtyping import PyTree

from jax_cifar.errors import CheckpointError, print_warning
from jax_cifar.run.arrays import read_verified
from jax_cifar.run.manifest import (
    MANIFEST,
    Damaged,
    Foreign,
    cause,
    leaves_by_path,
    read_manifest,
    require_same_leaves,
    signature,
)

BEST = "best"
PARTIAL = ".partial"
DAMAGED = ".damaged"

Which = Literal["last", "best"]


class Restored(NamedTuple):
    """What a checkpoint held: completed updates, the state on the template's devices, `extra` as it was saved."""

    step: int
    state: PyTree
    extra: dict


def folder_of(directory: Path, which: Which) -> Path:
    """Where the newest checkpoints of a run lie, or its best."""
    return directory / BEST if which == "best" else directory


def entries(folder: Path) -> list[str]:
    """What a folder of checkpoints holds, by name; nothing where there is no folder.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        if folder.is_symlink():
            message = (
                f"{folder} points to {os.readlink(folder)}, which is not there. Bring it back, or remove the link."
            )
            raise CheckpointError(message) from None
        return []
    except OSError as error:
        message = f"The checkpoints in {folder} cannot be read: {cause(error)}. See to that, or use another --workdir."
        raise CheckpointError(message) from error


def steps(folder: Path) -> list[int]:
    """Steps of what is named by a number, ascending, whatever is in it."""
    return sorted(int(name) for name in entries(folder) if _is_step(name))


def is_finished(path: Path) -> bool:
    """Whether there is a checkpoint with its commit marker."""
    return (path / MANIFEST).is_file()


def unused(folder: Path) -> list[str]:
    """One line for each unfinished save in a folder of checkpoints, and one for all that does not belong there."""
    names = [name for name in entries(folder) if not (_is_step(name) or name == BEST or name.startswith("."))]
    unfinished = [name for name in names if name.endswith(PARTIAL)]
    lines = [
        f"{folder / name} is an unfinished save (cut short, or still going on); it is not used." for name in unfinished
    ]
    strays = [name for name in names if name not in unfinished and DAMAGED not in name]
    if strays:
        more = f" and {len(strays) - 3} more" if len(strays) > 3 else ""
        lines.append(f"no checkpoint of jax_cifar, and not used: {', '.join(strays[:3])}{more} in {folder}.")
    return lines


def read_state(path: Path, template: PyTree, former_path: Callable[[str], str]) -> Restored:
    """Read and verify one checkpoint; raises as `read_verified`, and `CheckpointError` if it does not fit."""
    manifest = read_manifest(path)
    saved = {name: (shape, dtype) for name, (shape, dtype, _) in manifest["leaves"].items()}
    wanted = leaves_by_path(template)
    if "format" not in manifest:
        wanted = {former_path(name): leaf for name, leaf in wanted.items()}
    require_same_leaves(path, saved, {name: signature(leaf) for name, leaf in wanted.items()})
    arrays = read_verified(path)
    placed = [_place(arrays[name], leaf) for name, leaf in wanted.items()]
    return Restored(manifest["step"], jax.tree.unflatten(jax.tree.structure(template), placed), manifest["extra"])


def read_variables(
    directory: Path, which: Which = "last", warn: Callable[[str], None] = print_warning
) -> tuple[int, dict[str, PyTree]] | None:
    """Step, and the weights and statistics that are evaluated, of the newest (or best) whole checkpoint: NumPy.

    Needs no template, so neither data nor optimizer, and changes nothing in the folder. A damaged one is walked past,
    and `warn` is told. None where there is no checkpoint.

    Raises:
        CheckpointError: all there are are damaged, or the newest cannot be read now.
    """
    folder = folder_of(directory.expanduser().absolute(), which)
    passed = []
    for step in reversed(steps(folder)):
        path = folder / str(step)
        try:
            arrays = read_verified(path, ("ema/", "params/", "batch_stats/"))
        except (Damaged, Foreign) as fault:
            if not os.path.lexists(path):  # the run that is still training has newer ones by now
                return read_variables(directory, which, warn)
            passed.append(f"{path} {'is damaged' if isinstance(fault, Damaged) else 'is no checkpoint'}: {fault}")
            continue
        for line in passed:
            warn(f"{line}. Step {step:,} is taken.")
        averaged = {name.removeprefix("ema/"): array for name, array in arrays.items() if name.startswith("ema/")}
        return step, {"params": {}, "batch_stats": {}} | unflatten_dict(averaged or arrays, sep="/")
    if passed:
        raise CheckpointError(f"No checkpoint in {folder} can be used. {passed[0]}.")
    return None


def _is_step(name: str) -> bool:
    return name.isascii() and name.isdecimal() and name == str(int(name))


def _place(array: np.ndarray, leaf: Any) -> Any:
    return array if isinstance(leaf, np.ndarray) else jax.device_put(array, leaf.sharding)
