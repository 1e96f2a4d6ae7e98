"""How a process ends that is asked to: at once where nothing can be lost, else after saving.

A script calls `guard()`, by `process.begin`, before it imports anything that takes long. From then on a thread of its
own reads the signals (`signal.set_wakeup_fd`), so that they are answered while compiled code holds the main thread, and
no library that catches KeyboardInterrupt can lose one. Programs that use the library have their own ideas: without
`guard()` nothing is changed but by a `StopRequest`, and that only while it is active.
"""

import contextlib
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:  # it would be imported before the signals are guarded
    import subprocess

STOPPED = 75  # exit code of a process that a signal ended: EX_TEMPFAIL, "try again later"
# SIGHUP: the terminal was closed. SIGUSR1: Slurm's warning before the time is up. Not every platform has all.
STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]
SECONDS_TO_SAY = 0.2  # how long a line may wait for a reader that has stopped reading

# What is still done when a process ends at once, in the thread of the signals: quick, and it cannot wait for others.
last_acts: list[Callable[[], object]] = []


@contextlib.contextmanager
def ending_with_us(process: "subprocess.Popen[Any]", *, session: bool = False) -> Iterator[None]:
    """Inside, a process that was started is told to end where this one does, by an exception or at once by a signal.

    Args:
        process: what was started.
        session: it leads a session of its own, of which all are told.
    """

    def end() -> None:
        if session and process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        elif not session:
            process.terminate()

    last_acts.append(end)
    try:
        yield
    except BaseException:
        end()
        raise
    finally:
        last_acts.remove(end)


class StopRequest:
    """While active, `signal` names the first signal of `STOPS` to arrive ("SIGTERM"), and is None until then.

    In a guarded script every signal is answered by a line at once, and the third ends the process. Elsewhere a Ctrl-C
    after the first signal raises KeyboardInterrupt, and on exit the handlers before it are back in place; Python takes
    handlers in the main thread only: entered in any other thread it does nothing, and `signal` stays None.
    A signal that arrived and that the block did not answer by an exception is acted upon when the block ends.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self.waits_for = "the update under way"  # what a second signal is told
        self.kept = "Nothing was saved before."  # what the third is told
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if _guard.active:
            _guard.request = self
        elif threading.current_thread() is threading.main_thread():
            for number in filter(_is_ours, STOPS):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        with _guard.lock:
            if _guard.request is self:
                _guard.request = None
                if self.signal is not None and kind is None:
                    _guard.end(self.signal)
        for number, handler in self._previous.items():
            # None stands for a handler that was not set from Python and cannot be set again from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if self._previous and self.signal is not None and kind is None:
            signal.raise_signal(signal.Signals[self.signal])
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = signal.Signals(number).name
        elif number == signal.SIGINT:
            raise KeyboardInterrupt


def _is_ours(number: signal.Signals) -> bool:
    """Whether a program may be relieved of this signal for a while: not of one ignored, or of one it uses itself."""
    handler = signal.getsignal(number)
    usual = number in (signal.SIGINT, signal.SIGTERM) or handler is signal.SIG_DFL
    return usual and handler is not signal.SIG_IGN


class _Guard:
    """The state of a guarded script. One per process, as signals are."""

    def __init__(self) -> None:
        self.active = False
        self.lock = threading.RLock()
        self.request: StopRequest | None = None
        self.remains = "There was nothing to save."
        self.retell: Callable[[str], str] = str
        self.code = STOPPED
        self._again = False

    def start(self) -> None:
        reading, writing = os.pipe()
        if hasattr(os, "set_blocking"):  # of Windows from Python 3.12 on
            os.set_blocking(writing, False)
        for number in STOPS:
            # nohup and `trap '' INT` have the signal ignored, and it stays so.
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _nothing)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(reading,), name="signals", daemon=True).start()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_unguarded)  # a child shares the pipe, but has no thread that reads it
        self.active = True

    def _listen(self, reading: int) -> None:
        while number := os.read(reading, 1):
            if number[0] in STOPS:
                with self.lock:
                    self._answer(signal.Signals(number[0]).name)

    def _answer(self, name: str) -> None:
        request = self.request
        if request is None:
            self.end(name)
        elif request.signal is None:
            request.signal, self._again = name, False
            say(f"{name}: stopping after {request.waits_for}, then saving. A third signal ends at once, unsaved.")
        elif not self._again:
            self._again = True
            say(f"{name}: still waiting for {request.waits_for}. One more signal ends at once, unsaved.")
        else:
            self.end(name, request.kept)

    def end(self, name: str, remains: str | None = None) -> NoReturn:
        if self.code == STOPPED:
            say(f"Stopped by {name}. {remains or self.remains}")
        for act in last_acts:
            with contextlib.suppress(Exception):
                act()
        os._exit(self.code)


_guard = _Guard()


def guard() -> None:
    """Guard this process: the first thing that a script does, in its main thread, and nothing that a library calls."""
    if not _guard.active:
        for descriptor in range(3):
            _open_if_closed(descriptor)
        _guard.start()


def at_end_say(what_remains: str) -> None:
    """What a guarded script says when a signal ends it at once: what is saved, and how to go on."""
    _guard.remains = _guard.retell(what_remains)


@contextlib.contextmanager
def retold(retell: Callable[[str], str]) -> Iterator[None]:
    """Meanwhile `at_end_say` goes through `retell`: what it is given is of a command that another one runs."""
    before, _guard.retell = _guard.retell, retell
    try:
        yield
    finally:
        _guard.retell = before


def all_done(code: int) -> None:
    """From now on a signal ends a guarded script with this exit code, in silence: what it was asked for is done."""
    _guard.code = code


def is_guarded() -> bool:
    """Whether `guard` was called in this process."""
    return _guard.active


def say(text: str, descriptor: int = 2) -> None:
    """Write to stderr, past all buffers, unless that would have to wait: its reader may be stuck, or gone."""
    with contextlib.suppress(OSError, ValueError):
        if os.name == "nt" or select.select([], [descriptor], [], SECONDS_TO_SAY)[1]:
            # Below what a terminal shows of Ctrl-C, or of a progress bar.
            above = "\n" if os.isatty(descriptor) else ""
            os.write(descriptor, f"{above}{text}\n".encode(errors="replace"))


def _open_if_closed(descriptor: int) -> None:
    """Else the next file opened takes the place of a closed standard stream, and gets what is printed."""
    try:
        os.fstat(descriptor)
    except OSError:
        os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one


def _nothing(number: int, frame: FrameType | None) -> None:
    """A handler for Python's eyes only: with one, signals are written to the pipe."""


def _unguarded() -> None:
    signal.set_wakeup_fd(-1)
    for number in STOPS:
        if signal.getsignal(number) is _nothing:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    _guard.active, _guard.request = False, None
