# SPDX-License-Identifier: Apache-2.0
"""A worker as a program of its own, which the process of an engine starts, watches and interrupts.

The engine's own process may handle signals in its own way, or turn them off; it may hold a pickled
object and no more. What makes the runs is ``sdi-gs sweep work``, as if somebody had typed it there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping

from ...child import PATIENCE
from ...errors import RunFailure
from ...stopping import CODES, PARENT

LOOK = 0.2  # seconds between two looks at the program


class Program:
    """A worker of the sweep in ``folder``. It ends by itself when this process dies."""

    def __init__(self, folder: str, environment: Mapping[str, str]) -> None:
        self._asked = False
        self._child = subprocess.Popen(
            [sys.executable, "-m", "sdi_gs", "sweep", "work", folder],
            # What a scheduler sends to the group of its task is passed on by us, once.
            start_new_session=True,
            env={**os.environ, **environment, PARENT: str(os.getpid())},
        )

    def wait(self) -> None:
        """Until the worker has nothing left to do. RunFailure where it ended otherwise: what it
        had to say stands on the stderr that it shares with us."""
        code = self._child.poll()
        while code is None:
            time.sleep(LOOK)
            code = self._child.poll()
        if code in CODES or (code < 0 and self._asked):
            raise RunFailure("the worker was stopped; its run is put back")
        if code != 0:
            how = f"was killed by signal {-code}" if code < 0 else f"has ended with code {code}"
            raise RunFailure(f"the worker {how}; others, or the next start, take its run over")

    def interrupt(self) -> None:
        """Have the run save its state and be put back, and wait for that. May be called by a
        handler of signals in the middle of :meth:`wait`."""
        self._asked = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._child.pid, signal.SIGTERM)
        until = time.monotonic() + PATIENCE
        while not self._over():
            if time.monotonic() > until:
                os.kill(self._child.pid, signal.SIGKILL)
                return
            time.sleep(LOOK)

    def _over(self) -> bool:
        """Not ``poll``: that does nothing while :meth:`wait` is in the middle of one."""
        if self._child.returncode is not None:
            return True
        try:
            how = os.WEXITED | os.WNOHANG | os.WNOWAIT
            return os.waitid(os.P_PID, self._child.pid, how) is not None
        except ChildProcessError:
            return True
