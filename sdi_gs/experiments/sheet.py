# SPDX-License-Identifier: Apache-2.0
"""Two opposite sides of every run of a table on one sheet: a line per variant, a column per
representation, sentence and seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from ..artefacts import media
from ..look import STILL_COLUMNS
from .study import Without
from .tables import Shown

TILE = 96  # pixels of a picture's side
WORDS = 130  # of the column with the variants' names
HEAD = 24  # of the line above the pictures
LETTER = 12
LINES_OF_A_BLOCK = 8  # more of them stand in two blocks side by side, where these are narrow
INK, FAINT = (0, 0, 0), (150, 150, 150)


class Place(NamedTuple):
    """A column of the sheet."""

    representation: str
    prompt: str
    seed: int


def place(run: Shown) -> Place:
    cell = run.wanted.cell
    return Place(Path(cell.representation).stem, run.wanted.config.prompt, cell.seed)


def titles(places: Sequence[Place]) -> list[str]:
    """What tells each column from the others."""
    telling = [i for i in range(len(Place._fields)) if len({p[i] for p in places}) > 1]
    words = [[f"seed {p.seed}" if i == 2 else str(p[i]) for i in telling] for p in places]
    return [", ".join(parts) for parts in words]


def sides(picture: Path) -> tuple[Image.Image, Image.Image]:
    """The first view of a run's contact sheet and the one from behind it."""
    with Image.open(picture) as opened:
        whole = opened.convert("RGB")
    side = whole.width // STILL_COLUMNS
    views = STILL_COLUMNS * (whole.height // side)

    def view(k: int) -> Image.Image:
        y, x = divmod(k, STILL_COLUMNS)
        tile = whole.crop((x * side, y * side, (x + 1) * side, (y + 1) * side))
        return tile.resize((TILE, TILE), Image.Resampling.LANCZOS)

    return view(0), view(views // 2)


def sheet(shown: Sequence[Shown], out: Path) -> Image.Image:
    """Draw it from the pictures that the runs below ``out`` left; a run without one says so."""
    variants = list(dict.fromkeys(run.wanted.variant.label for run in shown))
    places = list(dict.fromkeys(place(run) for run in shown))
    runs = {(run.wanted.variant.label, place(run)): run.outcome for run in shown}
    heads, width = titles(places), WORDS + 2 * TILE * len(places)
    blocks = 2 if len(variants) > LINES_OF_A_BLOCK and len(places) <= 2 else 1
    lines = -(-len(variants) // blocks)
    image = Image.new("RGB", (blocks * width, HEAD + lines * TILE), (255, 255, 255))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(LETTER)
    for index, variant in enumerate(variants):
        block, line = divmod(index, lines)
        x, y = block * width, HEAD + line * TILE
        draw.text((x + 6, y + TILE // 2 - LETTER // 2), variant, INK, font)
        for column, (at, title) in enumerate(zip(places, heads, strict=True)):
            left = x + WORDS + 2 * TILE * column
            if line == 0:
                draw.text((left + 6, 6), title, INK, font)
            row = runs[variant, at]
            if isinstance(row, Without):
                draw.text((left + 6, y + TILE // 2 - LETTER // 2), row.word, FAINT, font)
                continue
            for k, picture in enumerate(sides(out / row.run / "preview.png")):
                image.paste(picture, (left + k * TILE, y))
    return image


def write(shown: Sequence[Shown], out: Path) -> Path:
    """table.png beside the table's other files."""
    return media.save_png(sheet(shown, out), out / "table.png")
