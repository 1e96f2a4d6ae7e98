"""Stopping on request: SIGTERM and Ctrl-C ask, the training loop answers at the next step boundary."""

import signal
import threading
from types import FrameType


class StopRequest:
    """While active, `signal` names the first of SIGTERM and SIGINT to arrive ("SIGTERM"), and is None until then.

    A Ctrl-C after that raises KeyboardInterrupt at once. On exit the handlers before it are back in place. Python takes
    signal handlers in the main thread only: entered in any other thread it does nothing, and `signal` stays None.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            # None stands for a handler that was not set from Python and cannot be set again from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # pyright: ignore[reportArgumentType]
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = signal.Signals(number).name
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
