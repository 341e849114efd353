# SPDX-License-Identifier: Apache-2.0
"""What pages are made of beside their templates: tables, films and pictures as text, and the file.
Everything a page shows is inside it or beside it, so it opens from a folder and without a network.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from markupsafe import Markup

from representations.files import write_bytes

from ..errors import UserError
from .render import part

if TYPE_CHECKING:
    from PIL import Image

MARK = '<meta name="generator" content="sdi-gs">'
"""Stands in base.html.j2. It tells a page of ours from any other file, which is never replaced."""

TYPES = {".mp4": "video/mp4", ".gif": "image/gif", ".png": "image/png", ".jpg": "image/jpeg"}


def html_table(lines: Sequence[Sequence[str]], head: Sequence[str] = ()) -> Markup:
    """Lines of cells, the first cell of each line being its heading."""
    return part("html_table", lines, "", head)


def inset(words: str, strong: bool = False) -> Markup:
    """Words in the panel of the viewer."""
    return part("inset", words, strong)


def embedded(path: Path) -> str:
    """A film or picture as text that goes into the page."""
    coded = base64.b64encode(path.read_bytes()).decode("ascii")
    return f"data:{TYPES[path.suffix]};base64,{coded}"


def embedded_within(path: Path, most: int, width: int) -> str:
    """A picture as text that goes into the page: as it is where it has at most ``most`` bytes, else
    at most ``width`` pixels wide."""
    return embedded(path) if path.stat().st_size <= most else embedded_small(path, width)


def embedded_small(path: Path, width: int) -> str:
    """A picture at most ``width`` pixels wide, as text that goes into the page."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            small = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is damaged; delete it to go on without it") from error
    return as_jpeg(small, width)


def as_jpeg(image: Image.Image, width: int) -> str:
    """The same of a picture in colours that is open already."""
    small = image.copy()
    small.thumbnail((width, 10 * width))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=88)
    coded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:{TYPES['.jpg']};base64,{coded}"


def link(path: Path, folder: Path) -> str:
    """The address of a file on a page that lies in ``folder``."""
    there, here = path.resolve(), folder.resolve()
    try:
        return quote(Path(os.path.relpath(there, here)).as_posix())
    except ValueError:  # on another drive
        return there.as_uri()


def write(path: Path, text: str) -> Path:
    """Write a page whole or not at all; a file that is no page of ours is never replaced."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file in it, such as {path / 'report.html'}")
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"{path}: a report is a web page; name a file that ends in .html")
    try:
        if path.exists() and MARK.encode() not in path.read_bytes()[:2000]:
            raise UserError(
                f"{path} exists and was not written by sdi-gs, so it stays as it is; name another "
                "file with --out"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, text.encode())
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
    return path
