# SPDX-License-Identifier: Apache-2.0
"""The worker: claim a line, make or continue its run as a program of its own, write down what
became of it, and so on until nothing is left.

Any number of workers share a sweep, on any number of machines that see its folder; none knows of
another. Each may be killed at any moment.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from ..artefacts.holder import Held
from ..child import Diverged, NotRun, Orders, obtain
from ..errors import RunFailure, UserError, command, first_line, refused
from ..stopping import Interrupted
from . import states
from .manifest import Line, Manifest, Sweep
from .plan import configuration
from .states import Ledger, Overtaken, State
from .worker import BEAT, Sign, Watch

HELD_AGAIN = 5.0
"""Seconds until a line is tried again whose run another process holds."""

CRASHES = 5
"""Runs of different lines that crash one after the other before a worker takes its machine for the
reason and leaves, so that it does not spend the tries of every line."""


class Claimed(NamedTuple):
    """A line that is ours."""

    line: Line
    number: int


class Known(NamedTuple):
    """The manifest as it was read, and its lines by block."""

    stamp: tuple[int, int]
    manifest: Manifest
    blocks: dict[str, list[Line]]


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
        self.ledger = Ledger(sweep)
        self.sign = Sign(sweep, self._look)
        self.tally: Counter[str] = Counter()  # how the lines ended that were ours
        self._watch = Watch(sweep)
        self._signal: int | None = None
        self._marked = False  # it was the sweep that was asked to stop
        self._lost: set[Claimed] = set()
        self._mine: set[Claimed] = set()
        self._later: dict[str, float] = {}  # digest: not before
        self._crashed: list[str] = []  # digests, since the last run that ended well
        self._passed: set[str] = set()  # blocks in which nothing waited
        self._known: Known | None = None
        self._lock = threading.RLock()

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
        with self._lock:
            mine = list(self._mine)
        for claimed in mine:
            if self.ledger.overtaken(*claimed):
                self._lost.add(claimed)

    # -- what there is to do

    def manifest(self) -> Manifest:
        """As it is now: lines may have been added."""
        return self._read().manifest

    def _read(self) -> Known:
        with self._lock:
            stamp = self.sweep.stamp()
            if self._known is None or self._known.stamp != stamp:
                blocks: dict[str, list[Line]] = {}
                manifest = self.sweep.read()
                for line in manifest.lines:
                    blocks.setdefault(line.block, []).append(line)
                self._known = Known(stamp, manifest, blocks)
                self._passed.clear()
            return self._known

    def work(self, environment: Mapping[str, str] | None = None) -> None:
        """Make runs until none is left that this worker could make.

        Raises:
            Interrupted: we were asked to stop; what was ours is put back.
            NoRoom: this machine has no room for a run.
        """
        while self._signal is None:
            claimed = self._next() or self._wait_for_one()
            if claimed is None:
                return
            self.do(claimed, environment)
        raise self._stopped()

    def _stopped(self) -> RunFailure:
        told = "stopped; the runs have saved their state and are put back"
        if self._marked:
            return Stopped(f"{told}, since {self._wish()}")
        return Interrupted(told, self._signal or signal.SIGTERM)

    def one(self, line: Line, environment: Mapping[str, str] | None = None) -> State:
        """See one line to its end, whoever makes it: how it ended."""
        while self._signal is None:
            claimed = self._take(line, self.ledger.state(line))
            if claimed is not None:
                self.do(claimed, environment)
                continue
            state = self.ledger.state(line)
            if state.settled:
                return state
            self._pause()
        raise self._stopped()

    def _next(self) -> Claimed | None:
        """A line that waits, claimed; None where none does. In the manifest's order, as far as
        other workers do not want the same one."""
        for block, lines in self._read().blocks.items():
            if block in self._passed:
                continue
            tried = 0
            while True:
                now = self.ledger.block(block)
                free = [line for line in lines if self._waits(now.get(line.digest, states.NEW))
                        and line.digest not in self._crashed and not self._is_later(line)
                        ]  # fmt: skip
                if not free:
                    self._passed.add(block)
                    break
                running = sum(state.word == states.RUNNING for state in now.values())
                # Many workers that reach for the first line would all but one reach in vain.
                line = random.choice(free[: 1 + running * (tried > 0) + 4**tried - 1])
                claimed = self._claim(line, now.get(line.digest, states.NEW))
                if claimed is not None:
                    return claimed
                tried = min(tried + 1, 8)
        return None

    def _is_later(self, line: Line) -> bool:
        return self._later.get(line.digest, 0.0) > time.monotonic()

    @staticmethod
    def _waits(state: State) -> bool:
        return state.word == states.WAITING

    def _claim(self, line: Line, state: State) -> Claimed | None:
        claimed = Claimed(line, state.claim + 1)
        if not self.ledger.claim(line, claimed.number, self.sign.path):
            return None
        with self._lock:
            self._mine.add(claimed)
        return claimed

    def _wait_for_one(self) -> Claimed | None:
        """A line of a worker that has died, or that another has put back, or that waits for a
        folder to be let go; None once all lines are settled or in living hands."""
        pause = 0.5
        self._passed.clear()
        while self._signal is None:
            busy = False
            for block, lines in self._read().blocks.items():
                now = self.ledger.block(block)
                for line in lines:
                    state = now.get(line.digest, states.NEW)
                    if state.settled or self._ours(line, state):
                        continue
                    claimed = self._take(line, state)
                    if claimed is not None:
                        return claimed
                    waits = self._waits(state)
                    busy = busy or waits or self._dead(line, state) is None
            if not busy:
                return None
            self._pause(pause)
            pause *= 1.5  # many may wait here, and each look is a listing of every block
        return None

    def _ours(self, line: Line, state: State) -> bool:
        with self._lock:
            return Claimed(line, state.claim) in self._mine

    def _take(self, line: Line, state: State) -> Claimed | None:
        """Claim a line that waits, or whose worker is dead."""
        if self._waits(state):
            return None if self._is_later(line) else self._claim(line, state)
        if state.settled or self._ours(line, state) or not self._dead(line, state):
            return None
        return self._claim(line, state)

    def _dead(self, line: Line, state: State) -> bool | None:
        return self._watch.dead(self.ledger.file(line, state.claim))

    def _pause(self, seconds: float = 1.0) -> None:
        until = time.monotonic() + min(seconds, BEAT)
        while self._signal is None and time.monotonic() < until:
            time.sleep(0.1)

    # -- doing it

    def do(self, claimed: Claimed, environment: Mapping[str, str] | None = None) -> str:
        """Make the run of a line that is ours, and write down what became of it: that word."""
        line = claimed.line
        began = time.monotonic()
        try:
            state = self.ledger.state(line)
            if state.lost > states.LOST:
                end, why = states.FAILED, f"{state.lost} workers died while they made it"
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
            with self._lock:
                self._mine.discard(claimed)
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

        orders = Orders("sweep", "It is put back.", environment or {}, asked)
        try:
            config = configuration(line)
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
            self._later[line.digest] = time.monotonic() + HELD_AGAIN
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
