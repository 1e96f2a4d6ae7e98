"""How far a long command is and how long it will still take: one line on stderr, the same for all of them.

with progress("sweep", total=9) as bar:
    for trial in trials:
        bar.print(row(trial))  # on stdout; the line makes way for it
        bar.advance(note=f"lr {trial.lr}: {trial.accuracy:.2%}")

A terminal has one line that changes, and is gone at the end; so has a notebook. A file or a pipe gets a line every half
minute and one at the end, and nothing of what is quicker than that.
"""

import contextlib
import html
import os
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from jax_cifar.errors import printable
from jax_cifar.notebook import Display, is_notebook
from jax_cifar.signals import last_acts

TERMINAL_SECONDS = 0.2  # between two versions of the line
NOTEBOOK_WIDTH = 100
FILE_SECONDS = 30.0  # between two lines of a file
BAR_WIDTH = 20
OVERDUE = 2.0  # times that a piece may take of what those before took, until they no longer tell of it;
OVERDUE_SECONDS = 10.0  # and not before, as small ones come in bursts

Note = str | Callable[[], str]

_drawing = threading.RLock()
_open: list["Bar"] = []  # the last of them has the terminal's line: it is what goes on inside the others


def is_terminal(stream: TextIO) -> bool:
    """Whether a line of this stream can be written over."""
    return stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def clock_time(seconds: float) -> str:
    """Seconds as `0:07`, `12:34` or `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def print_above(text: str = "", file: TextIO | None = None) -> None:
    """Print a line, by default on stdout, and whatever progress is shown again below it."""
    with _drawing:
        for bar in _open:
            bar.clear()
        print(text, file=file, flush=True)
        if _open and _open[-1].on_terminal:
            _open[-1].draw()


class Pace:
    """Seconds that an amount of work takes, by the later half of what was done: the first of it often compiles, too.

    What was done before this began says nothing of it.
    """

    def __init__(self, done: float, now: float) -> None:
        self._first, self._marks = done, deque([(done, now)])

    def mark(self, done: float, now: float) -> None:
        """So much is done by now; less than before means that all was begun anew."""
        if done < self._marks[-1][0]:
            self._first, self._marks = done, deque([(done, now)])
        elif done > self._marks[-1][0]:
            self._marks.append((done, now))
            while self._marks[1][0] <= (self._first + done) / 2:
                self._marks.popleft()

    def left(self, total: float, now: float) -> float | None:
        """Seconds until `total` is done; None while nothing is known."""
        (begin, since), (done, until) = self._marks[0], self._marks[-1]
        if len(self._marks) < 2:
            return None
        pace, piece = (until - since) / (done - begin), done - self._marks[-2][0]
        if now - until > max(OVERDUE * piece * pace, OVERDUE_SECONDS):
            return None  # what is under way is of another size
        # Of the piece under way no more than all of it can be done.
        return max((total - done) * pace - min(now - until, piece * pace), 0.0)


class Bar:
    """Amounts so far and in all, and the line that tells of them; `progress` opens one and shows it."""

    def __init__(self, name: str, total: float | None, done: float, unit: str, form: str, now: Callable[[], float]):
        self._name, self._total, self._done, self._now = name, total, done, now
        self._unit, self._form = unit and f" {unit}", form
        self._note: Note = ""
        self._began = now()
        self._pace = Pace(done, self._began)
        self._stream, self._shown = sys.stderr, 0  # characters of the line shown
        self.on_terminal, self.closed = is_terminal(self._stream), False
        # What goes on inside another has the other's place.
        self.display: Display | None = None
        if not self.on_terminal and is_notebook(self._stream):
            self.display = _open[-1].display if _open else Display()

    print = staticmethod(print_above)

    def advance(self, count: float = 1, note: Note | None = None) -> None:
        """So much more is done. The note is said from now on; a function is asked for it whenever the line is drawn."""
        self.update(self._done + count, note=note)

    def update(self, done: float, total: float | None = None, note: Note | None = None) -> None:
        """So much is done, of so much in all where that has changed. Cheap: call it often."""
        with _drawing:
            self._done, self._total = done, self._total if total is None else total
            self._note = self._note if note is None else note
            self._pace.mark(done, self._now())

    def line(self, width: int | None = None) -> str:
        """What is told, in at most `width` characters; without a width all of it."""
        pieces = {"amount": self._amount()}
        if width and self._total:
            full = round(BAR_WIDTH * min(max(self._done / self._total, 0), 1))
            pieces["bar"] = "#" * full + "-" * (BAR_WIDTH - full)
        pieces["spent"] = clock_time(self._now() - self._began)
        pieces["left"] = self._left()
        note = self._note() if callable(self._note) else self._note
        pieces["note"] = printable(note, keep="")
        return _fit({name: text for name, text in pieces.items() if text}, width)

    def brief(self) -> str:
        """How far it is and how long it will take, for the line of what goes on inside."""
        return ", ".join(filter(None, (self._amount(), self._left())))

    def _amount(self) -> str:
        if not (self._done or self._total):
            return self._name  # one piece of work, of which no more is known
        of_all = f" of {self._total:{self._form}}" if self._total else ""
        return f"{self._name}: {self._done:{self._form}}{of_all}{self._unit}"

    def _left(self) -> str:
        left = self._pace.left(self._total, self._now()) if self._total and self._done < self._total else None
        return "" if left is None else f"about {clock_time(left)} left"

    def draw(self) -> None:
        """Bring the line up to date, or write one more; not while another has it."""
        with _drawing, contextlib.suppress(OSError, ValueError):  # a stream that is closed has no reader to tell
            if self.closed or (_open and _open[-1] is not self):
                return
            width = self._width()
            outer = "".join(f"{bar.brief()} | " for bar in _open if bar is not self)
            line = (outer + self.line(width and max(width - len(outer), 1)))[:width]
            if self.on_terminal:
                # The carriage return at the end lets whatever else is printed take the line over.
                print(line.ljust(self._shown), end="\r", file=self._stream, flush=True)
            elif self.display:
                self.display.show(line, f"<pre>{html.escape(line)}</pre>")
            else:
                print(line, file=self._stream, flush=True)
            self._shown = len(line)

    def _width(self) -> int | None:
        if self.on_terminal:
            return shutil.get_terminal_size().columns - 1
        return NOTEBOOK_WIDTH if self.display else None

    def clear(self) -> None:
        """Take the line off the terminal."""
        if self.on_terminal and self._shown:
            with _drawing, contextlib.suppress(OSError, ValueError):
                print(" " * self._shown, end="\r", file=self._stream, flush=True)
                self._shown = 0

    def close(self) -> None:
        """The last line of a file that has had one; nothing is drawn after it."""
        with _drawing:
            if self._shown and self.display:
                self.display.show("", "")
            elif self._shown and not self.on_terminal:
                self.draw()
            self.clear()
            self.closed = True


@contextmanager
def progress(
    name: str,
    total: float | None = None,
    *,
    done: float = 0,
    unit: str = "",
    form: str = ",.0f",
    now: Callable[[], float] = time.monotonic,
) -> Iterator[Bar]:
    """A bar that is shown while the block lasts, by a thread of its own: the work may wait, or be compiled code.

    Args:
      name: what is done.
      total: how much of it there is; None or 0 while that is unknown.
      done: how much was done before.
      unit: of the amounts, such as "MB".
      form: how an amount is written.
      now: clock in seconds, for the tests.
    """
    bar, ended = Bar(name, total, done, unit, form, now), threading.Event()

    def show() -> None:
        while not ended.wait(TERMINAL_SECONDS if bar.on_terminal or bar.display else FILE_SECONDS):
            bar.draw()

    def end_at_once() -> None:
        bar.closed = True  # without the lock: the thread that holds it may wait for ever, for a terminal that is held

    thread = threading.Thread(target=show, name=f"progress of {name}", daemon=True)
    last_acts.insert(0, end_at_once)  # before those that print
    with _drawing:
        for outer in _open:
            outer.clear()
        _open.append(bar)
    thread.start()
    try:
        yield bar
    finally:
        ended.set()
        bar.close()
        _open.remove(bar)
        last_acts.remove(end_at_once)


def _fit(pieces: dict[str, str], width: int | None) -> str:
    """As much as there is room for: the bar is missed least, then the time spent; then the end is."""
    for least in ("bar", "spent"):
        if width and len(", ".join(pieces.values())) > width:
            pieces.pop(least, None)
    return ", ".join(pieces.values())[:width]
