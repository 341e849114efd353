# SPDX-License-Identifier: Apache-2.0
"""Keeps as many workers going elsewhere as are asked for, until nothing is left to do.

The driver holds nothing that anybody needs: who runs what is in the sweep's folder, and which tasks
there are is asked of the engine. It may be killed and started again at any moment.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from ...errors import RunFailure, command
from .. import states
from ..manifest import Manifest, Sweep
from ..states import Ledger
from ..status import WORDS, Standing, standing
from ..work import Stopped
from ..worker import Watch

LOOK = 10.0  # seconds between two looks at the sweep and at the engine, at most
SOON = 1.0  # after something has changed

VAIN = 5
"""Starts of workers, one after the other, in which no run comes to an end, until the driver gives
up: every worker fails there, and would for ever."""


class Cluster(Protocol):
    """What a driver asks of an engine. A task is one worker."""

    def living(self) -> list[str] | None:
        """A word for each task of ours that runs or waits; None while the engine does not say."""
        ...

    def start(self, count: int) -> str:
        """Ask for so many tasks: what is said about it."""
        ...

    def last_words(self) -> str:
        """Where, or what, the tasks said that ended."""
        ...


class Driver:
    """Works through ``sweep`` with at most ``most`` tasks."""

    def __init__(
        self, sweep: Sweep, cluster: Cluster, most: int, say: Callable[[str], None]
    ) -> None:
        self._sweep, self._cluster, self._most, self._say = sweep, cluster, most, say
        self._watch, self._ledger = Watch(sweep), Ledger(sweep)
        self._read: tuple[tuple[int, int], Manifest] | None = None
        self._vain = 0  # starts since a run came to an end
        self._settled = -1  # lines, when tasks were last started
        self._told = ""

    def go(self) -> None:
        """Until every line is settled.

        Raises:
            Stopped: somebody has asked the sweep to stop.
            RunFailure: one start of workers after the other was in vain.
        """
        told, pause = self._told, SOON
        while not self.look():
            pause = min(LOOK, SOON if self._told != told else 1.5 * pause)
            told = self._told
            time.sleep(pause)

    def look(self) -> bool:
        """One look, and what follows from it: whether all is done."""
        seen = standing(self._sweep, self._manifest())
        if not seen.counts[states.WAITING] and not seen.counts[states.RUNNING]:
            return True
        living = self._cluster.living()
        if living is None:
            return False
        self._tell(seen, living)
        if self._sweep.stop_mark.exists():
            if not living:
                again = command("sweep", "stop", self._sweep.path, "--lift")
                raise Stopped(f"{self._sweep.path} was asked to stop; to go on: {again}")
        else:
            self._top_up(seen, len(living))
        return False

    def _manifest(self) -> Manifest:
        stamp = self._sweep.stamp()
        if self._read is None or self._read[0] != stamp:
            self._read = stamp, self._sweep.read()
        return self._read[1]

    def _top_up(self, seen: Standing, living: int) -> None:
        """Start what is missing: tasks fail, are cancelled, and leave machines without room."""
        waiting, running = seen.counts[states.WAITING], seen.counts[states.RUNNING]
        if waiting:
            wanted = min(self._most, waiting + running) - living
        else:  # a living worker takes over what a dead one has left
            wanted = 0 if living else min(self._most, self._dead(seen))
        if wanted <= 0:
            return
        settled = len(seen.manifest.lines) - waiting - running
        if settled > self._settled:
            self._vain, self._settled = 0, settled
        if self._vain >= VAIN:
            if living:
                return
            raise RunFailure(
                f"workers were started {VAIN} times, and ended before a run did: "
                f"{self._cluster.last_words()}; once that is mended, the same command goes on"
            )
        self._vain += 1
        self._say(self._cluster.start(wanted))

    def _dead(self, seen: Standing) -> int:
        """Lines in the hands of workers that are known to be dead."""
        held = seen.of(states.RUNNING)
        return sum(self._watch.dead(self._ledger.file(li, st.claim)) is True for li, st in held)

    def _tell(self, seen: Standing, living: list[str]) -> None:
        """What has changed."""
        lines = ", ".join(f"{seen.counts[word]:,} {word}" for word in WORDS if seen.counts[word])
        tasks = ", ".join(f"{living.count(word)} {word}" for word in sorted(set(living)))
        told = f"runs: {lines}; tasks: {tasks or 'none'}"
        if told != self._told:
            self._say(told)
        self._told = told
