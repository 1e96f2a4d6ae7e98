"""What a person sees of a run: its facts first, a table that grows with it, a summary at the end.

On a terminal a progress bar stands below the table; in a notebook the table is one output, which changes. Elsewhere (a
file, a pipe) there are only plain lines of fixed width, which `grep` and `awk` read as easily as people do.
"""

import dataclasses
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TextIO

from jax_cifar.errors import printable
from jax_cifar.notebook import is_notebook
from jax_cifar.progress import Pace, clock_time, is_terminal
from jax_cifar.telemetry.describe import describe_config, describe_summary, parameter_lines
from jax_cifar.telemetry.live import NotebookTable, TerminalBar

# A line between two epochs says that a slow run is alive; more of them would bury the table. The first comes soon.
QUIET_SECONDS = 15.0
FIRST_SECONDS = 3.0
PLAIN_WIDTH = 100
# Facts come in several groups; their texts stand in one column all the same.
NAME_WIDTH = 10


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of the table; of a narrow terminal the columns of the highest rank drop out first."""

    name: str
    title: str
    width: int
    rank: int
    format: Callable[[Any], str]


COLUMNS = (
    Column("epoch", "epoch", 6, 0, lambda value: f"{value:.1f}"),
    Column("step", "step", 7, 3, lambda value: f"{value:d}"),
    Column("loss", "train loss", 10, 1, lambda value: f"{value:.4f}"),
    Column("accuracy", "train acc", 9, 1, lambda value: f"{value:.2%}"),
    Column("eval_loss", "{split} loss", 10, 2, lambda value: f"{value:.4f}"),
    Column("eval_accuracy", "{split} acc", 9, 0, lambda value: f"{value:.2%}"),
    Column("lr", "lr", 8, 4, lambda value: f"{value:.3g}"),
    Column("images_per_second", "images/s", 8, 3, lambda value: f"{value:,.0f}"),
    Column("time", "time", 7, 1, lambda value: clock_time(value)),
    Column("left", "left", 7, 2, lambda value: clock_time(value)),
)


class Console:
    """Prints a run to a stream. Use it as a context manager, so that the terminal is left as it was found.

    Args:
      stream: where to; default: standard output.
      width: characters in a line; default: the terminal's, or 100.
      now: clock in seconds, for the tests.
    """

    def __init__(
        self, stream: TextIO | None = None, width: int | None = None, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream or sys.stdout
        self.is_terminal = is_terminal(self._stream)
        self._width = width or (
            shutil.get_terminal_size((PLAIN_WIDTH, 24)).columns if self.is_terminal else PLAIN_WIDTH
        )
        self._now = now
        self._rich = _rich_console(self._stream, self._width) if self.is_terminal else None
        self._bar: TerminalBar | NotebookTable | None = None
        self._table_open = False

    # Facts before and after training.

    def line(self, text: str = "") -> None:
        """Print one line; the table gets its titles again after it."""
        self._table_open = False
        self._print(text)

    def warn(self, text: str) -> None:
        """Print a warning that cannot be overlooked."""
        self._table_open = False
        self._print(f"WARNING: {text}", style="bold yellow")  # unwrapped: it may hold a command to copy

    def facts(self, rows: Mapping[str, str]) -> None:
        """Print `name  text` in two columns, long texts wrapped in theirs."""
        self._table_open = False
        width = max([NAME_WIDTH, *map(len, rows)])
        for name, text in rows.items():
            for line in _wrapped(f"{name:<{width}}  ", text, self._width):
                self._print(line)

    def config(self, config: Any, own_images: bool = False) -> None:
        """Print what sets a `Config` apart from the defaults, one line per section."""
        self.facts(describe_config(config, own_images))

    def parameter_table(self, rows: Sequence[tuple[str, tuple[int, ...], int]]) -> None:
        """Print name, shape and count of every parameter, and the total."""
        for line in parameter_lines(rows):
            self.line(line)

    def summary(self, summary: Mapping[str, Any], workdir: Path) -> None:
        """Print the figures of `summary.json`, where the seconds went, and where the results lie."""
        self.line()
        self.facts(describe_summary(summary, workdir))

    # The table that grows while training.

    def start(
        self,
        total_steps: int,
        steps_per_epoch: float,
        initial_step: int = 0,
        split: str = "test",
        work: Callable[[int, bool], float] = lambda step, evaluated: float(step),
    ) -> None:
        """Begin the table and, on a terminal or in a notebook, the progress bar.

        Args:
          total_steps: updates of the whole run.
          steps_per_epoch: updates per pass over the training images.
          initial_step: updates done before, when resuming.
          split: what `row` reports beside training: "test", or "val".
          work: how much is done by an update, in any unit, by which the time left is estimated; of the update, and
            whether it has been evaluated, too, where that is due.
        """
        self._total, self._steps_per_epoch, self._split = total_steps, steps_per_epoch, split
        self._started = self._printed = self._now()
        self._shown_alive = False
        self._work = work
        self._pace: Pace | None = None
        self._columns = _columns_within(self._width)
        if self._rich is not None:
            self._bar = TerminalBar(self._rich, self._stream, self._width, total_steps, initial_step)
        elif is_notebook(self._stream):
            self._bar = NotebookTable(self._titles(), total_steps, initial_step, self._now)

    def update(
        self,
        step: int,
        *,
        loss: float | None,
        accuracy: float | None,
        lr: float,
        images_per_second: float,
        row_follows: bool = False,
    ) -> None:
        """Show the figures of the epoch so far: in the bar, or as a line of the table if the last is long ago.

        Loss and accuracy are None where there were none, since every update was skipped.
        `row_follows` says that `row` comes next with the same step, so that a line of its own would double it.
        """
        values = self._timed(step, False, loss=loss, accuracy=accuracy, lr=lr, images_per_second=images_per_second)
        if self._bar is not None:
            shown = "skipped" if loss is None else f"loss {loss:.3f}  acc {accuracy:.1%}"
            figures = f"{shown}  {images_per_second:,.0f} images/s"
            left = "" if values["left"] is None else f"{clock_time(values['left'])} left"
            self._bar.move(step, figures=figures, left=left)
        elif not row_follows and self._now() - self._printed >= QUIET_SECONDS:
            self._print_row(values)

    def show_alive(self, step: int) -> None:
        """Move the bar; elsewhere, while no row is near, one line that says how fast it goes. Cheap: call it often.

        All that was due at `step` is done.
        """
        if self._bar is not None:
            self._left(step, evaluated=True)
            self._bar.move(step)
            return
        seconds, left = self._now() - self._started, self._left(step, evaluated=True)
        if self._shown_alive or self._printed > self._started or seconds < FIRST_SECONDS or left is None:
            return
        self._shown_alive = True
        self.line(f"step {step:,} of {self._total:,} after {clock_time(seconds)}, about {clock_time(left)} left")

    def row(
        self,
        step: int,
        *,
        loss: float | None,
        accuracy: float | None,
        eval_loss: float | None = None,
        eval_accuracy: float | None = None,
        lr: float,
        images_per_second: float,
    ) -> None:
        """Print a row of the table, at the end of an epoch: losses in nats, accuracies as shares of 1."""
        values = self._timed(step, True, loss=loss, accuracy=accuracy, lr=lr, images_per_second=images_per_second)
        self._print_row({**values, "eval_loss": eval_loss, "eval_accuracy": eval_accuracy})

    def close(self) -> None:
        """Take the progress bar down. More lines may follow."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _timed(self, step: int, evaluated: bool, **values: float | None) -> dict[str, Any]:
        return {
            "epoch": step / self._steps_per_epoch,
            "step": step,
            "time": self._now() - self._started,
            "left": self._left(step, evaluated),
            **values,
        }

    def _left(self, step: int, evaluated: bool) -> float | None:
        """Seconds until all is done, the last evaluation too; None while nothing is known."""
        now, done = self._now(), self._work(step, evaluated)
        # From the first report on: what lies before it is mostly compilation.
        self._pace = self._pace or Pace(done, now)
        self._pace.mark(done, now)
        return 0.0 if step >= self._total else self._pace.left(self._work(self._total, True), now)

    def _titles(self) -> list[str]:
        return [f"{column.title.format(split=self._split):>{column.width}}" for column in self._columns]

    def _print_row(self, values: Mapping[str, Any]) -> None:
        cells = []
        for column in self._columns:
            value = values.get(column.name)
            cells.append(f"{'-' if value is None else column.format(value):>{column.width}}")
        if isinstance(self._bar, NotebookTable):
            self._bar.add(cells)
            return
        if not self._table_open:
            self._print("")
            self._print("  ".join(self._titles()), style="bold")
            self._table_open = True
        self._print("  ".join(cells))
        self._printed = self._now()

    def _print(self, text: str, style: str | None = None) -> None:
        text = printable(text)
        if self._rich is not None:
            self._rich.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=self._stream, flush=True)


def _wrapped(head: str, text: str, width: int) -> list[str]:
    # A column of less than a few words is harder to read than a line that the terminal breaks.
    wrapper = textwrap.TextWrapper(
        width=max(width, len(head) + 20),
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return wrapper.wrap(text) or [head.rstrip()]


def _columns_within(width: int) -> tuple[Column, ...]:
    columns = list(COLUMNS)
    while sum(column.width + 2 for column in columns) - 2 > width and max(column.rank for column in columns) > 0:
        columns.remove(max(columns, key=lambda column: column.rank))
    return tuple(columns)


def _rich_console(stream: TextIO, width: int) -> Any:
    from rich.console import Console as RichConsole

    return RichConsole(file=stream, width=width, force_terminal=True, highlight=False, emoji=False)
