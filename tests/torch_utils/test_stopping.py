"""Stop signals: the first one is a request, a second Ctrl-C an order."""

import os
import signal
import sys

import pytest

from dnnlib import failures
from dnnlib.processes import exit_status
from torch_utils.stopping import STOP_SIGNALS, ending_at_ctrl_c, stop_signals


@pytest.fixture(autouse=True)
def ctrl_c_raises():
    """A shell makes its background jobs ignore Ctrl-C."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_the_first_signal_counts(signum):
    before, told = [signal.getsignal(s) for s in STOP_SIGNALS], []
    with stop_signals(told.append) as request:
        assert request.asked == 0
        signal.raise_signal(signum)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGUSR1)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert request.asked == signum and told == [signum.name]
    assert [signal.getsignal(s) for s in STOP_SIGNALS] == before


def test_a_rank_leaves_the_second_ctrl_c_to_its_launcher(monkeypatch):
    monkeypatch.setenv(failures.LAUNCHER, f"{os.getppid()} /tmp")
    with stop_signals(lambda _: None) as request:
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
    assert request.asked == signal.SIGINT


def test_what_was_ignored_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stop_signals(lambda _: None) as request:
        signal.raise_signal(signal.SIGINT)
    assert request.asked == 0 and signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_ctrl_c_that_is_no_request_has_a_status():
    with pytest.raises(SystemExit, match=str(exit_status(signal.SIGINT))), ending_at_ctrl_c():
        signal.raise_signal(signal.SIGINT)


@pytest.mark.skipif(sys.platform != "linux", reason="numbers of Linux")
def test_exit_statuses():
    assert [exit_status(signum) for signum in STOP_SIGNALS] == [130, 143, 138]
