# SPDX-License-Identifier: Apache-2.0
"""Programs of ours that others start, without the seconds that a new process imports for."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, TextIO
from unittest import mock

import pytest

from sdi_gs import child, stopping
from sdi_gs.cli.main import main
from sdi_gs.stopping import PARENT


def started_by(monkeypatch: pytest.MonkeyPatch, popen: type[Here | Forked]) -> None:
    """Whoever makes a run by a program (``sdi_gs.child``) gets that in place of
    ``subprocess.Popen``; everybody else starts what he likes."""
    monkeypatch.setattr(
        child, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": popen})
    )


class Here:
    """Stands in for ``subprocess.Popen`` where ``python -m sdi_gs`` is started: the program runs
    to its end in this process, in the environment and with the streams that it was given."""

    def __init__(
        self, words: Sequence[str], stdout: TextIO, env: Mapping[str, str], **_: Any
    ) -> None:
        assert list(words[:3]) == [sys.executable, "-m", "sdi_gs"]
        assert env[PARENT] == str(os.getpid())
        # Whoever is followed is still the parent of this process.
        around = {**env, PARENT: str(os.getppid())}
        with (
            contextlib.redirect_stdout(stdout),
            contextlib.redirect_stderr(stdout),
            mock.patch.dict(os.environ, around, clear=True),
        ):
            self.returncode = main(list(words[3:]))

    def wait(self, seconds: float | None = None) -> int:
        return self.returncode


class Forked:
    """Stands in for ``subprocess.Popen`` where ``python -m sdi_gs`` is started: a process of its
    own, which is a fork of this one and has imported everything. It starts others in the same way,
    hears signals and is killed as a program is."""

    def __init__(
        self, words: Sequence[str], stdout: TextIO, env: Mapping[str, str], **more: Any
    ) -> None:
        assert list(words[:3]) == [sys.executable, "-m", "sdi_gs"]
        self.args = words
        self.returncode: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid:
            return
        code = 70
        try:
            if more.get("start_new_session"):
                os.setsid()
            for stream in (1, 2):
                os.dup2(stdout.fileno(), stream)
            sys.stdout, sys.stderr = (os.fdopen(os.dup(stream), "w") for stream in (1, 2))
            sys.argv = ["sdi-gs"]
            os.environ.clear()
            os.environ.update(env)
            for number in stopping.SIGNALS:  # as in a new process
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            stopping._outermost = None
            code = main(list(words[3:]))
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)

    def poll(self) -> int | None:
        if self.returncode is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            if found:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        until = time.monotonic() + (float("inf") if timeout is None else timeout)
        while (code := self.poll()) is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
