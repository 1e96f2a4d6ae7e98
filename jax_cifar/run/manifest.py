"""What a checkpoint says of itself, in a file that is written last: its arrays and files, each with its SHA-256.

Three faults are told apart. `Damaged`: its bytes were read, and are not what was saved. `Foreign`: it has no manifest,
so that this program did not finish it. Everything else is a `CheckpointError` of the moment: too many open files, no
permission, a disk that fails, a network folder that is away; nothing is known of the checkpoint then.
"""

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from jax_cifar.errors import CheckpointError
from jax_cifar.files import read_json, sha256_of_json
from jax_cifar.run.untrusted import check_manifest

MANIFEST = "manifest.json"
# 1, which had no number: the optimizer's state was laid out differently. 2: the files were not listed.
FORMAT = 3


class Damaged(Exception):
    """A checkpoint is not what was saved. The message ends the sentence '<folder> is damaged: ...'."""


class Foreign(Exception):
    """What stands where a checkpoint would, and is none of this program's. The message ends '<path> is none: ...'."""


def unreadable(path: Path, error: BaseException) -> CheckpointError:
    """What is said of a checkpoint that cannot be read now, for a reason that is not its own bytes."""
    return CheckpointError(
        f"Checkpoint {path} cannot be read now: {cause(error)}. It is left as it is. See to that, then run the same"
        " command; to do without it, move it away."
    )


def leaves_by_path(tree: PyTree) -> dict[str, Any]:
    """Leaves by path, e.g. "params/conv1/kernel". None and empty dicts have none; the template brings them back."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def signature(leaf: Any) -> tuple[list[int], str]:
    """Shape and dtype, as the manifest has them."""
    return list(leaf.shape), str(np.dtype(leaf.dtype))


def sha256(array: np.ndarray) -> str:
    """Checksum of an array's bytes."""
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()


def os_error_code(error: BaseException) -> int | None:
    """The number of the operating system's error, where TensorStore wraps one in hundreds of characters too."""
    found = re.search(r"os_error_code='(\d+)'", str(error))
    return int(found[1]) if found else getattr(error, "errno", None)


def cause(error: BaseException) -> str:
    """One short line: the system's own words where there are some."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    code = os_error_code(error)
    if code is not None:
        return os.strerror(code)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200].rstrip(". ") if lines else type(error).__name__


def read_manifest(path: Path) -> dict:
    """The manifest of a checkpoint, verified.

    Raises:
        Damaged: it is not what was saved.
        Foreign: there is none.
        CheckpointError: it cannot be read now, or a later version wrote it.
    """
    try:
        manifest = read_json(path / MANIFEST)
        digest = manifest.pop("sha256")
    except (FileNotFoundError, NotADirectoryError):
        raise Foreign(f"it has no {MANIFEST}") from None
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise Damaged(f"its {MANIFEST} cannot be read ({cause(error)})") from error
    # The digest is made in the same way in every format, so that damage is not taken for a later version.
    if digest != sha256_of_json(manifest):
        raise Damaged(f"its {MANIFEST} is not what was saved (sha256 differs)")
    number = manifest.get("format", 1)
    if isinstance(number, int) and number > FORMAT:
        raise CheckpointError(
            f"Checkpoint {path} was made by a later version of jax_cifar (format {number}; this one knows {FORMAT})."
            " It is left as it is: use that version, or choose another --workdir."
        )
    try:
        check_manifest(manifest)
    except ValueError as error:
        raise Damaged(f"its {MANIFEST} is none ({error})") from error
    if str(manifest["step"]) != path.name:
        raise Damaged(f"it holds step {manifest['step']}")
    return manifest


def require_same_leaves(path: Path, saved: dict, wanted: dict) -> None:
    """Raise `CheckpointError`, in at most 5 lines, unless paths, shapes and dtypes are the same."""
    differ = [name for name in {**wanted, **saved} if saved.get(name) != wanted.get(name)]
    if not differ:
        return

    def describe(leaf: tuple[list[int], str] | None, other: tuple[list[int], str] | None) -> str:
        if leaf is None:
            return "nothing"
        shape = str(tuple(leaf[0]))
        return shape if other is not None and leaf[1] == other[1] else f"{leaf[1]} {shape}"

    lines = [f"Checkpoint {path} belongs to another configuration:"]
    for name in differ[:3]:
        old, new = saved.get(name), wanted.get(name)
        lines.append(f"  {name}: checkpoint {describe(old, new)}, this configuration {describe(new, old)}")
    more = f"{len(differ) - 3} more leaves differ. " if len(differ) > 3 else ""
    lines.append(f"{more}Use the configuration it was trained with (config.json of that run), or another --workdir.")
    raise CheckpointError("\n".join(lines))
