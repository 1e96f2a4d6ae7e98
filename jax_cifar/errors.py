"""Errors that a user can cause or must hear of: each is one short message and an exit code, never a traceback."""

import sys
import unicodedata

from jax_cifar.signals import STOPPED


class UserError(Exception):
    """Something the user can put right. The message shows the offending value and the way out."""

    exit_code = 2

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback."""
        return [printable(f"error: {self}")]


class ConfigError(UserError):
    """A configuration field is unknown, of the wrong type or out of range."""


def check(condition: bool, name: str, value: object, expected: str) -> None:
    """Raise `ConfigError` naming the field, its value and what is allowed unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{name} = {value!r} is not allowed: {expected}.")


def printable(text: str, keep: str = "\n") -> str:
    """What a terminal may be shown of a text that came from a file: it can colour, move and turn nothing.

    Control characters, what reverses the direction of writing, and bytes of a file name that are no text are written
    as in Python: \\x1b, \\u202e, \\udcff.
    """
    shown = (c if c.isprintable() or c in keep or unicodedata.category(c) == "Zs" else ascii(c)[1:-1] for c in text)
    return text if text.isprintable() else "".join(shown)


class DataError(UserError):
    """A data set is missing, incomplete or not what it claims to be."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged or belongs to another configuration."""


class ExportError(UserError):
    """An exported model is damaged or another one, or does not compute what the trained network computes."""


class Diverged(UserError):
    """The training loss stopped being finite; the last good checkpoint is kept and named."""

    exit_code = 3


class Interrupted(UserError):
    """A signal stopped the run after its state was saved; the same command goes on from there."""

    exit_code = STOPPED


def print_warning(message: str) -> None:
    """One line on stderr about what is not as it should be, but stops nothing."""
    print(printable(f"warning: {message}", keep=""), file=sys.stderr)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it is the machine or a device that had no more memory to give."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
