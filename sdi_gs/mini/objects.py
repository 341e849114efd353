# SPDX-License-Identifier: Apache-2.0
"""The kinds of object that mini knows: furniture, buildings and things (animals and vehicles in
``creatures.py``). Each is a function of a :class:`Builder`; numbers are proportions in free
units, normalised at the end. Every kind has a front (+x) that differs from its back."""

from __future__ import annotations

from .shapes import BEIGE, BLACK, BROWN, DARK, GLASS, MAIN, RED, WHITE, YELLOW, Builder, Color


def mug(b: Builder) -> None:
    r, h = b.v(0.5), b.v(1.1)
    b.cylinder((0, 0, 0), r, h)
    b.cylinder((0, 0, h / 2), 0.82 * r, 0.02, DARK)
    b.ring((0, r + 0.12, 0), b.v(0.27), 0.07, axis="x")
    b.cylinder((r * 0.88, 0, 0), b.v(0.27), r * 0.26, WHITE, axis="x")


def chair(b: Builder) -> None:
    w, leg, back = b.v(0.5), b.v(0.55), b.v(0.75)
    b.box((0, 0, 0), (2 * w, 2 * w, 0.12))
    for x in (-1, 1):
        for y in (-1, 1):
            b.box((x * (w - 0.07), y * (w - 0.07), -leg / 2), (0.12, 0.12, leg), BROWN)
    b.box((-w + 0.06, 0, back / 2), (0.12, 2 * w, back))


def house(b: Builder) -> None:
    x, y, h = b.v(0.55), b.v(0.65), b.v(0.75)
    b.box((0, 0, 0), (2 * x, 2 * y, h))
    b.roof((0, 0, h / 2), (2.2 * x, 2.3 * y, b.v(0.5)), DARK)
    b.box((x, 0, -h / 2 + 0.22), (0.06, 0.28, 0.44), BROWN)
    for side in (-1, 1):
        b.box((x, side * 0.6 * y, 0.08), (0.05, 0.22, 0.22), GLASS)
    b.box((-0.4 * x, 0.5 * y, h / 2 + 0.35), (0.16, 0.16, 0.4), RED)


def sofa(b: Builder) -> None:
    w, d, h = b.v(0.85), b.v(0.42), b.v(0.32)
    b.box((0, 0, 0), (2 * d, 2 * w, h))
    b.box((-d, 0, 0.3), (0.22, 2 * w, h + b.v(0.55)))
    for side in (-1, 1):
        b.box((0, side * w, 0.15), (2 * d, 0.2, h + 0.28))
        b.box((d * 0.2, side * w * 0.45, h / 2 + 0.06), (1.4 * d, 0.75 * w, 0.12), WHITE)
    b.box((0, 0, -h / 2 - 0.08), (1.7 * d, 1.8 * w, 0.08), BROWN)


def teapot(b: Builder) -> None:
    r = b.v(0.5)
    b.ball((0, 0, 0), (r, r, 0.85 * r))
    b.cylinder((0, 0, -0.8 * r), 0.6 * r, 0.1)
    b.ball((0, 0, 0.83 * r), (0.5 * r, 0.5 * r, 0.12), WHITE)
    b.ball((0, 0, 0.83 * r + 0.16), 0.09, BLACK)
    for k in range(6):
        f = k / 5
        b.ball((0.8 * r + 0.42 * f, 0, -0.1 + 0.45 * f * f), 0.13 - 0.06 * f)
    b.ring((-r - 0.08, 0, 0.04), b.v(0.26), 0.06, axis="y")


def mushroom(b: Builder) -> None:
    r, h = b.v(0.6), b.v(0.7)
    b.cylinder((0, 0, -h / 2), b.v(0.26), h, BEIGE)
    b.ball((0, 0, 0), (r, r, b.v(0.42)))
    for az_x, az_y, z in ((0.75, 0.3, 0.22), (0.8, -0.4, 0.12), (0.3, 0.0, 0.4), (0.35, 0.7, 0.2)):
        b.ball((az_x * r, az_y * r, z), 0.14, WHITE)
    b.box((0.26, 0, -0.68 * h), (0.12, 0.3, 0.44), BROWN)
    b.box((0.16, 0, -h), (0.7, 0.4, 0.08), DARK)  # a doorstep


def lighthouse(b: Builder) -> None:
    r, h = b.v(0.3), b.v(1.2)
    stripes: tuple[Color, ...] = (MAIN, WHITE, MAIN, WHITE, MAIN)
    for k, color in enumerate(stripes):
        b.cylinder((0, 0, -h / 2 + (k + 0.5) * h / 5), r * (1.1 - 0.08 * k), h / 5, color)
    b.cylinder((0, 0, h / 2 + 0.04), 1.05 * r, 0.06, DARK)
    b.cylinder((0, 0, h / 2 + 0.17), 0.55 * r, 0.22, YELLOW)
    b.cone((0, 0, h / 2 + 0.28), 0.8 * r, 0.25)
    b.box((1.5 * r, 0, -h / 2 + 0.14), (1.2 * r, 0.44, 0.28), BEIGE)  # the keeper's house
    b.roof((1.5 * r, 0, -h / 2 + 0.28), (1.3 * r, 0.52, 0.2), DARK)
    b.box((2.1 * r, 0, -h / 2 + 0.11), (0.06, 0.16, 0.22), BROWN)


