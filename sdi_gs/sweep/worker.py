# SPDX-License-Identifier: Apache-2.0
"""A worker's sign of life, and how another one tells that it is dead.

The sign is a small file of the worker's own. Its time of modification is a counter: the worker
moves it on, and whoever watches sees whether it *changes*, by a clock of their own. What the clocks
of two machines say is never compared, so that one which is an hour off does no harm. Moving it
takes no room, so that a full disk kills nobody. On the same machine a dead worker is known by its
process, at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from representations.files import alive, machine, started

from .manifest import Sweep, version

BEAT = 10.0  # seconds between two signs of life
SILENCE = 120.0  # seconds without a change, watched by the observer, after which a worker is dead

_SECOND = 10**9  # ns; file systems keep whole seconds, or two of them


@dataclass(frozen=True)
class Who:
    """What a worker says of itself."""

    token: str  # of this worker alone, and the name of its sign
    host: str
    machine: str  # see representations.files.machine
    pid: int
    started: str  # of the process, in the system's words
    version: str  # of sdi-gs

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def signs(sweep: Sweep) -> Path:
    """The folder of all signs of life."""
    return sweep.state / "workers"


class Sign:
    """Our own sign of life, from making it to :meth:`end`."""

    def __init__(self, sweep: Sweep, each_beat: Callable[[], None]) -> None:
        self.who = Who(secrets.token_hex(8), platform.node(), machine(), os.getpid(),
                       started(os.getpid()), version())  # fmt: skip
        self.path = signs(sweep) / f"{self.who.token}.json"
        self._each_beat = each_beat
        self._manifest = sweep.manifest
        self._count = time.time_ns()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beats, daemon=True, name="sdi-gs sweep")

    def begin(self) -> None:
        """OSError where it cannot be written."""
        self._write()
        self._thread.start()

    def end(self) -> None:
        self._over.set()
        with contextlib.suppress(OSError):
            self.path.unlink()

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(asdict(self.who), stream)

    def _beats(self) -> None:
        while not self._over.wait(BEAT):
            with contextlib.suppress(OSError):
                self.beat()
            self._each_beat()

    def beat(self) -> None:
        """Move the counter on, by two seconds at least, which every file system can hold."""
        self._count = max(time.time_ns(), self._count + 2 * _SECOND)
        try:
            os.utime(self.path, ns=(self._count, self._count))
        except FileNotFoundError:  # somebody has cleared it away, and we live
            if self._manifest.exists() and not self._over.is_set():
                self._write()


def read_claim(path: Path) -> Who | None:
    """Who made a claim; None where the file does not say."""
    try:
        found = Who(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    words = (found.token, found.host, found.machine, found.started, found.version)
    named = isinstance(found.pid, int) and all(isinstance(word, str) for word in words)
    return found if named else None


class _Seen(NamedTuple):
    """What an observer knows of a claim's worker."""

    counter: int | None
    since: float  # by the observer's clock
    moved: bool  # whether it was seen to change


class Watch:
    """Which of the others live, as far as this observer has seen."""

    def __init__(self, sweep: Sweep, now: Callable[[], float] = time.monotonic) -> None:
        self._signs = signs(sweep)
        self._now = now
        self._seen: dict[Path, _Seen] = {}

    def dead(self, claim: Path) -> bool | None:
        """Whether the worker of a claim is dead: None where that takes more watching."""
        who = read_claim(claim)
        if who is not None and who.machine == machine():
            return not alive(who.pid, who.started)
        counter, now = self._counter(claim, who), self._now()
        before = self._seen.get(claim)
        if before is None or before.counter != counter:
            self._seen[claim] = _Seen(counter, now, before is not None)
            return None if before is None else False
        if now - before.since >= SILENCE:
            return True
        return False if before.moved else None

    def _counter(self, claim: Path, who: Who | None) -> int | None:
        """None where there is no sign: it has left, or somebody has cleared it away."""
        sign = claim if who is None else self._signs / f"{who.token}.json"
        try:
            return sign.stat().st_mtime_ns
        except OSError:
            return None
