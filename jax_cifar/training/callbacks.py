"""Code of one's own that is told what happens in a run: a tracker, a live plot, a message when it is done."""

import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jax_cifar.config.modules import own_line
from jax_cifar.errors import check


class Callback:
    """Base of what `train(config, callbacks=[...])` takes; every method may be left out.

    A callback looks on: what it returns is not used, and one that fails is a warning, not a lost run.
    """

    def on_log(self, record: Mapping[str, Any]) -> None:
        """Each line of metrics.jsonl: `step`, `epoch`, `split`, `loss`, `accuracy`, `lr`, ..."""

    def on_epoch(self, record: Mapping[str, Any]) -> None:
        """Each row of the console's table: training since the epoch began, `eval_loss` and `eval_accuracy`."""

    def on_end(self, result: Any) -> None:
        """The end of a finished run, with what `train` returns."""


def check_callbacks(callbacks: object) -> None:
    """Raise `ConfigError` for what is no list of objects."""
    good = isinstance(callbacks, Sequence) and not any(isinstance(each, type) for each in callbacks)
    check(good, "callbacks", callbacks, "it must be a list of objects, such as [MyCallback()]")


class Callbacks:
    """Several callbacks, told one after another; `warn` gets one line for each kind of failure."""

    def __init__(self, callbacks: Sequence[Any], warn: Callable[[str], None]) -> None:
        self._callbacks, self._warn = tuple(callbacks), warn
        self._warned: set[tuple[int, str]] = set()

    def tell(self, event: str, what: Any) -> None:
        """Call the method `event` of every callback that has one."""
        for i, callback in enumerate(self._callbacks):
            try:
                getattr(callback, event, _nothing)(what)
            except Exception as error:
                if (i, event) not in self._warned:
                    self._warned.add((i, event))
                    place = own_line(error) or traceback.extract_tb(error.__traceback__)[-1]
                    self._warn(
                        f"the callback {type(callback).__name__}.{event} failed with {type(error).__name__}: {error}"
                        f" ({place.filename}, line {place.lineno}). Training goes on."
                    )


def _nothing(_: Any) -> None:
    """What a callback does that is not interested."""
