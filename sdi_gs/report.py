# SPDX-License-Identifier: Apache-2.0
"""A comparison as a table for terminals and as one HTML page that needs nothing but its folder."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence

from .compare import STAGES, Plan, Row
from .plots import PALETTE, WIDTH, Line, plot, svg

Column = tuple[str, Callable[[Row], str]]


def _or_dash(value: float | None, text: str) -> str:
    return "-" if value is None else text.format(value)


COLUMNS: tuple[Column, ...] = (
    ("representation", lambda r: r.representation),
    ("guidance", lambda r: r.guidance),
    ("seed", lambda r: str(r.seed)),
    ("PSNR dB", lambda r: _or_dash(r.psnr_db, "{:.2f}")),
    *((f"{stage} ms", lambda r, s=stage: f"{1e3 * r.seconds_per_step[s]:.1f}") for stage in STAGES),
    ("step ms", lambda r: f"{1e3 * sum(r.seconds_per_step.values()):.1f}"),
    ("calls/step", lambda r: f"{r.evaluations_per_step:.1f}"),
    ("total s", lambda r: f"{r.seconds_total:.1f}"),
    ("peak MB", lambda r: _or_dash(r.peak_memory_mb, "{:.0f}")),
    ("CUDA MB", lambda r: _or_dash(r.peak_cuda_memory_mb, "{:.0f}")),
    ("parameters", lambda r: f"{r.parameters:,}"),
    ("size", lambda r: f"{r.size:,} {r.unit}"),
    ("file kB", lambda r: ", ".join(f"{b / 1e3:.0f}" for b in r.files.values())),
)

NOTE = (
    "Seconds per step are medians by stage without the first tenth of the steps, in which kernels "
    "compile; total seconds include loading and drawing. calls: pictures that the network was "
    "asked about. PSNR: mean over 8 views against the true object, where mini knows it."
)


def table(rows: Sequence[Row]) -> str:
    """Aligned text; a column of dashes only is left out."""
    grid = [[title, *(cell(row) for row in rows)] for title, cell in COLUMNS]
    grid = [column for column in grid if any(text != "-" for text in column[1:])]
    widths = [max(map(len, column)) for column in grid]
    lines = zip(*grid, strict=True)
    return "\n".join(
        "  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True))
        for line in lines
    )


def page(plan: Plan, rows: Sequence[Row], machine: str) -> str:
    """The whole HTML page; films and pictures are named relative to its folder."""
    # A column per run: measures are many and runs are few, and a page is read downwards.
    body = "".join(
        f"<tr><th>{html.escape(title)}</th>"
        + "".join(f"<td>{html.escape(cell(row))}</td>" for row in rows)
        + "</tr>"
        for title, cell in COLUMNS
    )
    films = "".join(
        f'<figure><video src="{row.run}/turntable.mp4" poster="{row.run}/preview.png" width="256" '
        f'height="256" autoplay loop muted playsinline></video><figcaption>{_label(row)}<br>'
        f"{_or_dash(row.psnr_db, '{:.2f} dB')}</figcaption></figure>"
        for row in rows
    )
    stages = _bars(rows)
    curves = [
        plot(
            [Line(_label(r), [(p[key], p["psnr_db"]) for p in r.curve]) for r in rows],
            title,
            "PSNR dB",
        )
        for key, title in (("step", "steps"), ("seconds", "seconds of training"))
        if any(r.curve for r in rows)
    ]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(plan.prompt)}: compared</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1100px; color: #222 }}
table {{ border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto }}
th, td {{ padding: .3rem .6rem; text-align: right; border-bottom: 1px solid #ddd }}
figure {{ display: inline-block; margin: 0 1rem 1rem 0; text-align: center }}
figcaption, .note {{ color: #555; font-size: 13px }}
svg {{ margin-right: 1rem }}
</style></head><body>
<h1>{html.escape(plan.prompt)}</h1>
<p class="note">{html.escape(machine)}</p>
<section>{films}</section>
<table><tbody>{body}</tbody></table>
<p class="note">{html.escape(NOTE)}</p>
<section>{"".join(curves)}{stages}</section>
</body></html>
"""


def _label(row: Row) -> str:
    return html.escape(f"{row.representation} / {row.guidance} / seed {row.seed}")


def _bars(rows: Sequence[Row]) -> str:
    """Milliseconds of a step by stage, one stacked bar per run."""
    longest = max(sum(row.seconds_per_step.values()) for row in rows) or 1.0
    parts = ['<text x="0" y="14">milliseconds of a step</text>']
    for index, stage in enumerate(STAGES):
        color, left = PALETTE[index], 90 * index
        parts.append(f'<rect x="{left}" y="22" width="10" height="10" fill="{color}"/>')
        parts.append(f'<text x="{left + 14}" y="31">{stage}</text>')
    for number, row in enumerate(rows):
        y, x = 46.0 + 40.0 * number, 0.0
        parts.append(f'<text x="0" y="{y + 10}">{_label(row)}</text>')
        for index, stage in enumerate(STAGES):
            width = row.seconds_per_step[stage] / longest * (WIDTH - 60)
            parts.append(
                f'<rect x="{x:.1f}" y="{y + 14}" width="{width:.1f}" height="14" '
                f'fill="{PALETTE[index]}"/>'
            )
            x += width
        total = 1e3 * sum(row.seconds_per_step.values())
        parts.append(f'<text x="{x + 4:.1f}" y="{y + 25}">{total:.0f}</text>')
    return svg(parts, 50 + 40 * len(rows))
