"""Files that everybody writes the same way, and the user's cache folder."""

import json
import os
from pathlib import Path
from typing import Any


def user_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/jax_cifar`, or `~/.cache/jax_cifar`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "jax_cifar"


def write_json(path: Path, values: Any) -> None:
    """Write JSON in one step: a reader sees the old file or the new one, never a part."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n")
    partial.replace(path)
