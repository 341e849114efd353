# SPDX-License-Identifier: Apache-2.0
"""How far slow work has come, told to whoever listens: nobody by default, which costs nothing.

Whoever works says ``for view in each(views, "view")``; whoever shows it to a person listens
(``with listening(listener): ...``). Loops within loops are levels, the outermost first. A thread
that was started inside hears nothing of it and tells nothing: it is a page or a pool, not the work.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

Item = TypeVar("Item")


@dataclass(eq=False)
class Level:
    """One loop: what it counts, and how far it is."""

    what: str  # in the singular, such as "view"
    of: int
    done: int = 0
    began: float = field(default_factory=lambda: time.perf_counter())
    _first: float | None = None  # when its first parts were done, which may have compiled
    _from: int = 0  # how many they were

    def at(self, done: int) -> None:
        """So many are done."""
        if done == self.done:
            return
        self.done = done
        if self._first is None and done > 0:
            self._first, self._from = time.perf_counter(), done
        listener = _listener.get()
        if listener is not None:
            listener.changed()

    def left(self) -> float | None:
        """Seconds to its end at the pace of every part but the first; None before the second and
        after the last."""
        if self._first is None or not self._from < self.done < self.of:
            return None
        pace = (time.perf_counter() - self._first) / (self.done - self._from)
        return pace * (self.of - self.done)


class Listener(Protocol):
    """Whoever shows it. ``levels`` are the loops that are under way."""

    levels: list[Level]

    def changed(self) -> None:
        """A level has begun, moved or ended; called in the thread that works, so be quick."""


_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def listening(listener: Listener | None) -> Iterator[None]:
    """Tell ``listener`` of everything inside, and no other; None: nobody."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def heard() -> bool:
    """Whether anybody listens."""
    return _listener.get() is not None


@contextmanager
def level(what: str, of: int) -> Iterator[Level]:
    """A loop whose parts are not items of a sequence: call ``at`` on what is given."""
    listener, entered = _listener.get(), Level(what, of)
    if listener is None:
        yield entered
        return
    listener.levels.append(entered)
    try:
        yield entered
    finally:
        listener.levels.remove(entered)
        listener.changed()


def each(items: Sequence[Item], what: str) -> Iterator[Item]:
    """The items, with word of how many are done."""
    with level(what, len(items)) as entered:
        for done, item in enumerate(items, start=1):
            yield item
            entered.at(done)
