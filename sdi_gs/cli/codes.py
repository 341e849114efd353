# SPDX-License-Identifier: Apache-2.0
"""What an error outside of the two kinds that leave the program becomes: a message and a code."""

from __future__ import annotations

import errno
import os
import signal
import sys

from ..errors import DISK, NO_ROOM, first_line, refused
from ..stopping import PARENT

STOPPED = "stopped; whatever was finished is kept"

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})
"""What a disk says that has no room or is broken, whatever one wants to write."""


def unexpected(error: Exception) -> tuple[int, str]:
    """A mistyped command line, a disk that refuses, or a mistake of ours."""
    usage = getattr(error, "format_message", None)
    if callable(usage):
        return 2, f"{usage()} (see sdi-gs --help)"
    kind = type(error).__name__
    if kind == "Abort":  # typer's word for Ctrl-C where nobody hears signals
        return 128 + signal.SIGINT, STOPPED
    if isinstance(error, OSError) and error.errno in DISK:
        return 2, f"{refused(error, 'a file')}; after making room, the same command works"
    failed = _of_card(error)
    if failed is not None:
        return failed
    said = first_line(error, "no message")
    return 1, f"internal error: {kind}: {said} (the traceback is shown with --debug)"


def _of_card(error: Exception) -> tuple[int, str] | None:
    """A card that is too small or has failed, outside of a run."""
    if "torch" not in sys.modules:  # not asked for, and slow to import
        return None
    from representations.ops import card

    if card.out_of_memory(error):
        return 2, (
            f"out of memory on the device: {first_line(error)}; close what else uses it, or hide "
            "the card and wait longer: put CUDA_VISIBLE_DEVICES= before the command"
        )
    if card.lost(error):
        return 1, f"the card failed: {first_line(error)}; see that nvidia-smi still lists it"
    return None


def for_parent(error: BaseException, code: int) -> int:
    """What a study or a sweep is told that has started this run: not that it was asked for wrongly
    where only this machine's disk or card was too small for it."""
    if PARENT not in os.environ:
        return code
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__
    if any(isinstance(one, OSError) and one.errno in FULL for one in causes):
        return NO_ROOM
    if "torch" in sys.modules:
        from representations.ops import card

        if any(isinstance(one, Exception) and card.out_of_memory(one) for one in causes):
            return NO_ROOM
    return code
