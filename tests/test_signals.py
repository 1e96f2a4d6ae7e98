"""Stop requests: the flag, the second Ctrl-C, and the handlers put back."""

import signal
import threading

import pytest

from jax_cifar.run.signals import StopRequest


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_signal_sets_the_flag_and_nothing_else(name):
    with StopRequest() as stop:
        assert stop.signal is None
        signal.raise_signal(signal.Signals[name])
        assert stop.signal == name


def test_second_ctrl_c_raises_at_once():
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stop.signal == "SIGINT"


def test_second_sigterm_does_not_interrupt_the_save_that_the_first_asked_for():
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.signal == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stop.signal == "SIGTERM"


def test_handlers_are_put_back_even_after_an_error():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with pytest.raises(ZeroDivisionError), StopRequest():
        assert signal.getsignal(signal.SIGTERM) != before[signal.SIGTERM]
        raise ZeroDivisionError
    assert {number: signal.getsignal(number) for number in before} == before


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
