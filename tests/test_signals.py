"""How a process ends that is asked to: the flag and the handlers in a library, and what a guarded script does."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from jax_cifar.signals import StopRequest

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def usual_handlers():
    """Whatever started the tests may have signals ignored, as `nohup` does."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"])
def test_signal_sets_the_flag_and_nothing_else(name):
    with pytest.raises(ZeroDivisionError), StopRequest() as stop:
        assert stop.signal is None
        signal.raise_signal(signal.Signals[name])
        assert stop.signal == name
        raise ZeroDivisionError  # answered: a signal is not acted upon twice


def test_second_ctrl_c_raises_at_once_and_a_second_sigterm_does_not():
    for first in (signal.SIGINT, signal.SIGTERM):
        with pytest.raises(KeyboardInterrupt), StopRequest() as stop:
            signal.raise_signal(first)
            signal.raise_signal(signal.SIGTERM)
            assert stop.signal == first.name
            signal.raise_signal(signal.SIGINT)
        assert stop.signal == first.name


def test_a_signal_that_nobody_answered_is_not_lost():
    with pytest.raises(KeyboardInterrupt), StopRequest():
        signal.raise_signal(signal.SIGINT)


def test_handlers_are_put_back_even_after_an_error():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    with pytest.raises(ZeroDivisionError), StopRequest():
        assert signal.getsignal(signal.SIGTERM) != before[signal.SIGTERM]
        raise ZeroDivisionError
    assert {number: signal.getsignal(number) for number in before} == before


def test_what_is_ignored_and_what_a_program_uses_itself_is_left_alone():
    told = []
    before = [signal.signal(signal.SIGHUP, signal.SIG_IGN), signal.signal(signal.SIGUSR1, lambda *_: told.append(1))]
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGUSR1)
            assert (stop.signal, told) == (None, [1])
    finally:
        signal.signal(signal.SIGHUP, before[0])
        signal.signal(signal.SIGUSR1, before[1])


def test_inert_outside_the_main_thread():
    seen = []

    def enter():
        with StopRequest() as stop:
            seen.append((signal.getsignal(signal.SIGTERM), stop.signal))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [(before, None)]


HEAD = """
import signal, sys, time
for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):
    usual = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
    signal.signal(signal.Signals[name], signal.SIG_IGN if name == "{ignored}" else usual)
from jax_cifar.signals import StopRequest, at_end_say, guard
guard()
from pathlib import Path
from jax_cifar.cli import run
from jax_cifar.errors import Interrupted
from jax_cifar.files import atomic_write

def send(name, wait=5.0):
    signal.raise_signal(signal.Signals[name])
    try:
        time.sleep(wait)  # deaf to an exception, as what catches KeyboardInterrupt is
    except BaseException:
        time.sleep(wait)

def until(stop):
    while stop.signal is None:
        time.sleep(0.001)
"""


def main_of(body, ignored=""):
    """The code of a small guarded script; `body` is what its `main` does."""
    lines = "\n    ".join(body.strip().splitlines())
    return f"{HEAD.replace('{ignored}', ignored)}\ndef main(arguments):\n    {lines}\n\nrun(main)\n"


def script(body, arguments=(), ignored="", **options):
    """Exit code, lines on standard output and on stderr, of a small guarded script."""
    code = main_of(body, ignored)
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, text=True, timeout=30, check=False, **pipes
    )
    return done.returncode, *((text or "").splitlines() for text in (done.stdout, done.stderr))


@pytest.mark.parametrize("name", ["SIGINT", "SIGUSR1"])
def test_a_script_with_nothing_to_save_ends_at_once_and_leaves_no_half_written_file(tmp_path, name):
    body = f"""
with atomic_write(Path(arguments[0]) / "half"):
    send("{name}")
"""
    assert script(body, [tmp_path]) == (75, [], [f"Stopped by {name}. There was nothing to save."])
    assert os.listdir(tmp_path) == []