def castle(b: Builder) -> None:
    w, h, r = b.v(0.55), b.v(0.55), b.v(0.2)
    b.box((0, 0, 0), (2 * w, 2 * w, h))
    for x in (-1, 1):
        for y in (-1, 1):
            tall = h * (1.5 if x < 0 else 1.2)
            b.cylinder((x * w, y * w, tall / 2 - h / 2), r, tall)
            b.cone((x * w, y * w, tall - h / 2), 1.25 * r, 0.38, DARK)
    b.box((w, 0, -h / 2 + 0.2), (0.06, 0.34, 0.4), BROWN)
    b.cylinder((w, 0, -h / 2 + 0.4), 0.17, 0.06, BROWN, axis="x")


def television(b: Builder) -> None:
    w, h, d = b.v(0.7), b.v(0.5), b.v(0.25)
    b.box((0, 0, 0), (2 * d, 2 * w, 2 * h))
    b.box((d, -0.12 * w, 0), (0.06, 1.5 * w, 1.6 * h), GLASS)
    for z in (0.4, 0.0):
        b.ball((d, 0.82 * w, z * h), 0.06, BLACK)
    for side in (-1, 1):
        b.box((0, side * 0.6 * w, -h - 0.12), (0.12, 0.1, 0.26), BROWN)
        b.box((-0.05, side * 0.22, h + 0.2), (0.04, 0.04, 0.42), DARK)


def clock(b: Builder) -> None:
    r, d = b.v(0.6), b.v(0.3)
    b.cylinder((0, 0, 0), r, d, axis="x")
    b.cylinder((d / 2, 0, 0), 0.84 * r, 0.04, WHITE, axis="x")
    b.box((d / 2 + 0.03, 0, 0.2 * r), (0.03, 0.07, 0.5 * r), BLACK)
    b.box((d / 2 + 0.03, 0.18 * r, 0), (0.03, 0.42 * r, 0.07), BLACK)
    for side in (-1, 1):
        b.ball((0, side * 0.6 * r, 0.98 * r), 0.2, YELLOW)
        b.box((0, side * 0.55 * r, -r), (0.12, 0.12, 0.3), DARK)


def camera(b: Builder) -> None:
    w, h, d = b.v(0.65), b.v(0.42), b.v(0.22)
    b.box((0, 0, 0), (2 * d, 2 * w, 2 * h))
    b.cylinder((d + 0.12, 0, 0), b.v(0.32), 0.26, DARK, axis="x")
    b.cylinder((d + 0.26, 0, 0), 0.22, 0.02, GLASS, axis="x")
    b.box((0, 0, h + 0.08), (1.4 * d, 0.42, 0.18), BLACK)
    b.box((0, 0.72 * w, h + 0.05), (0.16, 0.18, 0.1), RED)
    b.box((-d, 0, -0.02), (0.03, 1.1 * w, 1.2 * h), BLACK)


def windmill(b: Builder) -> None:
    r, h = b.v(0.36), b.v(1.1)
    for k in range(5):
        b.cylinder((0, 0, -h / 2 + (k + 0.5) * h / 5), r * (1.2 - 0.12 * k), h / 5)
    b.cone((0, 0, h / 2), 0.85 * r, 0.32, DARK)
    length = b.v(0.55)
    b.box((r + 0.1, 0, 0.4 * h), (0.05, 2 * length, 0.16), WHITE)
    b.box((r + 0.1, 0, 0.4 * h), (0.05, 0.16, 2 * length), WHITE)
    b.ball((r + 0.14, 0, 0.4 * h), 0.09, BLACK)
    b.box((1.16 * r, 0, -h / 2 + 0.16), (0.1, 0.22, 0.32), BROWN)


def mailbox(b: Builder) -> None:
    w, h, d = b.v(0.32), b.v(0.32), b.v(0.55)
    b.box((0, 0, 0), (2 * d, 2 * w, h))
    b.cylinder((0, 0, h / 2), w, 2 * d, axis="x")
    b.box((0, 0, -0.6), (0.16, 0.16, 0.9), BROWN)
    b.box((d, 0, 0.0), (0.04, 1.5 * w, 0.8 * h), WHITE)
    b.box((d + 0.03, 0, 0.1), (0.04, 0.2, 0.06), BLACK)
    b.box((0.1, w + 0.04, h / 2 + 0.25), (0.08, 0.04, 0.5), RED)
    b.box((0.2, w + 0.04, h / 2 + 0.42), (0.26, 0.04, 0.18), RED)
