"""What asks a run to stop, and a terminal that is gone while it goes on."""

import errno
import io
import os
import signal
import sys

import pytest

from convspark.runs.callbacks import Signals
from convspark.runs.logs import console
from convspark.runs.progress import _make_bar


class Checkpoints:
    stopping = False

    def stop(self, requeue=False):
        self.stopping = True


def test_the_end_of_its_terminal_stops_a_run_however_often_it_is_told():
    before, checkpoints = signal.getsignal(signal.SIGHUP), Checkpoints()
    with Signals(checkpoints):
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)
    assert checkpoints.stopping and signal.getsignal(signal.SIGHUP) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_a_run_was_started_to_ignore_it_ignores(number):
    before, checkpoints = signal.signal(number, signal.SIG_IGN), Checkpoints()
    try:
        with Signals(checkpoints):
            os.kill(os.getpid(), number)
    finally:
        signal.signal(number, before)
    assert not checkpoints.stopping


class Gone(io.StringIO):
    def isatty(self):
        return True

    def write(self, *_):
        raise OSError(errno.EIO, "Input/output error")

    flush = write


def test_a_terminal_that_is_closed_ends_no_run(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Gone())
    console().print("a line")
    bar, task = _make_bar(10, 0)
    bar.start()
    bar.update(task, completed=3)
    bar.stop()
