# SPDX-License-Identifier: Apache-2.0
"""What the command line shows to a user, and the exit code that goes with it."""

from __future__ import annotations

import difflib
import errno
import os
import shlex
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

DISK = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ELOOP,
     errno.EFBIG, errno.ENAMETOOLONG}
)  # fmt: skip
"""What a system says of a disk that is full, read-only, forbidden or broken."""

DIVERGED = 3
"""Exit code of a run whose numbers stopped being numbers."""

NO_ROOM = 4
"""Exit code of a run that a study or sweep has started and that this machine refused, its disk or
its card, where another machine might not. Whoever types the same command is told 2."""


class UserError(Exception):
    """Something only the user can change: an input, a setting, a full disk. Exit code 2.

    The message says what was given, what is allowed, and what to type instead.
    """

    exit_code = 2


class RunFailure(Exception):
    """The run itself went wrong although the input was fine. Exit code 1."""

    exit_code = 1


def leading() -> bool:
    """Whether this process talks to people: the first of a torchrun, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def first_line(error: BaseException, otherwise: str = "") -> str:
    """The first line of an error's message. An error without a message gives ``otherwise``, or the
    name of its class."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip() if lines else otherwise or type(error).__name__


def refused(error: OSError, otherwise: object) -> str:
    """What the system refused: the file, why, and how many bytes it needs where that is known.
    ``otherwise`` is named where the error names no file."""
    needed = getattr(error, "needed", None)
    room = f" ({needed:,} bytes needed)" if needed else ""
    name = error.filename or otherwise
    return f"{name} could not be written: {error.strerror or error}{room}"


def nearest(word: str, known: Iterable[str]) -> str:
    """A sentence that helps after a misspelt name: the nearest known one, then all of them."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}known here: {', '.join(names) if names else 'nothing'}"


def command(*words: object) -> str:
    """``sdi-gs`` with these words, as it works when it is typed where this program was started: by
    its name where the shell finds that, else by its path."""
    started = Path(sys.argv[0] if sys.argv else "")
    found = shutil.which("sdi-gs")
    if started.stem == "sdi-gs" and not (found and Path(found).resolve() == started.resolve()):
        program = [str(started)]
    elif found:
        program = ["sdi-gs"]
    else:
        program = [sys.executable, "-m", "sdi_gs"]
    return shlex.join([*program, *map(str, words)])
