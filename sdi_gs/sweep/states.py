# SPDX-License-Identifier: Apache-2.0
"""What became of each line: files whose names say it, and which appear once and never change.

In ``state/<block>/``, of the line with the digest D::

    D.1         claimed; a link to the sign of life of the worker that has it
    D.1.back    it was interrupted and let go: whoever is next continues it as D.2
    D.2         claimed again
    D.2.done    finished

The highest number counts. A claim is the making of a file that must not exist, which every file
system decides for exactly one of many, network folders included; so is taking over the claim of a
dead worker, which is claiming the next number. No lock, no clock and no order of writes is needed,
and a worker that comes back from the dead finds a higher number than its own. The names alone say
everything that is counted: a block is one listing, and ``state/<block>.settled.<lines>`` spares
that one where all lines of a block have a result.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DISK, RunFailure
from .manifest import Line, Sweep

# How a claim ends.
DONE = "done"
DIVERGED = "diverged"  # its numbers stopped being numbers, which is a result
FAILED = "failed"  # it cannot work as it was asked for, or crashed too often
CRASH = "crash"  # it came to no end
BACK = "back"  # it was interrupted, or could not be made on that machine
RETRY = "retry"  # somebody wants what failed to be tried again
ENDS = (DONE, DIVERGED, FAILED, CRASH, BACK, RETRY)

# What a line is, besides DONE, DIVERGED and FAILED.
WAITING = "waiting"
RUNNING = "running"  # claimed; whether its worker lives is asked elsewhere

SETTLED = frozenset({DONE, DIVERGED, FAILED})

LOST = 50
"""Workers that may die over a line before it is taken for the reason."""


class State(NamedTuple):
    """Of a line."""

    word: str = WAITING
    claim: int = 0  # the highest number; 0: never claimed
    crashes: int = 0  # since somebody asked to try again
    lost: int = 0  # workers that died with it, likewise

    @property
    def settled(self) -> bool:
        return self.word in SETTLED


NEW = State()


def listed(folder: Path) -> list[str]:
    """Names in a folder; none where there is no such folder."""
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def states(names: Iterable[str], tries: int) -> dict[str, State]:
    """The state of each line by its digest, from the names in the folder of its block. Names that
    are none of ours are passed over."""
    found: dict[str, list[str]] = {}
    for name in names:
        digest, _, rest = name.partition(".")
        found.setdefault(digest, []).append(rest)
    every = ((digest, _state(tuple(sorted(rests)), tries)) for digest, rests in found.items())
    return {digest: state for digest, state in every if state is not None}


@lru_cache(4096)  # most of a hundred thousand lines have one of a few histories
def _state(history: tuple[str, ...], tries: int) -> State | None:
    """Of a line with files of these names behind its digest; None where none is ours."""
    claims: dict[int, list[str]] = {}
    for rest in history:
        number, _, end = rest.partition(".")
        if number.isdecimal() and (not end or end in ENDS):
            claims.setdefault(int(number), []).append(end)
    if not claims:
        return None
    last = max(claims)
    crashes = lost = 0
    for claim, ends in sorted(claims.items()):
        if RETRY in ends:
            crashes = lost = 0
        elif CRASH in ends:
            crashes += 1
        elif claim < last and ends == [""]:
            lost += 1
    return State(_word(claims[last], crashes, tries), last, crashes, lost)


def _word(ends: list[str], crashes: int, tries: int) -> str:
    if RETRY in ends:
        return WAITING
    for result in (DONE, DIVERGED):
        if result in ends:
            return result
    if BACK in ends:
        return WAITING
    if FAILED in ends or (CRASH in ends and crashes >= tries):
        return FAILED
    return WAITING if CRASH in ends else RUNNING


class Ledger:
    """The states of a sweep on disk."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self._asked: set[tuple[str, int]] = set()
        self._lock = threading.Lock()

    def folder(self, block: str) -> Path:
        return self.sweep.state / block

    def file(self, line: Line, claim: int, end: str = "") -> Path:
        name = f"{line.digest}.{claim}"
        return self.folder(line.block) / (f"{name}.{end}" if end else name)

    def block(self, block: str) -> dict[str, State]:
        """Of the lines of a block that anything happened to, by digest."""
        return states(listed(self.folder(block)), self.sweep.tries)

    def state(self, line: Line) -> State:
        """Of one line, asked for by name: a few lookups instead of the listing of its block."""
        names, number = [], 1
        while self.file(line, number).exists():
            ends = [end for end in ENDS if self.file(line, number, end).exists()]
            names += [f"{line.digest}.{number}", *(f"{line.digest}.{number}.{e}" for e in ends)]
            number += 1
        return states(names, self.sweep.tries).get(line.digest, NEW)

    def claim(self, line: Line, number: int, sign: Path) -> bool:
        """Claim ``line`` with that number, one more than its highest; ``sign`` is the worker's sign
        of life. False where another was faster.

        Raises:
            OSError: the folder cannot be written.
        """
        with self._lock:  # threads of one worker have the same sign
            if (line.digest, number) in self._asked:
                return False
            self._asked.add((line.digest, number))
        path = self.file(line, number)
        self._make_folder(path.parent)
        try:
            os.link(sign, path)
        except FileExistsError:
            # A server's answer may be lost, and its client asks again: then it was us.
            return _same(sign, path)
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno in DISK - {errno.EPERM}:
                raise
            # A file system without links, or too many of one file.
            return _create(path, sign.read_bytes())
        return True

    def end(self, line: Line, claim: int, end: str, told: dict[str, Any]) -> None:
        """Write down how a claim ended. What is told besides is lost where the disk is full, and
        the end is not.

        Raises:
            Overtaken: another worker has the line, since this one gave no sign of life.
            OSError: not even a name can be written.
        """
        if self.overtaken(line, claim):
            raise Overtaken(
                f"{line.name} was taken over by another worker, because this one gave no sign of "
                "life; nothing more is written"
            )
        path = self.file(line, claim, end)
        self._make_folder(path.parent)
        _create(path, (json.dumps(told) + "\n").encode())

    def settled(self, blocks: Mapping[str, Sequence[Line]]) -> set[str]:
        """The blocks, given by their lines, that are known to have nothing left to do: one listing
        for all."""
        names = set(listed(self.sweep.state))
        return {block for block, lines in blocks.items() if _mark(block, len(lines)) in names}

    def is_settled(self, block: str, lines: Sequence[Line]) -> bool:
        """The same of one block."""
        return (self.sweep.state / _mark(block, len(lines))).exists()

    def settle(self, block: str, lines: Sequence[Line]) -> None:
        """Note that all lines of a block are settled, unless somebody has just reopened one."""
        path = self.sweep.state / _mark(block, len(lines))
        with contextlib.suppress(OSError):
            _create(path, b"")
            now = self.block(block)
            if not all(now.get(line.digest, NEW).settled for line in lines):
                path.unlink(missing_ok=True)

    def reopen(self, line: Line, state: State) -> None:
        """Have a settled line tried again. First that, then the note about its block goes: who has
        looked before and notes it after looks again."""
        self.end(line, state.claim, RETRY, {"was": state.word})
        for name in listed(self.sweep.state):
            if name.startswith(f"{line.block}.settled."):
                (self.sweep.state / name).unlink(missing_ok=True)

    def _make_folder(self, folder: Path) -> None:
        """FileNotFoundError where the whole sweep was deleted: half of it does not come back."""
        if not folder.exists():
            self.sweep.manifest.stat()
            folder.mkdir(parents=True, exist_ok=True)

    def overtaken(self, line: Line, claim: int) -> bool:
        """Whether another worker has the line since."""
        return self.file(line, claim + 1).exists()

    def told(self, line: Line, state: State) -> dict[str, Any]:
        """What was written down with the end of a line that has one."""
        for end in (state.word, CRASH, BACK):
            with contextlib.suppress(OSError, ValueError):
                tree = json.loads(self.file(line, state.claim, end).read_text(encoding="utf-8"))
                if isinstance(tree, dict):
                    return tree
        return {}


class Overtaken(RunFailure):
    """A line belongs to another worker by now."""


def _mark(block: str, lines: int) -> str:
    return f"{block}.settled.{lines}"


def _same(sign: Path, path: Path) -> bool:
    try:
        return os.path.samefile(sign, path)
    except OSError:
        return False


def _create(path: Path, content: bytes) -> bool:
    """Make ``path`` where there is none; the content is lost where there is no room for it."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    try:
        with contextlib.suppress(OSError):
            os.write(handle, content)
    finally:
        with contextlib.suppress(OSError):
            os.close(handle)
    return True
