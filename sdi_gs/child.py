# SPDX-License-Identifier: Apache-2.0
"""A run made by a program of its own, once: what tables, comparisons and sweeps are made of.

A program of its own has its own peak memory. The same run asked for again goes on where it was
stopped: a finished one is taken as it is, an unfinished one continues. Nothing is ever deleted.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from representations.files import open_own, write_bytes

from .artefacts.holder import held
from .artefacts.run_folder import RunFolder
from .config import Config, to_plain
from .errors import DIVERGED, NO_ROOM, RunFailure, UserError
from .origin import Origin, noted
from .stopping import CODES, GRACE_SECONDS, PARENT, Interrupted, Stop

PATIENCE = GRACE_SECONDS + 12.0
"""Seconds for a run to save and end whose parent was killed."""

LOOK = 0.2
"""Seconds between two looks at a child and at whether somebody has asked to stop it."""


class NotRun(RunFailure):
    """A run that came to no end: killed, out of disk, or impossible as it was asked for. It says
    nothing about its method."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code  # of the program: 2 a user's mistake, below 0 the signal that killed it

    @property
    def mistake(self) -> bool:
        """Whether it cannot work as it was asked for, however often it is tried."""
        return self.code == UserError.exit_code

    @property
    def no_room(self) -> bool:
        """Whether this machine refused it, and another may not: its disk, or its card."""
        return self.code == NO_ROOM


class Diverged(RunFailure):
    """A run that ended because its numbers stopped being numbers, which is a result."""


@dataclass(frozen=True)
class Orders:
    """How a child is made, and who may stop it."""

    verb: str = "study"  # what the parent does, for whoever finds the folder held
    again: str = "the same command goes on from here"  # what an interrupted one is told
    # Variables of the environment besides the parent's own, such as threads and cards.
    environment: Mapping[str, str] = field(default_factory=dict)
    # The number of the signal with which somebody asks the child to stop, None while nobody does;
    # no such function: only a signal to this process stops it.
    asked: Callable[[], int | None] | None = None
    origin: Origin | None = None  # what the settings of the run are made of


def obtain(path: Path, config: Config, orders: Orders, say: Callable[[str], None]) -> RunFolder:
    """The finished run of ``config`` in the folder ``path``, made or continued if need be. Beside
    it lie its settings (.yaml) and what it said (.log).

    Raises:
        UserError: another run has that folder, or another process makes it (Held).
        NotRun: it began and came to no end, or could not begin.
        Diverged: its numbers stopped being numbers.
        Interrupted: somebody asked it or us to stop; the run has saved its state.
    """
    run = RunFolder(path)
    if path.is_dir():
        with held(path, orders.verb, PATIENCE):
            pass  # a run whose parent was killed has had the time to save and end
    if not run.config_file.is_file():
        settings = beside(path, "yaml")
        _require_no_link(settings)
        write_bytes(settings, noted(config, orders.origin).encode())
        call(run, ["generate", "--config", str(settings), "--out", str(path)], orders)
        return run
    _require_same(run, config)
    if run.summary_file.is_file():
        say("  finished before")
    else:
        say("  goes on where it was stopped")
        call(run, ["resume", str(path)], orders)
    return run


def beside(path: Path, ending: str) -> Path:
    """A file that belongs to the run in the folder ``path`` and lies beside it."""
    return path.with_name(f"{path.name}.{ending}")


def _require_same(run: RunFolder, config: Config) -> None:
    """Refuse a run of other settings. The threads that a run noted are its own, not a setting."""
    there = run.config()
    if config.threads is None:
        there = there.model_copy(update={"threads": None})
    if to_plain(there) != to_plain(config):
        raise UserError(
            f"{run.path} is there already, with other settings than this study's: name another "
            "folder with --out, or ask for the settings of the first time"
        )


def _require_no_link(path: Path) -> None:
    if path.is_symlink():
        raise UserError(
            f"{path} is a symbolic link, and what it points to is not ours to write: move the "
            "link away, or name another folder with --out"
        )


def call(run: RunFolder, verb: list[str], orders: Orders) -> None:
    """Run a verb of the command line with its words in the log beside the folder of ``run``."""
    log = beside(run.path, "log")
    _require_no_link(log)
    with os.fdopen(open_own(log, "w"), "w", encoding="utf-8") as stream:
        child = subprocess.Popen(
            [sys.executable, "-m", "sdi_gs", *verb],
            stdout=stream,
            stderr=subprocess.STDOUT,
            # Signals are passed on, once each; a terminal's Ctrl-C must not come twice.
            start_new_session=True,
            env={**os.environ, **orders.environment, PARENT: str(os.getpid())},
        )
        code = _wait(child, run.path.name, orders)
    if code == 0:
        return
    if code in CODES:  # somebody stopped the run alone, which says nothing about its method
        raise _stopped(run.path.name, orders, code - 128)
    last = _last_line(log)
    if code == DIVERGED:
        raise Diverged(f"{last} (all of it: {log})")
    raise NotRun(f"{_death(code) if code < 0 else last} (all of it: {log})", code)


def _wait(child: subprocess.Popen[bytes], name: str, orders: Orders) -> int:
    """The exit code of ``child``. A stop is passed on to it, and waits until it has saved; a second
    Ctrl-C waits for nothing."""
    try:
        while True:
            try:
                return child.wait(LOOK if orders.asked else None)
            except subprocess.TimeoutExpired:
                number = orders.asked() if orders.asked else None
                if number is not None:
                    raise Stop(number) from None
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, Stop) else signal.SIGINT
        try:
            child.terminate()
            child.wait()
        finally:
            child.kill()
        raise _stopped(name, orders, number) from None


def _stopped(name: str, orders: Orders, number: int) -> Interrupted:
    return Interrupted(f"stopped in {name}; finished runs are kept. {orders.again}", number)


def _death(code: int) -> str:
    """What a negative exit code says."""
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    why = ", as the system does when memory runs out" if name == "SIGKILL" else ""
    return f"killed by {name}{why}"


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    said = [line for line in lines if line.startswith("sdi-gs: ")]
    return (said or lines or ["no message"])[-1].removeprefix("sdi-gs: ")
