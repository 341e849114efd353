# SPDX-License-Identifier: Apache-2.0
"""Tables for a terminal, and the measures that are the columns of tables."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

GAP = "  "  # between two columns

Column = tuple[str, Callable[[T], str]]
"""The heading of a measure, and its text for a run."""


def or_dash(value: float | None, form: str, factor: float = 1.0) -> str:
    """A number in the format ``form``, times ``factor``; a dash where there is no value."""
    return "-" if value is None else format(factor * value, form)


def drop_unmeasured(columns: Sequence[Column[T]], rows: Sequence[T]) -> list[list[str]]:
    """The table as lines of text, headings first, without the columns that hold only dashes."""
    grid = [[title, *(cell(row) for row in rows)] for title, cell in columns]
    kept = [column for column in grid if any(text != "-" for text in column[1:])]
    return [list(line) for line in zip(*kept, strict=True)]


def text_table(
    lines: Sequence[Sequence[str]], left: int = 0, width: int | None = None, keep: int = 1
) -> str:
    """Lines of text with aligned columns: the first ``left`` columns to the left, the others to
    the right. Where ``width`` characters do not suffice, the last columns are left out, except
    the first ``keep``, and a line below names them by their headings."""
    columns = [list(column) for column in zip(*lines, strict=True)]
    widths = [max(map(len, column)) for column in columns]
    shown = len(columns)
    while width is not None and shown > keep and _wide(widths[:shown]) > width:
        shown -= 1
    rows = [
        GAP.join(
            text.ljust(size) if number < left else text.rjust(size)
            for number, (text, size) in enumerate(zip(line[:shown], widths[:shown], strict=True))
        )
        for line in lines
    ]
    if shown < len(columns):
        gone = ", ".join(column[0] for column in columns[shown:])
        rows.append(f"(more columns with --wide: {gone})")
    return "\n".join(rows)


def _wide(widths: Sequence[int]) -> int:
    return sum(widths) + len(GAP) * (len(widths) - 1)


def room(wide: bool) -> int | None:
    """Characters that a table may have across: a terminal's, and any number elsewhere, or where
    all of it was asked for."""
    if wide or not sys.stdout.isatty():
        return None
    return shutil.get_terminal_size().columns


def steps_made(steps: Sequence[int]) -> str:
    """How many steps the runs of a page made, for the beginning of a sentence; "" for no run."""
    if not steps:
        return ""
    least, most = min(steps), max(steps)
    told = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    return f"{told} steps a run; "
