# SPDX-License-Identifier: Apache-2.0
"""Tables for a terminal, and the measures that are the columns of tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

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


def text_table(lines: Sequence[Sequence[str]], left: int = 0) -> str:
    """Lines of text with aligned columns: the first ``left`` columns to the left, the others to
    the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            text.ljust(width) if number < left else text.rjust(width)
            for number, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def steps_made(steps: Sequence[int]) -> str:
    """How many steps the runs of a page made, for the beginning of a sentence; "" for no run."""
    if not steps:
        return ""
    least, most = min(steps), max(steps)
    told = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    return f"{told} steps a run; "
