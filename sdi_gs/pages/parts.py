# SPDX-License-Identifier: Apache-2.0
"""The parts of an HTML page about runs: skeleton, tables, films. Everything a page shows is inside
it or beside it, so it opens from a folder and without a network."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from representations.files import write_bytes

from ..errors import UserError
from .text import Column, T

MARK = '<meta name="generator" content="sdi-gs">'
"""Tells a page of ours from a file of somebody else, which is never replaced."""

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1100px;
  padding: 0 1rem; color: #222 }
h1 { overflow-wrap: anywhere }
table { border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid #ddd }
table.facts th, table.facts td { text-align: left; vertical-align: top }
figure { display: inline-block; margin: 0 1rem 1rem 0; text-align: center; max-width: 100% }
figure img, figure video { max-width: 100% }
figcaption, .note { color: #555; font-size: 13px }
.warning { border-left: 4px solid #c8553d; padding: .5rem 1rem; background: #fbeeea }
pre { overflow-x: auto; background: #f6f6f6; padding: 1rem; font-size: 12px }
svg { margin-right: 1rem; max-width: 100%; height: auto }
"""

TYPES = {".mp4": "video/mp4", ".gif": "image/gif", ".png": "image/png", ".jpg": "image/jpeg"}


def document(title: str, body: str) -> str:
    """A whole page. ``title`` is plain text, ``body`` is HTML."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{MARK}'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style></head><body>\n"
        f"{body}\n</body></html>\n"
    )


def columns(titles: Sequence[Column[T]], rows: Sequence[T]) -> str:
    """A table with a column per run: measures are many and runs are few, and a page is read
    downwards."""
    return lines((title, *(cell(row) for row in rows)) for title, cell in titles)


def lines(cells: Iterable[Sequence[str]], kind: str = "", head: Sequence[str] = ()) -> str:
    """A table of plain text, the first cell of each line being its heading."""
    top = "".join(f"<th>{html.escape(text)}</th>" for text in head)
    body = "".join(
        f"<tr><th>{html.escape(first)}</th>"
        + "".join(f"<td>{html.escape(text)}</td>" for text in rest)
        + "</tr>"
        for first, *rest in cells
    )
    chosen = f' class="{kind}"' if kind else ""
    return f"<table{chosen}><tbody>{f'<tr>{top}</tr>' if top else ''}{body}</tbody></table>"


def film(url: str, poster: str, caption: str, side: int = 256) -> str:
    """A turntable with its caption (HTML); ``url`` is a file beside the page, or the film itself.
    ``poster`` is shown until it plays, "" for nothing; ``side`` is in pixels."""
    size = f'width="{side}" height="{side}"'
    if url.startswith("data:image/") or url.endswith(".gif"):
        shown = f'<img src="{html.escape(url)}" {size} alt="turntable">'
    else:
        still = f' poster="{html.escape(poster)}"' if poster else ""
        plays = "autoplay loop muted playsinline"
        shown = f'<video src="{html.escape(url)}"{still} {size} {plays}></video>'
    return f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"


def picture(url: str, caption: str, width: int | None = None) -> str:
    """An image with its caption (HTML); ``width`` in pixels, None for its own."""
    size = "" if width is None else f' width="{width}"'
    return (
        f'<figure><img src="{html.escape(url)}"{size} alt=""><figcaption>{caption}</figcaption>'
        "</figure>"
    )


def fold(summary: str, body: str) -> str:
    """HTML that shows itself on a click."""
    return f"<details><summary>{html.escape(summary)}</summary>{body}</details>"


def embedded(path: Path) -> str:
    """A film or picture as text that goes into the page."""
    coded = base64.b64encode(path.read_bytes()).decode("ascii")
    return f"data:{TYPES[path.suffix]};base64,{coded}"


def embedded_small(path: Path, width: int) -> str:
    """A picture at most ``width`` pixels wide, as text that goes into the page."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            small = image.convert("RGB")
    except OSError as error:
        raise UserError(f"{path} is damaged; delete it to go on without it") from error
    small.thumbnail((width, 10 * width))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=88)
    coded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:{TYPES['.jpg']};base64,{coded}"


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
