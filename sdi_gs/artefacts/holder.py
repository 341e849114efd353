# SPDX-License-Identifier: Apache-2.0
"""One process writes in a folder at a time.

The holder's name lies in the folder: machine, process, when that process was started, and the time
of its last heartbeat. On the same machine a dead holder is known by its process, elsewhere by a
heartbeat that has stopped: where its time says so, it is watched for as long as it takes to see
none, since the clocks of two machines may differ. Whoever only reads asks nobody.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from representations.files import alive, is_litter, machine, started, sweep, temporary_name

from ..errors import RunFailure, UserError

FILE = ".holder.json"
BEAT = 10.0  # seconds between two heartbeats
SILENCE = 90.0  # seconds without one, after which a holder on another machine is dead
WATCHED = 2.5 * BEAT  # seconds that a holder which seems dead is watched before it is
_UNNAMED = 2.0  # seconds that a file may stay without the name that belongs into it
_LOOK = 0.2  # seconds between two looks at a folder that another process holds


class Held(UserError):
    """A living process holds the folder."""


@dataclass(frozen=True)
class Holder:
    """Who writes in a folder."""

    host: str
    machine: str  # see :func:`representations.files.machine`
    pid: int
    started: str  # of the process, in the system's words
    since: str  # ISO 8601, local time
    verb: str  # what it does
    token: str  # of this hold alone

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} ({self.verb}, since {self.since})"


class Hold:
    """A folder that is ours until it is let go."""

    def __init__(self, folder: Path, holder: Holder) -> None:
        self.folder, self.holder = folder, holder
        self._over = threading.Event()
        self._beat = threading.Thread(target=self._beats, daemon=True, name="sdi-gs heartbeat")
        self._beat.start()

    def require(self) -> None:
        """RunFailure where another process took the folder, because this one was silent."""
        other = _read(self.folder / FILE)
        if other is not None and other.token != self.holder.token:
            raise RunFailure(
                f"{self.folder} was taken over by {other}, because this process gave no sign of "
                f"life for {SILENCE:.0f} seconds; nothing more is written"
            )

    def _beats(self) -> None:
        while not self._over.wait(BEAT):
            with contextlib.suppress(OSError):
                if _read(self.folder / FILE) == self.holder:
                    os.utime(self.folder / FILE)

    def _release(self) -> None:
        self._over.set()
        with contextlib.suppress(OSError):
            if _read(self.folder / FILE) == self.holder:
                (self.folder / FILE).unlink()


@contextmanager
def held(folder: Path, verb: str, patience: float = 0.0) -> Iterator[Hold]:
    """Hold the existing ``folder``; sweep what dead processes left in it half-written.

    Raises:
        Held: a living process holds it, and went on so for ``patience`` seconds.
        OSError: the folder cannot be written, or is gone.
    """
    me = Holder(
        platform.node(), machine(), os.getpid(), started(os.getpid()),
        datetime.now().isoformat(sep=" ", timespec="seconds"), verb, secrets.token_hex(8),
    )  # fmt: skip
    until = time.monotonic() + patience
    while (other := _take(folder, me)) is not None:
        if time.monotonic() >= until:
            raise Held(refusal(folder, other))
        time.sleep(_LOOK)
    hold = Hold(folder, me)
    try:
        sweep(folder, *(path for path in folder.iterdir() if path.is_dir()))
        yield hold
    finally:
        hold._release()


def refusal(folder: Path, holder: Holder) -> str:
    """What a second process is told."""
    here = holder.machine == machine()
    stop = f"stop it with 'kill {holder.pid}'" if here else f"stop it on {holder.host}"
    return (
        f"{folder} is held by {holder}, and nothing in it was touched; wait for it, {stop}, or "
        "name another folder"
    )


def is_no_content(path: Path) -> bool:
    """Whether a file in a folder is the holder's name, the draft of one by a process that would
    like to be it, or litter: nothing that anybody would miss."""
    return path.name == FILE or path.name.startswith(f".{FILE}.") or is_litter(path)


def living(folder: Path) -> Holder | None:
    """Who holds ``folder`` now."""
    holder = _read(folder / FILE)
    return holder if holder is not None and _lives(folder, holder) else None


def glance(folder: Path) -> Holder | None:
    """Who seems to hold ``folder``, for lists of many: nothing is written and nobody is watched, so
    that a holder on another machine counts for as long as its last heartbeat is not too old."""
    holder = _read(folder / FILE)
    if holder is None:
        return None
    if holder.machine == machine():
        return holder if alive(holder.pid, holder.started) else None
    beat = _last_beat(folder)
    return holder if beat is not None and time.time() - beat / 1e9 < SILENCE else None


def _take(folder: Path, me: Holder) -> Holder | None:
    """Become the holder; the other one where there is one that lives."""
    name = folder / FILE
    draft = temporary_name(name)
    with _alone(folder):
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                json.dump(asdict(me), stream)
            for _ in range(2):
                try:
                    _link(draft, name)
                except FileExistsError:
                    other = _read(name)
                    if other is None:
                        other = _unnamed(name)
                    if other is not None and _lives(folder, other):
                        return other
                    _remove_dead(name, other)
                else:
                    return None
            return _read(name)
        finally:
            draft.unlink(missing_ok=True)


def _link(draft: Path, name: Path) -> None:
    """Give ``draft`` the name, whole and only where nobody has it."""
    try:
        os.link(draft, name)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with os.fdopen(handle, "wb") as stream:
            stream.write(draft.read_bytes())


def _remove_dead(name: Path, dead: Holder | None) -> None:
    """Remove the file of a dead holder, and of no other: it is looked at again once nobody else
    can find it, for the one case in which two processes clear away the same dead one unguarded."""
    aside = temporary_name(name)
    try:
        os.rename(name, aside)
    except FileNotFoundError:
        return
    if _read(aside) != dead:
        with contextlib.suppress(OSError):
            _link(aside, name)
    aside.unlink(missing_ok=True)


def _unnamed(name: Path) -> Holder | None:
    """The holder of a file that is only just being written; None for what is no such file."""
    until = time.monotonic() + _UNNAMED
    while time.monotonic() < until:
        holder = _read(name)
        if holder is not None or not name.exists():
            return holder
        time.sleep(0.05)
    return None


def _lives(folder: Path, holder: Holder) -> bool:
    if holder.machine == machine():
        return alive(holder.pid, holder.started)
    return 0.0 <= _silence(folder) < SILENCE or _beats(folder)


def _beats(folder: Path) -> bool:
    """Whether the time of the heartbeat changes while we look, whatever it says: some file systems
    take it from the clock of the machine that writes."""
    before, until = _last_beat(folder), time.monotonic() + WATCHED
    while time.monotonic() < until:
        time.sleep(min(_LOOK, WATCHED))
        if _last_beat(folder) != before:
            return True
    return False


def _last_beat(folder: Path) -> int | None:
    try:
        return (folder / FILE).stat().st_mtime_ns
    except OSError:
        return None


def _silence(folder: Path) -> float:
    """Seconds since the last heartbeat, both times told by the clock of the file system."""
    try:
        probe = temporary_name(folder / FILE)
        probe.touch()
        try:
            now = probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)
    except OSError:
        now = time.time()
    try:
        return now - (folder / FILE).stat().st_mtime
    except OSError:
        return float("inf")


def _read(path: Path) -> Holder | None:
    """The name in a holder's file; None for no file and for one that holds something else."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        holder = Holder(**tree)
    except (OSError, ValueError, TypeError):
        return None
    words = (holder.host, holder.machine, holder.started, holder.since, holder.verb, holder.token)
    named = isinstance(holder.pid, int) and all(isinstance(word, str) for word in words)
    return holder if named else None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """While one process looks who holds a folder and takes it, another one waits: a lock of the
    system on the folder, where there is such a thing."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems have none for folders
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
