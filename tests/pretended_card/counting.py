# SPDX-License-Identifier: Apache-2.0
"""What crosses to the card or waits for it, by place."""

from __future__ import annotations

import traceback
import warnings
from collections import Counter
from pathlib import Path

from .cuda import SYNC

ROOT = Path(__file__).parents[2]

COUNTED: Counter[tuple[str, str]] = Counter()
"""(what, place in our code) of everything that crosses to the card or waits for it: "sent" a
copy from pinned memory without waiting, "sent and waited" any other copy to the card, "read" a
value or a copy from it."""


def place() -> str:
    """File and line of the innermost frame of ours that does not only pass on what it was given."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.stem == "sending":
            continue
        for room in ("sdi_gs", "representations", "benchmarks"):
            if path.is_relative_to(ROOT / room) and ".venv" not in path.parts:
                return f"{path.relative_to(ROOT)}:{frame.lineno} {frame.name}"
    return "elsewhere"


def count(what: str) -> None:
    COUNTED[what, place()] += 1
    if what != "sent" and SYNC.mode == 1:
        warnings.warn("called a synchronizing CUDA operation", stacklevel=2)
