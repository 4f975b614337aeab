"""Ctrl-C as a request."""

import signal
import threading

import pytest

from tinkering.runs.interrupt import Interrupt


def press():
    signal.raise_signal(signal.SIGINT)


@pytest.fixture
def _own_handler():
    """A handler that is not Python's default, to see it come back."""
    before = signal.signal(signal.SIGINT, own_handler)
    yield
    signal.signal(signal.SIGINT, before)


def own_handler(number, frame):
    raise InterruptedError(number, frame)


@pytest.mark.usefixtures("_own_handler")
class TestInterrupt:
    def test_is_not_pressed_at_first(self):
        with Interrupt() as interrupt:
            assert interrupt.signal is None

    def test_the_first_is_noted_and_the_second_raises(self):
        with Interrupt() as interrupt:
            press()
            assert interrupt.signal is signal.SIGINT
            with pytest.raises(KeyboardInterrupt):
                press()

    def test_the_handler_before_comes_back(self):
        with Interrupt():
            assert signal.getsignal(signal.SIGINT) is not own_handler
        assert signal.getsignal(signal.SIGINT) is own_handler
        with pytest.raises(InterruptedError):
            press()

    def test_also_after_an_exception_that_passes_through(self):
        with pytest.raises(KeyError), Interrupt():
            raise KeyError
        assert signal.getsignal(signal.SIGINT) is own_handler

    def test_one_inside_another(self):
        with Interrupt() as outer:
            with Interrupt() as inner:
                press()
            assert (outer.signal, inner.signal) == (None, signal.SIGINT)
            press()
            assert outer.signal

    def test_in_another_thread_it_touches_nothing(self):
        seen = []

        def work():
            with Interrupt() as interrupt:
                seen.append((signal.getsignal(signal.SIGINT), interrupt.signal))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert seen == [(own_handler, None)]
        assert signal.getsignal(signal.SIGINT) is own_handler
