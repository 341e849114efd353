# SPDX-License-Identifier: Apache-2.0
"""Which line a worker claims next: in the manifest's order, as far as others do not want the same
one, and at the end those of workers that have died."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from . import states
from .manifest import Line, Manifest, Sweep
from .states import NEW, Ledger, State
from .worker import BEAT, Watch

VAIN = 12
"""Lines that another has claimed first, until a new listing is cheaper than another try."""

PAUSE, LONGEST = 0.5, 10.0
"""Seconds between two looks at what others have in hand: at first, and at last, since many workers
may wait, and each look is a listing of every open block."""


class Claimed(NamedTuple):
    """A line that is ours."""

    line: Line
    number: int
    lost: int = 0  # workers that died with it


class Known(NamedTuple):
    """The manifest as it was read, and its lines by block."""

    stamp: tuple[int, int]
    manifest: Manifest
    blocks: dict[str, list[Line]]


class Seeker:
    """Claims lines for one worker; several of its threads may ask at once.

    ``asked``: whether the worker was asked to stop, which ends every wait.
    """

    def __init__(self, sweep: Sweep, sign: Path, asked: Callable[[], bool]) -> None:
        self.ledger = Ledger(sweep)
        self._sweep, self._sign, self._asked = sweep, sign, asked
        self._watch = Watch(sweep)
        self._mine: set[Claimed] = set()
        self._later: dict[str, float] = {}  # digest: not before
        self._last: set[str] = set()  # digests that are only tried when nothing else is left
        self._passed: set[str] = set()  # blocks in which nothing waited
        self._free: dict[str, list[tuple[Line, State]]] = {}  # of a block, as it was listed
        self._from = 0  # the block that is looked at first
        self._known: Known | None = None
        self._lock = threading.RLock()

    # -- what the worker knows

    def known(self) -> Known:
        """The manifest as it is now: lines may have been added."""
        with self._lock:
            stamp = self._sweep.stamp()
            if self._known is None or self._known.stamp != stamp:
                blocks: dict[str, list[Line]] = {}
                manifest = self._sweep.read()
                for line in manifest.lines:
                    blocks.setdefault(line.block, []).append(line)
                self._known = Known(stamp, manifest, blocks)
                self._passed = self.ledger.settled(blocks)
            return self._known

    def mine(self) -> list[Claimed]:
        """The lines in our hands."""
        with self._lock:
            return list(self._mine)

    def let_go(self, claimed: Claimed) -> None:
        with self._lock:
            self._mine.discard(claimed)

    def not_before(self, line: Line, seconds: float) -> None:
        """Leave a line alone for that long."""
        self._later[line.digest] = time.monotonic() + seconds

    def try_last(self, line: Line) -> None:
        """Try a line again only when nothing else is left: another worker may do better."""
        self._last.add(line.digest)

    # -- claiming

    def next(self) -> Claimed | None:
        """A line that waits, or at the end one of a worker that has died; None once all lines are
        settled or in living hands, or when we were asked to stop."""
        return self._next() or self._wait_for_one()

    def take(self, line: Line) -> Claimed | None:
        """That line, where it waits or its worker is dead."""
        return self._take(line, self.ledger.state(line))

    def _next(self) -> Claimed | None:
        """A line that waits. A listing is worked down as long as it lasts: a line that another has
        claimed since cannot be claimed with the number that the listing tells. Where many reach for
        the same lines, each goes on in another block."""
        pause = 0.01
        with self._lock:
            blocks = self.known().blocks
            names = list(blocks)
            while not self._asked():
                order = (*names[self._from :], *names[: self._from])
                block = next((name for name in order if name not in self._passed), None)
                if block is None:
                    break
                if block not in self._free:
                    self._free[block] = self._waiting(block, blocks[block])
                claimed, vain = self._work_down(self._free[block])
                if claimed is not None:
                    return claimed
                del self._free[block]
                if vain:
                    self._from = random.randrange(len(names))
                    time.sleep(pause * random.random())  # a network folder may list what was
                    pause = min(1.0, 2 * pause)
        return None

    def _waiting(self, block: str, lines: Sequence[Line]) -> list[tuple[Line, State]]:
        """The lines of a block that wait and are for now, the first one last."""
        now = self.ledger.block(block)
        found = [(line, now.get(line.digest, NEW)) for line in reversed(lines)]
        free = [(line, state) for line, state in found if self._is_for_now(line, state)]
        if not free:
            self._passed.add(block)
            if all(state.settled for _, state in found):
                self.ledger.settle(block, lines)
        return free

    def _is_for_now(self, line: Line, state: State) -> bool:
        waits = state.word == states.WAITING
        return waits and line.digest not in self._last and not self._is_later(line)

    def _is_later(self, line: Line) -> bool:
        return self._later.get(line.digest, 0.0) > time.monotonic()

    def _work_down(self, free: list[tuple[Line, State]]) -> tuple[Claimed | None, int]:
        """The first of the lines that can be claimed, None where too many cannot; and how many
        could not."""
        vain = 0
        while free and vain < VAIN:
            line, state = free.pop()
            if not self._is_for_now(line, state):
                continue
            claimed = self._claim(line, state)
            if claimed is not None:
                return claimed, vain
            vain += 1
            if vain == 1:  # others are here, and who all reach for the first line reach in vain
                random.shuffle(free)
        return None, vain

    def _claim(self, line: Line, state: State) -> Claimed | None:
        lost = state.lost + (state.word == states.RUNNING)
        claimed = Claimed(line, state.claim + 1, lost)
        if not self.ledger.claim(line, claimed.number, self._sign):
            return None
        with self._lock:
            self._mine.add(claimed)
        return claimed

    def _take(self, line: Line, state: State) -> Claimed | None:
        if state.word == states.WAITING:
            return None if self._is_later(line) else self._claim(line, state)
        if state.settled or self._ours(line, state) or not self._dead(line, state):
            return None
        return self._claim(line, state)

    def _ours(self, line: Line, state: State) -> bool:
        with self._lock:
            return any(mine[:2] == (line, state.claim) for mine in self._mine)

    def _dead(self, line: Line, state: State) -> bool | None:
        with self._lock:
            return self._watch.dead(self.ledger.file(line, state.claim))

    # -- at the end

    def _wait_for_one(self) -> Claimed | None:
        """A line of a worker that has died, or that another has put back, or that waits for a
        folder to be let go."""
        pause = PAUSE
        while not self._asked():
            blocks = self.known().blocks
            with self._lock:
                self._passed = self.ledger.settled(blocks)
                self._free.clear()
                open_ = [block for block in blocks if block not in self._passed]
            random.shuffle(open_)  # many look at the same time, and share what they find
            busy = False
            for block in open_:
                if self.ledger.is_settled(block, blocks[block]):
                    continue
                claimed, waits = self._look_over(block, blocks[block])
                if claimed is not None:
                    return claimed
                busy = busy or waits
            if not busy:
                return None
            self.pause(pause)
            pause = min(LONGEST, 1.5 * pause)
        return None

    def _look_over(self, block: str, lines: Sequence[Line]) -> tuple[Claimed | None, bool]:
        """A line of a block that could be claimed, and whether one may yet be claimed later."""
        now = self.ledger.block(block)
        every = [(line, now.get(line.digest, NEW)) for line in lines]
        open_ = [(line, state) for line, state in every if not state.settled]
        if not open_:
            self.ledger.settle(block, lines)
        random.shuffle(open_)
        busy = False
        for line, state in open_:
            if self._ours(line, state):
                continue
            claimed = self._take(line, state)
            if claimed is not None:
                return claimed, True
            busy = busy or state.word == states.WAITING or self._dead(line, state) is None
        return None, busy

    def pause(self, seconds: float = 1.0) -> None:
        """Wait, at most as long as a beat, and no longer than until we are asked to stop."""
        until = time.monotonic() + min(seconds, BEAT)
        while not self._asked() and time.monotonic() < until:
            time.sleep(0.1)
