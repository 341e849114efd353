# SPDX-License-Identifier: Apache-2.0
"""One line of a terminal that moves, of whatever width; and lines now and then where there is no
terminal."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, TextIO

from representations.telling import Level

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.live import Live

SOON = 1.0  # seconds that work may take before anything is shown of it
FIRST, MOST = 5.0, 60.0  # seconds to the first line where there is no terminal, between two at most
BAR = 24  # characters
GAP = "  "
SPINNER = "|/-\\"
STILL = 3.0  # seconds after which it is said that nothing has moved


class Part(NamedTuple):
    """A word of the line. Where the width does not suffice, the highest ``rank`` goes first, and 0
    and 1 stay."""

    text: str
    rank: int


def clock(seconds: float) -> str:
    """As a clock shows a time: "0:09", "1:02:03"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def bar(done: int, of: int) -> str:
    """A bar of fixed length."""
    full = round(BAR * done / of) if of else BAR
    return "█" * full + "░" * (BAR - full)


def fitted(parts: Sequence[Part], width: int) -> str:
    """The words that fit into ``width`` characters, in their order."""
    kept = [part for part in parts if part.text]
    while len(text := GAP.join(part.text for part in kept)) > width:
        least = max(kept, key=lambda part: part.rank)
        if least.rank <= 1:
            return text[:width]
        kept.remove(least)
    return text


def described(levels: Sequence[Level]) -> list[Part]:
    """Loops within loops: "run 3/12  step 40/150  1:05 left", where what is left is that of the
    outermost that knows."""
    if not levels:
        return []
    counted = [Part(f"{one.what} {one.done}/{one.of}", 0) for one in levels]
    counted[1:] = [Part(part.text, rank) for rank, part in enumerate(counted[1:], start=2)]
    left = next((found for one in levels if (found := one.left()) is not None), None)
    # Of the first runs nothing is promised for all of them.
    of = "" if left is None or levels[0].left() is not None else f" of this {levels[0].what}"
    return [*counted, Part("" if left is None else f"{clock(left)} left{of}", 1)]


class Above(io.TextIOBase):
    """What a terminal is written while a line moves at its foot: above that line, as it is, so that
    a path or a command that is longer than the terminal is wide can be copied."""

    def __init__(self, stream: TextIO, live: Live) -> None:
        self._stream, self._live, self._begun = stream, live, ""

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"text is written here, not {type(text).__name__}")
        whole, newline, self._begun = (self._begun + text).rpartition("\n")
        if newline:
            self._live.console.print(whole, markup=False, highlight=False, soft_wrap=True)
        return len(text)

    def drain(self) -> None:
        """What has no end of line yet."""
        if self._begun:
            self._stream.write(self._begun)
            self._begun = ""

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self._stream.errors


class Line:
    """A line at the foot of a terminal. It shows itself once work has taken a second."""

    def __init__(self, stream: TextIO) -> None:
        self.levels: list[Level] = []
        self._stream = stream
        self._live: Live | None = None
        self._streams: dict[str, TextIO] = {}  # of sys, while something else is in their place
        self._moved = time.perf_counter()

    def changed(self) -> None:
        """A loop has moved: shown where it is a long one, gone where it was the last."""
        self._moved = time.perf_counter()
        if not self.levels:
            self.idle()
        elif self._live is None and time.perf_counter() - self.levels[0].began > SOON:
            self.show()

    def idle(self) -> None:
        """No loop is under way."""

    def show(self) -> None:
        """Begin to show it."""
        from rich.console import Console
        from rich.live import Live

        if self._live is not None:
            return
        console = Console(file=self._stream, highlight=False)
        self._live = Live(
            self, console=console, refresh_per_second=5, transient=True,
            redirect_stdout=False, redirect_stderr=False,
        )  # fmt: skip
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream.isatty():
                self._streams[name] = stream
                setattr(sys, name, Above(stream, self._live))
        self._live.start()

    def close(self) -> None:
        """Leave nothing of it behind."""
        live, self._live = self._live, None
        if live is None:
            return
        try:
            live.stop()
        finally:
            for name, stream in self._streams.items():
                above = getattr(sys, name)
                setattr(sys, name, stream)
                if isinstance(above, Above):
                    above.drain()
            self._streams.clear()

    def waited(self) -> str:
        """A sign that moves, and for how long nothing else did."""
        spent = time.perf_counter() - self._moved
        return f"{SPINNER[int(4 * spent) % 4]} {spent:.0f} s"

    def parts(self) -> list[Part]:
        """The words of now."""
        levels = [one for one in self.levels if time.perf_counter() - one.began > SOON]
        still = time.perf_counter() - self._moved > STILL
        return [*described(levels), Part(self.waited() if still or not levels else "", 1)]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        width = options.max_width
        with contextlib.suppress(OSError):  # of this stream, not of the first that is a terminal
            width = os.get_terminal_size(self._stream.fileno()).columns
        yield Text(fitted(self.parts(), width), no_wrap=True, overflow="crop")


class Work(Line):
    """The line of every verb that does not train: there while a long loop is under way."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def idle(self) -> None:
        self.close()


class Now:
    """A line now and then, for logs and pipes: after five seconds, then ever more seldom."""

    def __init__(self) -> None:
        self.levels: list[Level] = []
        self._outermost: Level | None = None
        self._next = self._pause = 0.0

    def changed(self) -> None:
        """A loop has moved; one that has ended says nothing."""
        if not self.levels:
            return
        now, outermost = time.perf_counter(), self.levels[0]
        if outermost is not self._outermost:
            self._outermost, self._pause = outermost, FIRST
            self._next = outermost.began + FIRST
        if now >= self._next:
            self._pause = min(2 * self._pause, MOST)
            self._next = now + self._pause
            told = GAP.join(part.text for part in described(self.levels) if part.text)
            print(told, file=sys.stderr, flush=True)


def standard() -> Work | Now:
    """The one that fits where messages go."""
    return Work() if sys.stderr.isatty() else Now()
