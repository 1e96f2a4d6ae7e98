"""The line that says how far a long command is: on a terminal, in a file, when it ends."""

import io
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from clocks import Clock

from jax_cifar import progress as module
from jax_cifar.progress import Bar, Pace, clock_time, progress
from jax_cifar.signals import last_acts


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A terminal in place of standard error, whose line is drawn by the test, not by the time."""
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setattr(module, "sys", SimpleNamespace(stderr=stream))  # pytest sets sys.stderr itself
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(module, "TERMINAL_SECONDS", 60)
    width(monkeypatch, 80)
    return stream


def width(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """A terminal so wide."""
    monkeypatch.setenv("COLUMNS", str(columns))


def screen(text: str) -> list[str]:
    """What a terminal shows of `text`, line by line, without what stands invisible at the ends."""
    lines = []
    for line in text.split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip())
    return lines


def bar_of(total: float | None, clock: Callable[[], float], done: float = 0) -> Bar:
    """A bar that nothing draws."""
    return Bar("sweep", total, done, "", ",.0f", clock)


def test_clock_time() -> None:
    shown = [clock_time(seconds) for seconds in (0, 59.6, 61, 3599.7, 3725)]
    assert shown == ["0:00", "1:00", "1:01", "1:00:00", "1:02:05"]


def test_the_line_tells_how_much_how_long_and_how_long_still(clock: Clock) -> None:
    bar = bar_of(9, clock)
    for _ in range(3):
        clock.seconds += 10
        bar.advance(note="lr 0.02: 71.3 %")
    assert bar.line() == "sweep: 3 of 9, 0:30, about 1:00 left, lr 0.02: 71.3 %"


def test_time_left_does_not_count_the_first_which_compiles(clock: Clock) -> None:
    bar = bar_of(6, clock)
    for seconds in (60, 10, 10):
        clock.seconds += seconds
        bar.advance()
    assert "about 0:30 left" in bar.line()


def test_time_left_falls_while_one_is_under_way_and_not_below_the_others(clock: Clock) -> None:
    pace = Pace(0, 0)
    assert pace.left(4, 5) is None
    pace.mark(1, 10)
    assert [pace.left(4, now) for now in (10, 14, 20, 30, 31)] == [30, 26, 20, 20, None]


def test_time_left_is_not_told_where_the_last_piece_is_of_another_size_nor_lost_between_small_ones() -> None:
    large, small = Pace(0, 0), Pace(0, 0)
    large.mark(2, 200)
    assert large.left(3, 400) == 0 and large.left(3, 650) is None
    small.mark(10, 1)
    assert small.left(20, 5) == 0.0 and small.left(20, 12) is None


def test_what_was_done_before_says_nothing_of_the_rate(clock: Clock) -> None:
    bar = bar_of(100, clock, done=90)
    clock.seconds += 10
    bar.update(91)
    assert "about 1:30 left" in bar.line()


def test_what_is_begun_anew_is_reckoned_anew(clock: Clock) -> None:
    bar = bar_of(100, clock, done=90)
    for done in (0, 10):
        clock.seconds += 5
        bar.update(done)
    assert "about 0:45 left" in bar.line()


@pytest.mark.parametrize("total", [None, 0])
def test_without_a_total_the_line_tells_how_much_and_how_long(clock: Clock, total: float | None) -> None:
    bar = bar_of(total, clock)
    clock.seconds += 3
    bar.advance(5)
    assert bar.line(80) == bar.line() == "sweep: 5, 0:03"
    bar.update(6, total=13)
    clock.seconds += 3
    assert bar.line() == "sweep: 6 of 13, 0:06, about 0:03 left"


def test_nothing_to_do_is_no_error(clock: Clock) -> None:
    bar = bar_of(0, clock)
    bar.update(0, 0)
    assert bar.line(80) == "sweep, 0:00"


def test_more_than_was_foreseen_is_told_as_it_is(clock: Clock) -> None:
    bar = bar_of(2, clock)
    clock.seconds += 1
    bar.update(3)
    assert bar.line(80) == f"sweep: 3 of 2, {'#' * 20}, 0:01"


def test_amounts_have_a_unit_and_a_form(clock: Clock) -> None:
    assert Bar("archive", 170.052, 3, "MB", ",.1f", clock).line() == "archive: 3.0 of 170.1 MB, 0:00"


@pytest.mark.parametrize("columns", [1, 20, 40, 50, 60, 80, 200])
def test_a_line_fits_on_every_terminal_and_keeps_what_matters(clock: Clock, columns: int) -> None:
    bar = bar_of(9, clock)
    clock.seconds += 10
    bar.advance(note="lr 0.02: 71.3 %")
    line = bar.line(columns)
    assert len(line) <= columns
    assert line.startswith("sweep: 1 of 9"[:columns])
    assert ("about 1:20 left" in line) == (columns >= 40)
    assert ("#" in line) == (columns >= 80)


def test_a_terminal_gets_one_line_that_is_gone_at_the_end(terminal: io.StringIO, clock: Clock) -> None:
    with progress("sweep", total=3, now=clock) as bar:
        bar.draw()
        bar.advance(note="a note that is long")
        bar.draw()
        bar.advance(note="short")
        bar.draw()
        assert screen(terminal.getvalue()) == [f"sweep: 2 of 3, {'#' * 13}{'-' * 7}, 0:00, about 0:00 left, short"]
    assert screen(terminal.getvalue()) == [""]


def test_rows_printed_meanwhile_stand_above_the_line(terminal: io.StringIO, clock: Clock) -> None:
    with progress("sweep", total=2, now=clock) as bar:
        bar.draw()
        bar.print("| 0.1 |", terminal)
        bar.print("| 0.2 |", terminal)
        *rows, line = screen(terminal.getvalue())
        assert rows == ["| 0.1 |", "| 0.2 |"]
        assert line.startswith("sweep: 0 of 2")


def test_what_goes_on_inside_stands_behind_what_it_is_part_of(terminal: io.StringIO, clock: Clock) -> None:
    with progress("sweep", total=2, now=clock) as outer:
        outer.draw()
        with progress("download", now=clock) as inner:
            inner.draw()
            outer.draw()
            assert screen(terminal.getvalue()) == ["sweep: 0 of 2 | download, 0:00"]
        outer.draw()
        assert screen(terminal.getvalue())[0].startswith("sweep: 0 of 2")


def test_a_name_from_elsewhere_cannot_move_the_cursor(clock: Clock) -> None:
    bar = bar_of(2, clock)
    bar.update(0, note="\x1b[2J\n")
    assert bar.line().endswith("\\x1b[2J\\n")


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_a_terminal_that_cannot_go_back_gets_lines(
    terminal: io.StringIO, clock: Clock, monkeypatch: pytest.MonkeyPatch, term: str
) -> None:
    monkeypatch.setenv("TERM", term)
    with progress("sweep", total=2, now=clock) as bar:
        bar.draw()
    assert terminal.getvalue() == "sweep: 0 of 2, 0:00\n" * 2


def test_a_file_gets_a_line_now_and_then_and_one_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], clock: Clock
) -> None:
    monkeypatch.setattr(module, "FILE_SECONDS", 0.01)
    with progress("sweep", total=1, now=clock) as bar:
        until = time.monotonic() + 5
        while not (first := capsys.readouterr().err) and time.monotonic() < until:
            time.sleep(0.01)
        bar.advance()
    assert first.startswith("sweep: 0 of 1, 0:00\n")
    assert capsys.readouterr().err.endswith("sweep: 1 of 1, 0:00\n")


def test_a_file_gets_nothing_of_what_is_quick(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("sweep", total=1) as bar:
        bar.print("| 0.1 |")
        bar.advance()
    assert capsys.readouterr() == ("| 0.1 |\n", "")


def test_a_signal_that_ends_the_process_at_once_leaves_no_line_behind(terminal: io.StringIO, clock: Clock) -> None:
    acts = list(last_acts)
    with progress("sweep", total=1, now=clock) as bar:
        for act in last_acts:
            act()
        bar.draw()
        assert terminal.getvalue() == ""
    assert last_acts == acts


def test_an_error_takes_the_line_down(terminal: io.StringIO, clock: Clock) -> None:
    with pytest.raises(ValueError, match="here"), progress("sweep", total=1, now=clock) as bar:
        bar.draw()
        raise ValueError("here")
    assert screen(terminal.getvalue()) == [""]
    bar.draw()
    assert screen(terminal.getvalue()) == [""]


def test_a_stream_that_is_closed_stops_nothing(terminal: io.StringIO) -> None:
    with progress("sweep", total=1) as bar:
        terminal.close()
        bar.draw()
        bar.advance()
