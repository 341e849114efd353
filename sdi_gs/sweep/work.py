# SPDX-License-Identifier: Apache-2.0
"""The worker: claim a line, make or continue its run as a program of its own, write down what
became of it, and so on until nothing is left.

Any number of workers share a sweep, on any number of machines that see its folder; none knows of
another. Each may be killed at any moment.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ..artefacts.holder import Held
from ..child import Diverged, NotRun, Orders, obtain
from ..errors import RunFailure, UserError, command, first_line, refused
from ..families import made_of
from ..stopping import Interrupted
from . import states
from .manifest import Line, Manifest, Sweep
from .plan import configuration
from .seek import Claimed, Seeker
from .states import Overtaken, State
from .worker import Sign

HELD_AGAIN = 5.0
"""Seconds until a line is tried again whose run another process holds."""

CRASHES = 5
"""Runs of different lines that crash one after the other before a worker takes its machine for the
reason and leaves, so that it does not spend the tries of every line."""


class NoRoom(RunFailure):
    """This machine refused a run, and would refuse the next one: its disk or its card is full."""


class Stopped(RunFailure):
    """The sweep was asked to stop."""


class Unfit(RunFailure):
    """On this machine everything crashes."""


class Worker:
    """A worker, within ``with``. Its methods may be called in several threads at once: they share
    its sign of life, and never a line."""

    def __init__(self, sweep: Sweep, say: Callable[[str], None]) -> None:
        self.sweep, self.say = sweep, say
        self.sign = Sign(sweep, self._look)
        self.seeker = Seeker(sweep, self.sign.path, lambda: self._signal is not None)
        self.ledger = self.seeker.ledger
        self.tally: Counter[str] = Counter()  # how the lines ended that were ours
        self._signal: int | None = None
        self._marked = False  # it was the sweep that was asked to stop
        self._lost: set[Claimed] = set()
        self._crashed: list[str] = []  # digests, since the last run that ended well
        self._lock = threading.Lock()

    def __enter__(self) -> Worker:
        self.sweep.require_version()
        self.require_wanted()
        try:
            self.sign.begin()
        except OSError as error:
            raise NoRoom(
                f"{refused(error, self.sign.path)}; nothing was claimed: after making room, the "
                "same command works"
            ) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.sign.end()

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Have every run of ours save and end, and claim no more; heard within a second."""
        self._signal = self._signal or number

    def stopping(self) -> int | None:
        """The signal that we were asked to stop with; None while we were not."""
        return self._signal

    def require_wanted(self) -> None:
        """Stopped where somebody has stopped the sweep."""
        if self.sweep.stop_mark.exists():
            raise Stopped(self._wish())

    def _wish(self) -> str:
        again = command("sweep", "stop", self.sweep.path, "--lift")
        return f"{self.sweep.path} was asked to stop; to go on: {again}"

    def _look(self) -> None:
        """At every beat: whether somebody wants us to stop, or has taken a line over."""
        if self.sweep.stop_mark.exists():
            self._marked = True
            self.stop()
        for claimed in self.seeker.mine():
            if self.ledger.overtaken(claimed.line, claimed.number):
                self._lost.add(claimed)

    # -- what there is to do

    def manifest(self) -> Manifest:
        """As it is now: lines may have been added."""
        return self.seeker.known().manifest

    def work(self, environment: Mapping[str, str] | None = None) -> None:
        """Make runs until none is left that this worker could make.

        Raises:
            Interrupted: we were asked to stop; what was ours is put back.
            NoRoom: this machine has no room for a run.
        """
        while self._signal is None:
            claimed = self._claimed(self.seeker.next)
            if claimed is None:
                break
            self.do(claimed, environment)
        if self._signal is not None:
            raise self._stopped()

    def _stopped(self) -> RunFailure:
        told = "stopped; the runs have saved their state and are put back"
        if self._marked:
            return Stopped(f"{told}, since {self._wish()}")
        return Interrupted(told, self._signal or signal.SIGTERM)

    def one(self, line: Line, environment: Mapping[str, str] | None = None) -> State:
        """See one line to its end, whoever makes it: how it ended."""
        while self._signal is None:
            claimed = self._claimed(lambda: self.seeker.take(line))
            if claimed is not None:
                self.do(claimed, environment)
                continue
            state = self.ledger.state(line)
            if state.settled:
                return state
            self.seeker.pause()
        raise self._stopped()

    def _claimed(self, claim: Callable[[], Claimed | None]) -> Claimed | None:
        try:
            return claim()
        except OSError as error:
            raise self._no_room(refused(error, self.sweep.state)) from error

    # -- doing it

    def do(self, claimed: Claimed, environment: Mapping[str, str] | None = None) -> str:
        """Make the run of a line that is ours, and write down what became of it: that word."""
        line = claimed.line
        began = time.monotonic()
        try:
            if claimed.lost > states.LOST:
                end, why = states.FAILED, f"{claimed.lost} workers died while they made it"
            else:
                end, why = self._made(claimed, environment)
            told: dict[str, Any] = {
                "why": why, "seconds": round(time.monotonic() - began, 2),
                "host": self.sign.who.host, "version": self.sign.who.version,
            }  # fmt: skip
            self.ledger.end(line, claimed.number, end, told)
        except Overtaken as error:
            self.say(str(error))
            end, why = "overtaken", str(error)
        except OSError as error:
            raise self._no_room(f"{refused(error, self.ledger.folder(line.block))}") from error
        finally:
            self.seeker.let_go(claimed)
            self._lost.discard(claimed)
        with self._lock:
            self.tally[end] += 1
        self.say(f"{line.name}: {end}" + (f": {why.splitlines()[0]}" if why else ""))
        if end == states.BACK and why.startswith(_FULL):
            raise self._no_room(why.removeprefix(_FULL))
        self._count_crashes(line, end)
        return end

    def _count_crashes(self, line: Line, end: str) -> None:
        """Unfit where one line after the other crashes."""
        with self._lock:
            if end in (states.DONE, states.DIVERGED):
                self._crashed.clear()
            elif end == states.CRASH and line.digest not in self._crashed:
                self._crashed.append(line.digest)
                self.seeker.try_last(line)
            if len(self._crashed) >= CRASHES:
                raise Unfit(
                    f"{len(self._crashed)} different runs have crashed on {self.sign.who.host} one "
                    "after the other, so the machine may be the reason, and this worker leaves; "
                    f"the last log is {log_of(self.sweep, line)}"
                )

    def _made(self, claimed: Claimed, environment: Mapping[str, str] | None) -> tuple[str, str]:
        """How the run of a line ended, and why where it is no finished one."""
        line, path = claimed.line, self.sweep.run(claimed.line)

        def asked() -> int | None:
            return signal.SIGTERM if claimed in self._lost else self._signal

        try:
            config = configuration(line)
            origin = made_of(line.family, line.representation, line.method)
            orders = Orders("sweep", "It is put back.", environment or {}, asked, origin)
            self.sweep.manifest.stat()  # nothing comes back of a sweep that was deleted
            path.parent.mkdir(parents=True, exist_ok=True)
            self.say(f"{line.name}: {line.steps} steps")
            obtain(path, config, orders, lambda told: self.say(f"{line.name}:{told[1:]}"))
        except Interrupted as error:
            return states.BACK, first_line(error)
        except Diverged as error:
            return states.DIVERGED, str(error)
        except NotRun as error:
            if error.no_room:
                return states.BACK, _FULL + str(error)
            return states.FAILED if error.mistake else states.CRASH, str(error)
        except Held as error:
            self.seeker.not_before(line, HELD_AGAIN)
            return states.BACK, first_line(error)
        except UserError as error:
            return states.FAILED, first_line(error)
        except KeyboardInterrupt:
            self.stop(signal.SIGINT)
            return states.BACK, "stopped"
        except OSError as error:
            return states.BACK, _FULL + refused(error, path)
        return states.DONE, ""

    def _no_room(self, why: str) -> NoRoom:
        where = self.sign.who.host
        if not self.sweep.manifest.exists():
            return NoRoom(
                f"{self.sweep.path} is gone, or not to be seen any more from {where}: nothing more "
                "can be written there"
            )
        return NoRoom(
            f"{where} has no room for this sweep and leaves it; what it had is put back, and other "
            f"workers go on: {why}"
        )


_FULL = "no room: "


def part(lines: Sequence[Line], index: int, of: int | None) -> list[Line]:
    """The lines of one task of an array: line ``index`` alone, or with ``of`` every ``of``-th from
    there. UserError for an index beyond the last line."""
    if index < 0 or index >= (len(lines) if of is None else of):
        most = (len(lines) if of is None else of) - 1
        raise UserError(f"index={index}: allowed are 0 to {most}")
    return [lines[index]] if of is None else list(lines[index::of])


def log_of(sweep: Sweep, line: Line) -> Path:
    """What the run of a line said."""
    return sweep.run(line).with_name(f"{line.name}.log")
