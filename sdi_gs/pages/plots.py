# SPDX-License-Identifier: Apache-2.0
"""Line plots as SVG: text that a browser draws and a diff shows, with no plotting library.

Each piece of SVG is a constant Markup whose ``format`` escapes what is put into it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

DOTTED = 40  # a line of more points than this has no dot on each
PALETTE = ("#1f6f8b", "#b3402a", "#3f6b3f", "#7b4b94", "#8a6a00", "#444444")
"""On white; base.html.j2 has the same for a dark page, by their numbers."""
WIDTH, HEIGHT, MARGIN = 460, 260, 56  # of a plot, pixels

INSIDE = 1
"""Lines whose names stand in the plot; the names of more stand under it, where none lies on a
line."""

LINE = Markup(
    '<polyline class="c{number} drawn" points="{path}" fill="none" stroke="{color}" '
    'stroke-width="1.5"{dashes}/>'
)
DASHES = ("", Markup(' stroke-dasharray="5 3"'), Markup(' stroke-dasharray="1 3"'))
"""Where the colours are used up they begin again, dashed."""
DOT = Markup('<circle class="c{number} filled" cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>')
# A rim in the colour of the page keeps a label readable where it lies on a line.
LABEL = Markup(
    '<text class="c{number} filled rim" x="{x}" y="{y}" text-anchor="end" fill="{color}" '
    'stroke="#fff" stroke-width="3" paint-order="stroke">{text}</text>'
)
KEY = Markup(
    '<path class="c{number} drawn" d="M{x},{y}h24" fill="none" stroke="{color}" '
    'stroke-width="1.5"{dashes}/>'
)
TEXT = Markup('<text x="{x}" y="{y}">{text}</text>')
ANCHORED = Markup('<text x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>')
UPRIGHT = Markup(
    '<text transform="translate({x},{y}) rotate(-90)" text-anchor="middle">{text}</text>'
)
AXES = Markup('<path d="M{left},20V{base}H{right}" fill="none" stroke="#999"/>')
BAR = Markup(
    '<rect class="c{number} filled" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" '
    'height="{height}" fill="{color}"/>'
)
SVG = Markup(
    '<svg role="img" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
    'font-family="system-ui, sans-serif" font-size="11" fill="currentColor">'
    "<title>{title}</title><desc>{told}</desc>{parts}</svg>"
)
TOLD = 12
"""Lines or bars whose numbers are told to those who do not see a drawing."""


@dataclass(frozen=True)
class Line:
    label: str
    points: list[tuple[float, float]]


def plot(lines: Sequence[Line], x_title: str, y_title: str, log: bool = False) -> Markup:
    """An SVG line plot; x starts at 0. With ``log`` the y axis is logarithmic, and points that are
    not positive are left out. Values that are no numbers are left out too."""
    drawn = [Line(line.label, _usable(line.points, log)) for line in lines]
    drawn = [line for line in drawn if line.points]
    if not drawn:
        empty = f"{y_title}: nothing to draw"
        return svg([TEXT.format(x=10, y=20, text=empty)], HEIGHT, empty)
    xs = [x for line in drawn for x, _ in line.points]
    ys = [y for line in drawn for _, y in line.points]
    x_top, low, high = max(xs) or 1.0, min(ys), max(ys)
    pad = 0.05 * (high - low) + (0.02 if log else 0.1)
    if low == high and not log:  # else four digits would not tell the ends of the axis apart
        pad = max(pad, 0.05 * abs(high))
    low, high = low - pad, high + pad

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            MARGIN + x / x_top * (WIDTH - MARGIN - 10),
            HEIGHT - MARGIN - (y - low) / (high - low) * (HEIGHT - MARGIN - 24),
        )

    ends = (10.0**low, 10.0**high) if log else (low, high)
    parts = [_axes(x_title, y_title, x_top, ends)]
    under = len(drawn) > INSIDE
    for index, line in enumerate(drawn):
        number = index % len(PALETTE)
        color = PALETTE[number]
        dashes = DASHES[index // len(PALETTE) % len(DASHES)]
        placed = [place(*point) for point in line.points]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in placed)
        parts.append(LINE.format(path=path, number=number, color=color, dashes=dashes))
        if len(placed) <= DOTTED:
            parts += [DOT.format(x=px, y=py, number=number, color=color) for px, py in placed]
        if under:
            y = HEIGHT + 14 * index
            parts.append(KEY.format(x=MARGIN, y=y - 4, number=number, color=color, dashes=dashes))
            parts.append(TEXT.format(x=MARGIN + 32, y=y, text=line.label))
        else:
            y = 16 + 14 * index
            parts.append(
                LABEL.format(x=WIDTH - 10, y=y, number=number, color=color, text=line.label)
            )
    height = HEIGHT + (14 * len(drawn) if under else 0)
    return svg(parts, height, f"{y_title} by {x_title}", _course(lines))


def _course(lines: Sequence[Line]) -> str:
    """Where each line begins and ends, in words."""
    told = []
    for line in lines[:TOLD]:
        ends = [(x, y) for x, y in line.points if math.isfinite(x) and math.isfinite(y)]
        if ends:
            (x0, y0), (x1, y1) = ends[0], ends[-1]
            name = f"{line.label}: " if line.label else ""
            told.append(f"{name}{y0:.4g} at {x0:.4g}, {y1:.4g} at {x1:.4g}")
    more = len(lines) - TOLD
    return "; ".join([*told, *([f"and {more} more"] if more > 0 else [])])


def _usable(points: list[tuple[float, float]], log: bool) -> list[tuple[float, float]]:
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    return [(x, math.log10(y)) for x, y in finite if y > 0.0] if log else finite


def _axes(x_title: str, y_title: str, x_top: float, y_range: tuple[float, float]) -> Markup:
    base, right = HEIGHT - MARGIN, WIDTH - 10
    low, high = map(_short, y_range)
    return Markup("").join(
        [
            AXES.format(left=MARGIN, base=base, right=right),
            ANCHORED.format(x=right, y=base + 16, anchor="end", text=f"{x_top:.4g}"),
            TEXT.format(x=MARGIN, y=base + 16, text="0"),
            ANCHORED.format(x=(MARGIN + right) / 2, y=base + 32, anchor="middle", text=x_title),
            ANCHORED.format(x=MARGIN - 4, y=28, anchor="end", text=high),
            ANCHORED.format(x=MARGIN - 4, y=base, anchor="end", text=low),
            UPRIGHT.format(x=10, y=(20 + base) / 2, text=y_title),
        ]
    )


def _short(value: float) -> str:
    """At most six characters, which is what fits beside an axis."""
    text = f"{value:.4g}"
    if len(text) <= 6 and "e" not in text:
        return text
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def bars(rows: Sequence[tuple[str, Mapping[str, float]]], title: str, unit: str) -> Markup:
    """One stacked bar per row: its label, and its parts by name, not negative; the sum stands at
    the end, in ``unit``. A single part of the title's name needs no legend."""
    names = list(dict.fromkeys(name for _, values in rows for name in values))
    numbers = {name: index % len(PALETTE) for index, name in enumerate(names)}
    longest = max((sum(values.values()) for _, values in rows), default=0.0) or 1.0
    parts = [TEXT.format(x=0, y=14, text=title)]
    legend = names if names != [title] else []
    for index, name in enumerate(legend):
        left = 90 * index
        number = numbers[name]
        parts.append(
            BAR.format(x=left, y=22, width=10, height=10, number=number, color=PALETTE[number])
        )
        parts.append(TEXT.format(x=left + 14, y=31, text=name))
    top = 46.0 if legend else 26.0
    told = []
    for row, (label, values) in enumerate(rows):
        y, x = top + 40.0 * row, 0.0
        parts.append(TEXT.format(x=0, y=y + 10, text=label))
        for name in names:
            width, number = values.get(name, 0.0) / longest * (WIDTH - 80), numbers[name]
            color = PALETTE[number]
            parts.append(
                BAR.format(x=x, y=y + 14, width=width, height=14, number=number, color=color)
            )
            x += width
        total = f"{sum(values.values()):.4g} {unit}"
        parts.append(TEXT.format(x=round(x + 4, 1), y=y + 25, text=total))
        told.append(f"{label}: {total}" if label else total)
    more = [f"and {len(told) - TOLD} more"] if len(told) > TOLD else []
    return svg(parts, round(top) + 4 + 40 * len(rows), title, "; ".join([*told[:TOLD], *more]))


def svg(parts: Sequence[Markup], height: int, title: str, told: str = "") -> Markup:
    """A picture of the plots' width around ``parts``, with a title and what it tells in words for
    those who do not see it."""
    return SVG.format(
        width=WIDTH, height=height, title=title, told=told, parts=Markup("").join(parts)
    )


def standalone(drawn: Markup) -> Markup:
    """A plot as the contents of an .svg file; inside of a page it needs no name space."""
    named = Markup('<svg xmlns="http://www.w3.org/2000/svg" ')
    return drawn.replace(Markup("<svg "), named, 1)
