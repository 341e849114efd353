# SPDX-License-Identifier: Apache-2.0
"""Two opposite sides of every run of a table on one sheet: a line per variant, a column per
representation, sentence and seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from ..artefacts import media
from ..artefacts.run_folder import RunFolder
from ..look import STILL_COLUMNS
from .compare import Row
from .study import Without
from .tables import Shown

TILE = 96  # pixels of a picture's side
WORDS = 130  # of the column with the variants' names
HEAD = 24  # of the line above the pictures
LETTER = 12
LINES_OF_A_BLOCK = 8  # more of them stand in two blocks side by side, where these are narrow
WORST = 8  # runs of a sheet of failures
MOMENTS, LEAST = 10, 3  # pictures of a shape that comes about: most, and fewest worth a sheet
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
    front, _, back, _ = quarters(picture)
    return front, back


def quarters(picture: Path) -> list[Image.Image]:
    """Four views of a run's contact sheet, quarter turns apart, from the first."""
    with Image.open(picture) as opened:
        whole = opened.convert("RGB")
    side = whole.width // STILL_COLUMNS
    views = STILL_COLUMNS * (whole.height // side)

    def view(k: int) -> Image.Image:
        y, x = divmod(k, STILL_COLUMNS)
        tile = whole.crop((x * side, y * side, (x + 1) * side, (y + 1) * side))
        return tile.resize((TILE, TILE), Image.Resampling.LANCZOS)

    return [view(k * views // 4) for k in range(4)]


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


def worst(shown: Sequence[Shown], most: int = WORST) -> list[Shown]:
    """The runs that went wrong most, the worst first: by PSNR where mini knows the object, else by
    the share of views that CLIP recognises, else by its score. Runs of which nothing was measured
    are left out; so are all where there are no more than ``most``, of which a table tells all."""

    def goodness(row: Row) -> tuple[float, ...]:
        seen = (row.judged.r_precision, row.judged.clip_score) if row.judged else (0.0, 0.0)
        return seen if row.psnr_db is None else (row.psnr_db, *seen)

    done = [
        (goodness(one.outcome), index)
        for index, one in enumerate(shown)
        if isinstance(one.outcome, Row) and (one.outcome.judged or one.outcome.psnr_db)
    ]
    return [shown[index] for _, index in sorted(done)[:most]] if len(shown) > most else []


def failures(found: Sequence[Shown], out: Path) -> Image.Image:
    """Four sides of each run of ``found``, and what was measured (as the paper shows some of its
    failures, arXiv 2405.15891, App. H.1)."""
    width = 2 * WORDS
    image = Image.new("RGB", (width + 4 * TILE, TILE * len(found)), (255, 255, 255))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(LETTER)
    for line, one in enumerate(found):
        row, y = one.outcome, line * TILE
        assert isinstance(row, Row)
        said = [f"{one.wanted.variant.label}, {row.representation}", row.prompt, f"seed {row.seed}"]
        if row.psnr_db is not None:
            said.append(f"{row.psnr_db:.1f} dB")
        if row.faces is not None and row.faces != 1:
            said.append("no face" if row.faces == 0 else f"{row.faces} faces")
        if row.judged is not None:
            said.append(f"recognised in {100 * row.judged.r_precision:.0f} % of views")
        for number, text in enumerate(said):
            draw.text((6, y + 6 + number * (LETTER + 2)), text, INK, font)
        for k, picture in enumerate(quarters(out / row.run / "preview.png")):
            image.paste(picture, (width + k * TILE, y))
    return image


def evolution(shown: Sequence[Shown], out: Path) -> Image.Image | None:
    """How each shape came about: a line per run, the front after a growing number of steps (the
    middle row of Fig. 4 of arXiv 2405.15891, where x0 is the rendering itself). None where no run
    left :data:`LEAST` pictures from the time of its making."""
    runs = [(one, RunFolder(out / one.outcome.run).previews(MOMENTS))
            for one in shown if isinstance(one.outcome, Row)]  # fmt: skip
    lines = [(one, seen) for one, seen in runs if len(seen) >= LEAST]
    if not lines:
        return None
    heads = titles([place(one) for one, _ in lines])
    columns = max(len(seen) for _, seen in lines)
    image = Image.new("RGB", (WORDS + columns * TILE, len(lines) * (TILE + HEAD)), (255, 255, 255))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(LETTER)
    for line, ((one, seen), head) in enumerate(zip(lines, heads, strict=True)):
        y = line * (TILE + HEAD)
        for number, text in enumerate(filter(None, (one.wanted.variant.label, head))):
            draw.text((6, y + HEAD + 6 + number * (LETTER + 2)), text, INK, font)
        for column, (step, path) in enumerate(seen):
            x = WORDS + column * TILE
            draw.text((x + 4, y + 6), f"step {step}", FAINT, font)
            with Image.open(path) as opened:
                view = opened.convert("RGB").crop((0, 0, opened.height, opened.height))
            image.paste(view.resize((TILE, TILE), Image.Resampling.LANCZOS), (x, y + HEAD))
    return image


def write(shown: Sequence[Shown], out: Path) -> list[Path]:
    """table.png beside the table's other files, failures.png where there are enough runs, and
    evolution.png where they left pictures from the time of their making."""
    paths = [media.save_png(sheet(shown, out), out / "table.png")]
    came_about = evolution(shown, out)
    if came_about is not None:
        paths.append(media.save_png(came_about, out / "evolution.png"))
    found = worst(shown)
    if found:
        paths.append(media.save_png(failures(found, out), out / "failures.png"))
    return paths
