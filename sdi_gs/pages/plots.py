# SPDX-License-Identifier: Apache-2.0
"""Line plots as SVG: text that a browser draws and a diff shows, with no plotting library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

DOTTED = 40  # a line of more points than this has no dot on each
PALETTE = ("#1f6f8b", "#c8553d", "#588157", "#7b4b94", "#b08900", "#444444")
WIDTH, HEIGHT, MARGIN = 460, 260, 46  # of a plot, pixels


@dataclass(frozen=True)
class Line:
    label: str  # escaped already, where it comes from a user
    points: list[tuple[float, float]]


def plot(lines: Sequence[Line], x_title: str, y_title: str, log: bool = False) -> str:
    """An SVG line plot; x starts at 0. With ``log`` the y axis is logarithmic, and points that are
    not positive are left out. Values that are no numbers are left out too."""
    drawn = [Line(line.label, _usable(line.points, log)) for line in lines]
    drawn = [line for line in drawn if line.points]
    if not drawn:
        return svg([f'<text x="10" y="20">{y_title}: nothing to draw</text>'], HEIGHT)
    xs = [x for line in drawn for x, _ in line.points]
    ys = [y for line in drawn for _, y in line.points]
    x_top, low, high = max(xs) or 1.0, min(ys), max(ys)
    pad = 0.05 * (high - low) + (0.02 if log else 0.1)
    low, high = low - pad, high + pad

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            MARGIN + x / x_top * (WIDTH - MARGIN - 10),
            HEIGHT - MARGIN - (y - low) / (high - low) * (HEIGHT - MARGIN - 24),
        )

    ends = (10.0**low, 10.0**high) if log else (low, high)
    parts = [_axes(x_title, y_title, x_top, ends)]
    for index, line in enumerate(drawn):
        color = PALETTE[index % len(PALETTE)]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in (place(*p) for p in line.points))
        dotted = line.points if len(line.points) <= DOTTED else []
        dots = "".join(
            f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{color}"/>'
            for px, py in (place(*p) for p in dotted)
        )
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}"/>{dots}')
        # A white rim keeps a label readable where it lies on a line.
        parts.append(
            f'<text x="{WIDTH - 10}" y="{16 + 14 * index}" text-anchor="end" fill="{color}" '
            f'stroke="#fff" stroke-width="3" paint-order="stroke">{line.label}</text>'
        )
    return svg(parts, HEIGHT)


def _usable(points: list[tuple[float, float]], log: bool) -> list[tuple[float, float]]:
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    return [(x, math.log10(y)) for x, y in finite if y > 0.0] if log else finite


def _axes(x_title: str, y_title: str, x_top: float, y_range: tuple[float, float]) -> str:
    base, right = HEIGHT - MARGIN, WIDTH - 10
    return (
        f'<path d="M{MARGIN},20V{base}H{right}" fill="none" stroke="#999"/>'
        f'<text x="{right}" y="{base + 16}" text-anchor="end">{x_top:.4g}</text>'
        f'<text x="{MARGIN}" y="{base + 16}">0</text>'
        f'<text x="{(MARGIN + right) / 2}" y="{base + 32}" text-anchor="middle">{x_title}</text>'
        f'<text x="{MARGIN - 4}" y="28" text-anchor="end">{_short(y_range[1])}</text>'
        f'<text x="{MARGIN - 4}" y="{base}" text-anchor="end">{_short(y_range[0])}</text>'
        f'<text transform="translate(12,{(20 + base) / 2}) rotate(-90)" text-anchor="middle">'
        f"{y_title}</text>"
    )


def _short(value: float) -> str:
    """At most six characters, which is what fits beside an axis."""
    text = f"{value:.4g}"
    if len(text) <= 6 and "e" not in text:
        return text
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def bars(rows: Sequence[tuple[str, Mapping[str, float]]], title: str, unit: str) -> str:
    """One stacked bar per row: its label, escaped already, and its parts by name, not negative;
    the sum stands at the end, in ``unit``. A single part of the title's name needs no legend."""
    names = list(dict.fromkeys(name for _, values in rows for name in values))
    longest = max((sum(values.values()) for _, values in rows), default=0.0) or 1.0
    parts = [f'<text x="0" y="14">{title}</text>']
    for index, name in enumerate(names if names != [title] else []):
        color, left = PALETTE[index % len(PALETTE)], 90 * index
        parts.append(f'<rect x="{left}" y="22" width="10" height="10" fill="{color}"/>')
        parts.append(f'<text x="{left + 14}" y="31">{name}</text>')
    for number, (label, values) in enumerate(rows):
        y, x = 46.0 + 40.0 * number, 0.0
        parts.append(f'<text x="0" y="{y + 10}">{label}</text>')
        for index, name in enumerate(names):
            width = values.get(name, 0.0) / longest * (WIDTH - 80)
            parts.append(
                f'<rect x="{x:.1f}" y="{y + 14}" width="{width:.1f}" height="14" '
                f'fill="{PALETTE[index % len(PALETTE)]}"/>'
            )
            x += width
        total = sum(values.values())
        parts.append(f'<text x="{x + 4:.1f}" y="{y + 25}">{total:.4g} {unit}</text>')
    return svg(parts, 50 + 40 * len(rows))


def svg(parts: Sequence[str], height: int) -> str:
    """A picture of the plots' width around ``parts``."""
    return (
        f'<svg width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="system-ui, sans-serif" font-size="11">{"".join(parts)}</svg>'
    )


def standalone(drawn: str) -> str:
    """A plot as the contents of an .svg file; inside of a page it needs no name space."""
    return drawn.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
