# SPDX-License-Identifier: Apache-2.0
"""A comparison as a table for terminals and as one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..artefacts.run_folder import STAGES
from ..pages import render
from ..pages.films import Film, Room
from ..pages.plots import Line, bars, plot
from ..pages.text import Column, drop_unmeasured, or_dash, steps_made, text_table
from .compare import Comparison, Plan, Row

COLUMNS: tuple[Column[Row], ...] = (
    ("representation", lambda r: r.representation),
    ("guidance", lambda r: r.guidance),
    ("seed", lambda r: str(r.seed)),
    ("PSNR dB", lambda r: or_dash(r.psnr_db, ".2f")),
    ("CLIP", lambda r: or_dash(r.judged.clip_score if r.judged else None, ".1f")),
    ("R-prec. %", lambda r: or_dash(r.judged.r_precision if r.judged else None, ".0f", 100)),
    ("steps", lambda r: f"{r.steps:,}"),
    ("total s", lambda r: f"{r.seconds_total:.1f}"),
    *((f"{stage} ms", lambda r, s=stage: f"{1e3 * r.seconds_per_step[s]:.1f}") for stage in STAGES),
    ("step ms", lambda r: f"{1e3 * sum(r.seconds_per_step.values()):.1f}"),
    ("calls/step", lambda r: f"{r.evaluations_per_step:.1f}"),
    ("peak MB", lambda r: or_dash(r.peak_memory_mb, ".0f")),
    ("CUDA MB", lambda r: or_dash(r.peak_cuda_memory_mb, ".0f")),
    ("parameters", lambda r: f"{r.parameters:,}"),
    ("size", lambda r: f"{r.size:,} {r.unit}"),
    ("file kB", lambda r: ", ".join(f"{b / 1e3:.0f}" for b in r.files.values())),
)

NOTE = (
    "Seconds per step are medians by stage without the first tenth of the steps, in which kernels "
    "compile; total seconds include loading and drawing. calls: pictures that the network was "
    "asked about. PSNR: mean over 8 views against the true object, where mini knows it. "
    "R-prec.: the share of 8 views whose sentence CLIP finds among all it chooses from. A run that "
    "diverged ended because its numbers stopped being numbers (NaN or infinity), so there is no "
    "shape to measure."
)

FILM_SIDE = 256  # pixels

NAMED = 3
"""Columns that say which run it is; on the page they are the heads."""


def table(rows: Sequence[Row]) -> str:
    """Aligned text; a column of dashes only is left out."""
    return text_table(drop_unmeasured(COLUMNS, rows))


def page(plan: Plan, made: Comparison, machine: str, out: Path) -> str:
    """The whole HTML page, which is to lie in the folder ``out`` of the comparison."""
    rows, room = made.rows, Room(out)
    milliseconds = [
        (_label(row), {stage: 1e3 * row.seconds_per_step[stage] for stage in STAGES})
        for row in rows
    ]
    curves = [
        plot(
            [Line(_label(r), [(p[key], p["psnr_db"]) for p in r.curve]) for r in rows],
            title,
            "PSNR dB",
        )
        for key, title in (("step", "steps"), ("seconds", "seconds of training"))
        if any(r.curve for r in rows)
    ]
    return render.page(
        "compare",
        {
            "title": f"{plan.prompt}: compared",
            "prompt": plan.prompt,
            "made": f"{steps_made([row.steps for row in rows])}{machine}",
            "films": [_shown(row, room.film(_film(out / row.run), FILM_SIDE)) for row in rows],
            "head": ["", *map(_label, rows)],
            "columns": [column for column in COLUMNS[NAMED:] if _measured(column, rows)],
            "rows": rows,
            "missing": list(map(str, made.missing)),
            "note": NOTE,
            "plots": [*curves, bars(milliseconds, "milliseconds of a step", "ms")] if rows else [],
        },
    )


def _measured(column: Column[Row], rows: Sequence[Row]) -> bool:
    return any(column[1](row) != "-" for row in rows)


class Shown(NamedTuple):
    """A turntable on the page."""

    url: str
    poster: str
    caption: tuple[str, ...]


def _film(run: Path) -> Path:
    """Of the format that the run has written."""
    found = [path for path in (run / "turntable.mp4", run / "turntable.gif") if path.is_file()]
    return found[0] if found else run / "turntable.mp4"


def _shown(row: Row, film: Film) -> Shown:
    quality = "-" if row.psnr_db is None else f"{row.psnr_db:.2f} dB"
    words = (_label(row), quality, film.note) if film.note else (_label(row), quality)
    return Shown(film.url, film.still, words)


def _label(row: Row) -> str:
    return f"{row.representation} / {row.guidance} / seed {row.seed}"