def test_a_script_that_has_to_save_is_asked_first_told_what_it_waits_for_and_ended_by_the_third():
    body = """
try:
    with StopRequest() as stop:
        send(arguments[0], 0)
        until(stop)
        stop.waits_for, stop.kept = "the state to be written", "Step 5 is kept."
        if len(arguments) > 1:
            send(arguments[1], 0.3)
            send(arguments[2])
        raise Interrupted("Stopped by " + stop.signal)
finally:
    print("the end")
"""
    first = "SIGTERM: stopping after the update under way, then saving. A third signal ends at once, unsaved."
    assert script(body, ["SIGTERM"]) == (75, ["the end"], [first, "Stopped by SIGTERM"])
    assert script(body, ["SIGTERM", "SIGINT", "SIGTERM"]) == (
        75,
        [],
        [
            first,
            "SIGINT: still waiting for the state to be written. One more signal ends at once, unsaved.",
            "Stopped by SIGTERM. Step 5 is kept.",
        ],
    )


def test_a_signal_that_comes_after_the_last_look_ends_the_script_with_what_is_saved():
    body = """
with StopRequest() as stop:
    at_end_say("All is saved.")
    send("SIGUSR1", 0)
    until(stop)
print("never")
"""
    code, out, err = script(body)
    assert (code, out, err[-1]) == (75, [], "Stopped by SIGUSR1. All is saved.")


def test_what_the_parent_has_ignored_stays_ignored():
    assert script('send("SIGHUP", 0.1); print("on")', ignored="SIGHUP") == (0, ["on"], [])


def test_a_child_of_a_guarded_script_is_ended_by_its_own_signals():
    body = """
import os, warnings
warnings.simplefilter("ignore")  # Python 3.12 on warns of a fork beside a thread
child = os.fork()
if child == 0:
    send("SIGTERM")
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert script(body) == (0, ["-15"], [])


def test_a_process_that_a_script_started_does_not_outlive_it():
    body = """
import subprocess
from jax_cifar.signals import ending_with_us
with subprocess.Popen(["sleep", "60"]) as process, ending_with_us(process):
    send("SIGTERM")
"""
    # It has the same standard output, whose end comes with the last process that could write to it.
    assert script(body) == (75, [], ["Stopped by SIGTERM. There was nothing to save."])


def test_a_reader_that_goes_away_or_a_full_disk_changes_neither_the_work_nor_the_exit_code(tmp_path):
    body = """
for i in range(3):
    print(i, flush=True)
print("unflushed")
Path(arguments[0]).write_text("done")
sys.exit(3) if len(arguments) > 1 else None
"""
    reading, writing = os.pipe()
    os.close(reading)
    gone = "The output cannot be written any more (Broken pipe); the work goes on without it."
    assert script(body, [tmp_path / "a"], stdout=writing) == (0, [], [gone])
    assert script(body, [tmp_path / "b"], stdout=writing, stderr=writing) == (0, [], [])
    assert script(body, [tmp_path / "d", 3], stdout=writing) == (3, [], [gone])
    os.close(writing)
    with open("/dev/full", "w") as full:
        code, _, (line,) = script(body, [tmp_path / "c"], stdout=full)
    assert (code, line) == (0, gone.replace("Broken pipe", "No space left on device"))
    assert {path.name for path in tmp_path.iterdir()} == set("abcd")


def test_a_script_works_without_standard_streams_and_nothing_else_takes_their_places(tmp_path):
    body = """
print(1); print(2, file=sys.stderr)
import os
nowhere = [os.path.sameopenfile(i, os.open(os.devnull, os.O_RDONLY)) for i in range(3)]
Path(arguments[0]).write_text(str(nowhere))
"""
    code = main_of(body)
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", code, tmp_path / "a"]
    assert subprocess.run(command, cwd=ROOT, timeout=30, check=False).returncode == 0
    assert (tmp_path / "a").read_text() == str([True] * 3)
