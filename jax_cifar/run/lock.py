"""A run folder belongs to one process: the lock that says so, and who has it."""

import json
import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Self

from jax_cifar.errors import ConfigError
from jax_cifar.files import open_locked
from jax_cifar.signals import last_acts

LOCK = "run.lock"
_WRITING_SECONDS = 0.5  # a holder says who it is just after it has got the lock


class RunLock:
    """Held inside the `with` block by this process alone; the system lifts it where the process dies.

    Reading a run needs no lock. What a dead process left is taken over.

    Args:
        folder: an existing run folder.
        shown: its name in messages.
        warn: receives one line where the file system has no locks; the run goes on without.
    """

    def __init__(self, folder: Path, shown: str, warn: Callable[[str], None]) -> None:
        self._path, self._shown, self._warn = folder / LOCK, shown, warn

    def __enter__(self) -> Self:
        """Take the lock.

        Raises:
            ConfigError: another process has it; the message names that process.
            OSError: the folder cannot be written to.
        """
        try:
            self._descriptor, self._has_locks = open_locked(self._path)
        except BlockingIOError:
            raise ConfigError(
                f"{self._shown} is in use by {_holder(self._path)}: wait for it to end, or choose another --workdir."
            ) from None
        if not self._has_locks:
            self._warn(f"{self._shown} lies where files cannot be locked: see to it that no other process writes there")
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        holder = {"process": os.getpid(), "host": platform.node(), "since": since}
        # The lock counts, not what the file says: on a full disk it says nothing.
        with suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, json.dumps(holder).encode())
        last_acts.append(self._remove)
        return self

    def __exit__(self, *error: object) -> None:
        last_acts.remove(self._remove)
        self._remove()
        os.close(self._descriptor)

    def is_held(self) -> bool:
        """Whether the folder is still the one that was locked: it may have been moved away, and another put there."""
        try:
            # Where files cannot be locked, one file may have another number each time it is looked at.
            return not self._has_locks or os.path.samestat(os.fstat(self._descriptor), self._path.lstat())
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:  # a network folder that is away for a while
            return True

    def _remove(self) -> None:
        # Removed before it is let go, and looked at: nobody's lock but one's own may be removed.
        with suppress(OSError):
            if os.path.samestat(os.fstat(self._descriptor), self._path.lstat()):
                self._path.unlink()


def _holder(path: Path) -> str:
    """Who has the lock, in words."""
    until = time.monotonic() + _WRITING_SECONDS
    while time.monotonic() < until:
        with suppress(OSError, ValueError, KeyError, TypeError):
            holder = json.loads(path.read_bytes())
            return f"process {holder['process']} on {holder['host']} since {holder['since']}"
        time.sleep(0.02)
    return "another process"
