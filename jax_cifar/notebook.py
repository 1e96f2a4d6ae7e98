"""Output below a cell of a notebook: there it is replaced, where the line of a terminal is written over."""

import io
import sys
from typing import Any, TextIO


def is_notebook(stream: TextIO) -> bool:
    """Whether what is written to this stream appears below a cell; what is kept in a file or a text does not."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    # A shell that a notebook talks to has a kernel; that of a terminal has none.
    return hasattr(shell, "kernel") and not isinstance(stream, io.StringIO | io.TextIOWrapper)


class Display:
    """One output of a cell, made when something is shown first, and replaced from then on."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, text: str, html: str) -> None:
        """Put this in its place: HTML, and text for what shows no HTML."""
        from IPython.display import display

        content = {"text/plain": text, "text/html": html}
        if self._handle is None:
            self._handle = display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)
