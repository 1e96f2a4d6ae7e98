"""What moves while a run is trained: a bar below the lines of a terminal, or a table below a cell of a notebook."""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from jax_cifar.notebook import Display
from jax_cifar.signals import last_acts
from jax_cifar.telemetry.html.markup import tag

SHOW_CURSOR = b"\x1b[?25h"
NOTEBOOK_SECONDS = 0.5  # between two versions of a table: each is sent to the browser
NOTEBOOK_ROWS = 20  # of a long run the newest


class TerminalBar:
    """A progress bar on a terminal, which is left as it was found."""

    def __init__(self, console: Any, stream: TextIO, width: int, total: int, done: int) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        columns: list[Any] = [TextColumn("{task.percentage:>3.0f}%", markup=False)]
        if width >= 80:
            columns.append(BarColumn(bar_width=None))
        if width >= 60:
            columns.append(TextColumn("{task.fields[figures]}", markup=False))
        columns.append(TextColumn("{task.fields[left]}", markup=False))
        self._stream = stream
        self._bar: Any = Progress(*columns, console=console, transient=True, expand=True, refresh_per_second=4)
        self._task = self._bar.add_task("", total=total, completed=done, figures="", left="")
        self._bar.start()
        last_acts.append(self._show_cursor)

    def move(self, done: int, **texts: str) -> None:
        """So much is done; `figures` and `left`, where they are given, are said from now on."""
        self._bar.update(self._task, completed=done, **texts)

    def close(self) -> None:
        """Take the bar down and give the cursor back."""
        self._bar.stop()
        last_acts.remove(self._show_cursor)

    def _show_cursor(self) -> None:
        os.write(self._stream.fileno(), SHOW_CURSOR)


class NotebookTable:
    """The table of a run as one output of a cell, with a bar above it while the run goes on."""

    def __init__(self, titles: Sequence[str], total: int, done: int, now: Callable[[], float] = time.monotonic) -> None:
        self._titles, self._total, self._done, self._now = titles, total, done, now
        self._rows: list[Sequence[str]] = []
        self._texts, self._closed = {"figures": "", "left": ""}, False
        self._display = Display()
        self._draw()

    def move(self, done: int, **texts: str) -> None:
        """So much is done; `figures` and `left`, where they are given, are said from now on."""
        self._done = done
        self._texts |= texts
        self._draw_if_due()

    def add(self, cells: Sequence[str]) -> None:
        """One more row."""
        self._rows.append(cells)
        self._draw_if_due()

    def close(self) -> None:
        """The table alone; it stays."""
        self._closed = True
        self._draw()

    def _draw_if_due(self) -> None:
        if self._now() - self._drawn >= NOTEBOOK_SECONDS:
            self._draw()

    def _draw(self) -> None:
        self._drawn = self._now()
        share = f"{self._done / self._total:.0%}"
        told = [] if self._closed else ["  ".join(filter(None, [share, *self._texts.values()]))]
        shown, before = self._rows[-NOTEBOOK_ROWS:], len(self._rows) - NOTEBOOK_ROWS
        if before > 0:
            told.append(f"{before:,} rows before these; all are in metrics.jsonl")
        rows = [self._titles, *shown] if shown else []
        bar = None if self._closed else tag("progress", max=self._total, value=self._done)
        lines = [tag("div", bar if i == 0 else None, " ", text) for i, text in enumerate(told)]
        self._display.show("\n".join([*told, *("  ".join(cells) for cells in rows)]), tag("div", lines, _table(rows)))


def _table(rows: Sequence[Sequence[str]]) -> Any:
    kinds = ["th", *["td"] * len(rows)]
    lines = [[tag(kind, cell.strip()) for cell in row] for kind, row in zip(kinds, rows, strict=False)]
    style = "text-align: right; font-variant-numeric: tabular-nums; border-spacing: 12px 0"
    return tag("table", [tag("tr", line) for line in lines], style=style) if rows else None
