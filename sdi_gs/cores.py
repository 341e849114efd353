# SPDX-License-Identifier: Apache-2.0
"""How many threads a run should have on a machine that does other things as well.

Threads of OpenMP wait for one another at the end of each of a step's thousand small products, and
they wait by turning round: where one of them has lost its core to somebody else, all do nothing for
as long as that takes. On two cores beside other work a step of guidance took 10 s with two threads
and 0.3 s with one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

_STAT = Path("/proc/stat")
_LOOK_S = 0.2  # long against the clock of /proc, which ticks 100 times a second


def spare_threads() -> int:
    """As many threads as torch would take, or fewer where other work keeps cores busy now.

    Looks at the machine for a fifth of a second. OMP_NUM_THREADS is the user's word and stands;
    where the system does not tell how busy it is, torch's own choice does.
    """
    most = torch.get_num_threads()
    if most == 1 or "OMP_NUM_THREADS" in os.environ:
        return most
    before = _ticks()
    time.sleep(_LOOK_S)
    return spare(most, before, _ticks())


Ticks = dict[int, tuple[int, int]]
"""Of each core that this process may use: ticks with nothing to do, and all, since the start."""


def spare(most: int, before: Ticks, after: Ticks, mine: float = 0.0) -> int:
    """How many of ``most`` threads find a core of their own, from 1 to ``most``. ``mine``: cores
    that this process has kept busy meanwhile, which are its own."""
    idle = 0.0
    for core, (lazy, every) in after.items():
        passed = every - before.get(core, (0, every))[1]
        if passed > 0:
            idle += (lazy - before[core][0]) / passed
    return most if not after else max(1, min(most, round(idle + mine)))


class Pace:
    """How many threads a run that is on its way should have: fewer while other work keeps cores
    busy, as many as it may have once the work is done.

    Two seconds decide for fewer, since each step with too many may take thirty times as long; five
    for more, and twice as many after each time that more proved too many.
    """

    EVERY_S = 1.0  # at least, between two looks
    FEWER_S, MORE_S = 2.0, 5.0  # in which all looks must agree

    def __init__(
        self,
        most: int,
        now: int,
        ticks: Callable[[], Ticks] | None = None,
        clock: Callable[[], float] = time.monotonic,
        own: Callable[[], float] = time.process_time,
    ) -> None:
        """
        Args:
            most: threads that the run may have, 1 or more.
            now: those that it has.
            ticks: what each core has done so far; None: what Linux tells.
            clock: seconds of the wall.
            own: seconds of a core that this process has used, in all its threads.
        """
        self.most, self.now = most, now
        self._ticks, self._clock, self._own = ticks or _ticks, clock, own
        self._patience_s, self._agreed_s, self._raised = self.MORE_S, 0.0, False
        self.changes: dict[int, int] = {}  # threads, by the steps that were done before
        self._last = self._look()

    def _look(self) -> tuple[float, float, Ticks]:
        return self._clock(), self._own(), self._ticks()

    def look(self, done: int) -> int | None:
        """Called between two steps, when ``done`` of them are: the number of threads to go on with,
        None where it stays. Looks at the machine once a second at most."""
        if self.most == 1 or self._clock() - self._last[0] < self.EVERY_S:
            return None
        before, self._last = self._last, self._look()
        passed = self._last[0] - before[0]
        mine = (self._last[1] - before[1]) / passed
        wanted = spare(self.most, before[2], self._last[2], mine)
        self._agreed_s += passed
        if wanted == self.now:
            self._agreed_s = 0.0
        if self._agreed_s < (self.FEWER_S if wanted <= self.now else self._patience_s):
            return None
        if wanted < self.now and self._raised:
            self._patience_s *= 2
        self._raised = wanted > self.now
        self.now, self._agreed_s = wanted, 0.0
        self.changes[done] = wanted
        return wanted


def pace(fixed: bool, now: int | None) -> Pace | None:
    """What keeps a run on the CPU at the threads that it finds cores for. None where the user said
    how many (``fixed``, or OMP_NUM_THREADS), and on one core.

    ``now``: threads that it begins with; torch still has as many as it would take.
    """
    most = torch.get_num_threads()
    if fixed or now is None or most == 1 or "OMP_NUM_THREADS" in os.environ:
        return None
    return Pace(most, now)


def _ticks() -> Ticks:
    try:
        lines = _STAT.read_text().splitlines()
        allowed = os.sched_getaffinity(0)
    except (OSError, AttributeError):  # not Linux
        return {}
    found = {}
    for line in lines:
        name, *counts = line.split()
        core = name.removeprefix("cpu")
        if core != name and core.isdigit() and int(core) in allowed:
            values = [int(count) for count in counts]
            # user, nice, system, idle, waiting for disks, interrupts, ..., stolen by a host
            found[int(core)] = (values[3] + values[4], sum(values[:8]))
    return found
