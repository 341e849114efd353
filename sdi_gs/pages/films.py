# SPDX-License-Identifier: Apache-2.0
"""Films and sheets of views on a page: inside of it while there is room, else by their address."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ..artefacts import media
from ..errors import UserError
from . import parts

FILM_BYTES = 500_000
"""A larger film stays beside the page, which links it."""

STUDY_BYTES = 6_000_000
"""Of all films or sheets of a page about many runs; those beyond it stay beside the page."""

STILL_WIDTH = 440  # pixels, of the picture that stands for a film which does not move


class Film(NamedTuple):
    """A film on a page."""

    url: str  # the film itself, or its address; "" where there is none
    still: str  # its first picture, "" where there is none
    note: str  # what is said under one that is not in the page


def film_of(
    path: Path | None, folder: Path, most: int = FILM_BYTES, width: int = STILL_WIDTH
) -> Film:
    """The film at ``path`` on a page in ``folder``: inside of it where it has at most ``most``
    bytes. The first picture is at most ``width`` pixels wide."""
    if path is None:
        return Film("", "", "")
    frame, size = media.first_frame(path), path.stat().st_size
    still = "" if frame is None else parts.as_jpeg(frame, width)
    if size <= most:
        return Film(parts.embedded(path), still, "")
    note = f"turntable: {path.name}, {size:,} bytes, which lies beside this page and is not in it"
    return Film(parts.link(path, folder), still, note)


class Room:
    """What the runs of a study may still take of its page, in bytes."""

    def __init__(self, folder: Path, left: int = STUDY_BYTES) -> None:
        self.folder, self.left = folder, left

    def film(self, path: Path, width: int) -> Film:
        """A film; where there is no such file, its address all the same."""
        if not path.is_file():
            return Film(parts.link(path, self.folder), "", "")
        made = film_of(path, self.folder, min(self.left, FILM_BYTES), width)
        self.left -= len(made.url) + len(made.still)
        return made

    def sheet(self, path: Path, width: int) -> str:
        """A picture, at most ``width`` pixels wide."""
        if self.left <= 0 or not path.is_file():
            return parts.link(path, self.folder)
        try:
            made = parts.embedded_small(path, width)
        except UserError:  # damaged; the measures of the run are none the worse
            return parts.link(path, self.folder)
        self.left -= len(made)
        return made
