# SPDX-License-Identifier: Apache-2.0
"""The command line in children that take milliseconds to start: forks of a process that has loaded
everything. What a child does to itself (a kill at its 17th write, a limit on a file) is a hook."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

LIMIT = 120.0  # seconds after which a child is stuck
STUCK = "stuck"

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink",
           "os.truncate", "os.chmod")  # fmt: skip
"""Audit events that change a folder, with the path as their first argument."""


class Ended(NamedTuple):
    code: int  # negative: the signal
    said: str  # both streams


def load() -> None:
    """Import what a run needs, so that children have it already."""
    import torch

    import sdi_gs.cli.main
    import sdi_gs.convert
    import sdi_gs.experiments.tables
    import sdi_gs.pages.run  # noqa: F401

    torch.set_num_threads(1)


def warm(words: Sequence[object], log: Path) -> int:
    """Run a verb in this process, so that its forks have whatever a run imports and compiles only
    when it gets there; the exit code."""
    from sdi_gs.cli.main import main

    with log.open("w") as said, redirect_stdout(said), redirect_stderr(said):
        return main([str(word) for word in words])


def start(words: Sequence[object], log: Path, hook: Callable[[], None] | None = None) -> int:
    """Run a verb in a fork with its words in ``log``; the process number."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.setsid()
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.argv = ["sdi-gs"]
        if hook is not None:
            hook()
        from sdi_gs.cli.main import main

        code = main([str(word) for word in words])
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def wait(pid: int, limit: float = LIMIT) -> int | None:
    """The exit code, negative for a signal; None for a child that had to be killed."""
    until = time.monotonic() + limit
    while time.monotonic() < until:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def run(words: Sequence[object], log: Path, hook: Callable[[], None] | None = None) -> Ended:
    """Run a verb to its end. TimeoutError for one that is stuck."""
    code = wait(start(words, log, hook))
    said = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    if code is None:
        raise TimeoutError(f"{' '.join(map(str, words))} is {STUCK}\n{said}")
    return Ended(code, said)


def changing(event: str, arguments: tuple[Any, ...], below: str) -> bool:
    """Whether an audit event changes something below that folder."""
    if event == "open":
        path, mode, flags = arguments
        writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) or "w" in (mode or "")
    else:
        path, writes = arguments[0] if arguments else None, event in CHANGES
    return writes and isinstance(path, str | os.PathLike) and os.fspath(path).startswith(below)


def die_at(number: int, below: Path) -> Callable[[], None]:
    """A hook: SIGKILL just before the change of that number, from 0."""

    def hook() -> None:
        seen = 0

        def watch(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            if changing(event, arguments, str(below)):
                if seen == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                seen += 1

        sys.addaudithook(watch)

    return hook


def die_after(file: Path, below: Path) -> Callable[[], None]:
    """A hook: SIGKILL just before the first change below that folder once there is the file."""

    def hook() -> None:
        def watch(event: str, arguments: tuple[Any, ...]) -> None:
            if changing(event, arguments, str(below)) and file.exists():
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)

    return hook


def count_changes(below: Path, report: Path) -> Callable[[], None]:
    """A hook: write how many changes there were into the file ``report``, as they come."""

    def hook() -> None:
        handle = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

        def watch(event: str, arguments: tuple[Any, ...]) -> None:
            if changing(event, arguments, str(below)):
                os.write(handle, b".")

        sys.addaudithook(watch)

    return hook


def die_beyond(size: int) -> Callable[[], None]:
    """A hook: the write that makes a file longer than ``size`` bytes goes through in part, and is
    the last thing that the process does."""

    def hook() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return hook


def empty(folder: Path) -> Path:
    """The folder, new and empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
