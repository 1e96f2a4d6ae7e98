"""What a person sees of a download: how far it is, and what is waited for while nothing comes."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

_TERMINAL_SECONDS = 0.2  # between two versions of the line
_LOG_SECONDS = 30.0  # between two lines of a file, the first of which is a slow download's
_QUIET_SECONDS = 2.0  # without a byte, until it is said that one is waited for


class Meter:
    """Bytes so far and in all, and the line that tells of them; called with both at every step of a download."""

    def __init__(self, name: str, url: str, patience: float) -> None:
        self._name, self._host, self._patience = name, urlsplit(url).netloc, patience
        self._began = self._heard = time.monotonic()
        self._done, self._total, self._had = 0, 0, -1

    def __call__(self, done: int, total: int) -> None:
        self._heard = time.monotonic()
        self._had = done if self._had < 0 else self._had  # what an earlier run left says nothing about the speed
        self._done, self._total = done, total

    def line(self) -> str:
        """How far it is and how long it will take, or who has sent nothing for how long."""
        now = time.monotonic()
        far = f"{self._name}: {self._done / 1e6:,.1f} of {self._total / 1e6:,.1f} MB" if self._total else self._name
        if self._done < self._total or not self._total:
            silent = now - self._heard
            if silent >= _QUIET_SECONDS or not self._total:
                return f"{far}, waiting for {self._host}, {silent:.0f} s of at most {self._patience:.0f}"
        rate = (self._done - self._had) / max(now - self._began, 1e-3)
        return f"{far}, {(self._total - self._done) / rate:,.0f} s left" if rate > 0 else far


@contextmanager
def terminal_or_log(name: str, url: str, patience: float) -> Iterator[Meter]:
    """A meter that is shown while the block lasts: on a terminal one line that changes, in a file a line now and then.

    A thread of its own shows it, because a download that waits for a byte does nothing else.
    """
    stream = sys.stderr
    meter, ended, on_terminal = Meter(name, url, patience), threading.Event(), stream.isatty()
    # The carriage return at the end lets whatever is printed next take the line over.
    end, every = ("\r", _TERMINAL_SECONDS) if on_terminal else ("\n", _LOG_SECONDS)

    def show() -> None:
        while not ended.wait(every):
            print(meter.line().ljust(79 if on_terminal else 0), end=end, file=stream, flush=True)

    thread = threading.Thread(target=show, name="download progress", daemon=True)
    thread.start()
    try:
        yield meter
    finally:
        ended.set()
        thread.join()
        if on_terminal:
            print(meter.line().ljust(79), end=end, file=stream, flush=True)
