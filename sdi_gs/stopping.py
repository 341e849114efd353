# SPDX-License-Identifier: Apache-2.0
"""Being asked to stop: by Ctrl-C, a scheduler, a closed terminal, or the death of a parent.

Whatever asks, the answer is the same. Where the state is whole only between two steps, the step is
finished first; a step that takes longer than the grace time is given up. Everywhere else the work
ends at once. The exit code is 128 and the signal's number, as shells expect.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from .errors import RunFailure

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR2")
SIGNALS = tuple(signal.Signals[name] for name in NAMES if name in signal.Signals.__members__)
CODES = frozenset(128 + number for number in SIGNALS)
"""Exit codes of a program that was asked to stop: 130, 143, 129, 140 on Linux."""

GRACE = "SDI_GS_GRACE"
"""The environment variable that holds the grace time in seconds."""
GRACE_SECONDS = 8.0  # docker kills after 10, SLURM and Kubernetes after 30
LAST_WORD = 5.0  # seconds after the grace time until a process that hears nothing is ended

PARENT = "SDI_GS_PARENT"
"""The environment variable with the process that this one stops with."""
LOOK_EVERY = 0.5  # seconds between two looks at whether the parent lives


class Stop(KeyboardInterrupt):
    """Raised where the work ends at once."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__()
        self.number = number


class Interrupted(RunFailure):
    """The work was stopped from outside; the message says how to go on."""

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class Stopping:
    """Whether somebody has asked, and whether the work may finish its step first."""

    def __init__(self) -> None:
        self.number: int | None = None  # of the first signal that came
        self._steps = False
        self._watchdog: threading.Timer | None = None

    def asked(self) -> bool:
        """Whether to stop after this step."""
        return self.number is not None

    @property
    def why(self) -> int:
        """The signal that an exit code speaks of."""
        return signal.SIGINT if self.number is None else self.number

    @contextmanager
    def after_the_step(self) -> Iterator[None]:
        """Within, the state is whole between two steps only."""
        self._steps = True
        try:
            yield
        finally:
            self._steps = False
            self._end_grace()

    def hear(self, number: int, _frame: FrameType | None) -> None:
        """The handler of all signals of :data:`SIGNALS`."""
        again, self.number = self.asked(), self.number or number
        if again and number != signal.SIGINT:
            return  # schedulers tell every process of a job, some of them twice
        if again or not self._steps:
            self._end_grace()
            raise Stop(self.number)
        self._begin_grace()

    def _begin_grace(self) -> None:
        grace = grace_seconds()
        if hasattr(signal, "setitimer"):
            signal.signal(signal.SIGALRM, self._give_up)
            signal.setitimer(signal.ITIMER_REAL, grace)
        self._watchdog = threading.Timer(grace + LAST_WORD, _end, (128 + self.why,))
        self._watchdog.daemon = True
        self._watchdog.start()

    def _end_grace(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
            if hasattr(signal, "setitimer"):
                signal.setitimer(signal.ITIMER_REAL, 0.0)
                signal.signal(signal.SIGALRM, signal.SIG_DFL)

    def _give_up(self, _number: int, _frame: FrameType | None) -> None:
        if self._steps:
            raise Stop(self.why)


def grace_seconds() -> float:
    """How long a step may take after a signal."""
    try:
        return max(0.01, float(os.environ.get(GRACE, GRACE_SECONDS)))
    except ValueError:
        return GRACE_SECONDS


def _end(code: int) -> None:
    """For a step that hears nothing, deep in a library: every file is whole, so that an end here
    loses no more than the step."""
    sys.stderr.write("sdi-gs: stopped; the step did not end in time, its checkpoint is the last\n")
    sys.stderr.flush()
    os._exit(code)


_outermost: Stopping | None = None


@contextmanager
def stopping() -> Iterator[Stopping]:
    """Hear the signals of :data:`SIGNALS` within; a block inside another shares its state.

    A signal that the surrounding program handles itself is left to it, as is a SIGHUP that
    ``nohup`` has turned off. SIGINT is heard where it was turned off too, and so is SIGTERM by a
    run that another program of ours has started: SLURM's launchers turn it off for themselves, and
    a child inherits that. Outside the main thread, where Python hears none, nothing changes.
    """
    global _outermost
    if _outermost is not None or threading.current_thread() is not threading.main_thread():
        yield _outermost or Stopping()
        return
    stop = Stopping()
    before = {}
    heard = [signal.SIGINT, signal.SIGTERM] if PARENT in os.environ else [signal.SIGINT]
    for number in SIGNALS:
        handler = signal.getsignal(number)
        ours = handler in (signal.SIG_DFL, signal.default_int_handler)
        if ours or (number in heard and handler == signal.SIG_IGN):
            before[number] = signal.signal(number, stop.hear)
    _outermost = stop
    parent = _follow_parent()
    try:
        yield stop
    finally:
        _outermost = None
        parent.set()
        stop._end_grace()
        for number, handler in before.items():
            signal.signal(number, handler)


def _follow_parent() -> threading.Event:
    """Ask ourselves to stop when the process that wants our result is gone; set the event to end
    the watch."""
    over = threading.Event()
    parent = os.environ.get(PARENT, "")
    if parent.isdigit() and os.name == "posix":

        def look() -> None:
            while not over.wait(LOOK_EVERY):
                if os.getppid() != int(parent):
                    os.kill(os.getpid(), signal.SIGTERM)
                    return

        threading.Thread(target=look, daemon=True, name="sdi-gs parent").start()
    return over
