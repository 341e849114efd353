# SPDX-License-Identifier: Apache-2.0
"""Every experiment below one folder, and a page that leads to all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from representations.files import write_bytes

from ..pages import render

PAGE = "index.html"
TABLE = "table.html"
PICTURED = (".svg", ".png")


class Made(NamedTuple):
    """An experiment on the page."""

    name: str
    shows: str
    files: list[str]  # relative to the page
    pictures: list[str]  # those that are shown, relative to the page
    table: str  # the page of its own, "" where it has none
    said: str  # what is missing of it, "" where it is whole


def found(name: str, shows: str, out: Path, said: str = "") -> Made:
    """What the experiment ``name`` has left in its folder below ``out``."""
    folder = out / name
    files = sorted(p for p in folder.iterdir() if p.is_file()) if folder.is_dir() else []
    shown = [p for p in files if p.suffix in PICTURED and not p.name.startswith(".")]
    return Made(
        name,
        shows,
        [f"{name}/{path.name}" for path in files if not path.name.startswith(".")],
        [f"{name}/{path.name}" for path in shown],
        f"{name}/{TABLE}" if (folder / TABLE).is_file() else "",
        said,
    )


def write(made: Sequence[Made], machine: str, out: Path) -> Path:
    """The page, with whatever is there by now."""
    content = render.page("everything", {"title": "Every experiment", "machine": machine,
                                         "made": made})  # fmt: skip
    return write_bytes(out / PAGE, content.encode())
