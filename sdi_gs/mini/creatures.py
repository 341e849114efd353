# SPDX-License-Identifier: Apache-2.0
"""The animals, figures and vehicles that mini knows; see ``objects.py`` for the conventions."""

from __future__ import annotations

from .shapes import (
    BEIGE,
    BLACK,
    BROWN,
    DARK,
    GLASS,
    MAIN,
    ORANGE,
    RED,
    WHITE,
    YELLOW,
    Builder,
    Color,
)


def _legs(b: Builder, x: float, y: float, height: float, top: float, color: Color) -> None:
    for sx in (-1, 1):
        for sy in (-1, 1):
            b.cylinder((sx * x, sy * y, top - height / 2), 0.11, height, color)


def _wheels(b: Builder, xs: tuple[float, ...], y: float, z: float, radius: float) -> None:
    for x in xs:
        for side in (-1, 1):
            b.cylinder((x, side * y, z), radius, 0.14, BLACK, axis="y")
            b.cylinder((x, side * (y + 0.05), z), 0.45 * radius, 0.08, WHITE, axis="y")


def snowman(b: Builder) -> None:
    low, mid, top = b.v(0.48), b.v(0.36), b.v(0.26)
    b.ball((0, 0, 0), low)
    z_mid = 0.85 * low + 0.7 * mid
    b.ball((0, 0, z_mid), mid)
    z_top = z_mid + 0.8 * mid + 0.7 * top
    b.ball((0, 0, z_top), top)
    b.cylinder((0, 0, z_top + 0.8 * top), 1.1 * top, 0.05, BLACK)
    b.cylinder((0, 0, z_top + 0.8 * top + 0.15), 0.7 * top, b.v(0.3), BLACK)
    b.cone((0.9 * top, 0, z_top), 0.08, 0.32, ORANGE, axis="x")
    b.eyes(0.9 * top, 0.1, z_top + 0.1)
    for k in (-0.14, 0.12):
        b.ball((0.97 * mid, 0, z_mid + k), 0.09, BLACK)
    b.ring((0, 0, z_mid + 0.7 * mid), 0.75 * mid, 0.07, RED)
    b.box((1.02 * mid, 0.16, z_mid + 0.2), (0.08, 0.14, 0.42), RED)  # the end of the scarf
    for side in (-1, 1):
        b.cylinder((0, side * (mid + 0.2), z_mid + 0.06), 0.04, 0.5, BROWN, axis="y")


def robot(b: Builder) -> None:
    w, h, d = b.v(0.42), b.v(0.7), b.v(0.28)
    b.box((0, 0, 0), (2 * d, 2 * w, h))
    head = b.v(0.3)
    b.box((0, 0, h / 2 + head + 0.04), (1.5 * head, 2 * head, 1.6 * head), DARK)
    b.eyes(0.75 * head, 0.14, h / 2 + head + 0.1, 0.09, YELLOW)
    b.box((0, 0, h / 2 + 2 * head), (0.05, 0.05, 0.3), DARK)
    b.ball((0, 0, h / 2 + 2 * head + 0.18), 0.08, RED)
    b.box((d, 0, 0.05), (0.04, w, 0.36 * h), WHITE)
    for side in (-1, 1):
        b.box((0, side * (w + 0.12), 0.0), (0.18, 0.16, 0.85 * h), DARK)
        b.box((0, side * 0.5 * w, -h / 2 - 0.2), (0.24, 0.24, 0.4), DARK)
        b.box((0.06, side * 0.5 * w, -h / 2 - 0.4), (0.4, 0.28, 0.12), BLACK)


def duck(b: Builder) -> None:
    body, head = b.v(0.5), b.v(0.27)
    b.ball((0, 0, 0), (1.25 * body, 0.85 * body, 0.75 * body))
    b.cone((-0.9 * body, 0, 0.1), 0.2, 0.45, axis="x")
    b.ball((-1.15 * body, 0, 0.22), (0.25, 0.16, 0.14))
    b.ball((0.75 * body, 0, 0.62), head)
    b.ball((0.65 * body, 0, 0.4), (0.2, 0.2, 0.25))
    b.ball((0.75 * body + head + 0.06, 0, 0.58), (0.18, 0.14, 0.06), ORANGE)
    b.eyes(0.75 * body + 0.8 * head, 0.14, 0.72)
    for side in (-1, 1):
        b.ball((-0.1, side * 0.8 * body, 0.05), (0.35, 0.08, 0.2), WHITE)


def rocket(b: Builder) -> None:
    r, h = b.v(0.27), b.v(1.0)
    b.cylinder((0, 0, 0), r, h)
    b.cone((0, 0, h / 2), r, b.v(0.5), RED)
    b.cylinder((0, 0, -h / 2 - 0.06), 0.7 * r, 0.14, DARK)
    for side in (-1, 1):
        b.box((0, side * (r + 0.12), -h / 2 + 0.12), (0.06, 0.3, 0.4), DARK)
    b.box((-r - 0.16, 0, -0.1), (0.4, 0.08, 0.85 * h), DARK)  # one tall fin, at the back
    b.cylinder((0.95 * r, 0, 0.24), 0.19, 0.12, WHITE, axis="x")
    b.cylinder((0.95 * r + 0.05, 0, 0.24), 0.13, 0.08, GLASS, axis="x")
    b.box((0.98 * r, 0, -0.22 * h), (0.08, 0.26, 0.4), WHITE)


def car(b: Builder) -> None:
    length, w, h = b.v(0.85), b.v(0.42), b.v(0.3)
    b.box((0, 0, 0), (2 * length, 2 * w, h))
    b.box((-0.12 * length, 0, h / 2 + 0.15), (length, 1.7 * w, 0.3), GLASS)
    b.box((-0.12 * length, 0, h / 2 + 0.31), (0.9 * length, 1.6 * w, 0.06))
    _wheels(b, (-0.58 * length, 0.58 * length), w, -h / 2, b.v(0.22))
    for side in (-1, 1):
        b.ball((length, side * 0.62 * w, 0.04), 0.09, YELLOW)
        b.box((-length, side * 0.62 * w, 0.04), (0.05, 0.16, 0.12), RED)


def truck(b: Builder) -> None:
    length, w, h = b.v(0.55), b.v(0.4), b.v(0.65)
    b.box((-0.35, 0, 0.1), (2 * length, 2 * w, h + 0.1))
    cab_x = length - 0.35 + 0.24
    b.box((cab_x, 0, 0.0), (0.44, 1.9 * w, h - 0.05), DARK)
    b.box((cab_x + 0.22, 0, 0.14), (0.04, 1.5 * w, 0.24), GLASS)
    for side in (-1, 1):
        b.ball((cab_x + 0.22, side * 0.6 * w, -0.16), 0.07, YELLOW)
    _wheels(b, (-length, cab_x), w, -h / 2, b.v(0.2))


def train(b: Builder) -> None:
    r, length = b.v(0.28), b.v(1.0)
    b.cylinder((0.12, 0, 0), r, length, axis="x")
    b.box((-length / 2 - 0.1, 0, 0.12), (0.5, 2.3 * r, 0.8))
    b.box((-length / 2 - 0.1, 0, 0.56), (0.6, 2.6 * r, 0.08), DARK)
    b.box((0, 0, -r - 0.04), (length + 0.7, 1.7 * r, 0.12), DARK)
    b.cylinder((0.12 + 0.36 * length, 0, r + 0.15), 0.1, b.v(0.36), BLACK)
    b.ball((0, 0, r), 0.14, YELLOW)
    b.cylinder((0.13 + length / 2, 0, 0), 0.8 * r, 0.04, BLACK, axis="x")
    b.ball((0.15 + length / 2, 0, 0.12), 0.08, YELLOW)
    _wheels(b, (-0.5 * length, 0.05, 0.5 * length), 0.85 * r, -r - 0.12, 0.17)


def airplane(b: Builder) -> None:
    r, length, span = b.v(0.17), b.v(1.5), b.v(0.8)
    b.ball((0, 0, 0), (length / 2, r, r))
    b.box((0.1, 0, -0.02), (0.34, 2 * span, 0.07))
    b.box((-0.42 * length, 0, 0.06), (0.2, 0.66, 0.06))
    b.box((-0.43 * length, 0, 0.24), (0.22, 0.06, 0.4), RED)
    b.ball((0.3 * length, 0, 0.1), (0.16, 0.11, 0.1), GLASS)
    for side in (-1, 1):
        b.cylinder((0.2, side * 0.45 * span, -0.1), 0.09, 0.3, DARK, axis="x")
    b.ball((0.49 * length, 0, 0), 0.09, BLACK)


def helicopter(b: Builder) -> None:
    r, tail = b.v(0.42), b.v(0.8)
    b.ball((0.15, 0, 0), (1.2 * r, r, r))
    b.ball((0.15 + 0.55 * r, 0, 0.06), (0.75 * r, 0.82 * r, 0.75 * r), GLASS)
    b.cylinder((-tail / 2 - 0.2, 0, 0.1), 0.09, tail, axis="x")
    b.box((-tail - 0.15, 0, 0.22), (0.18, 0.06, 0.4), RED)
    b.cylinder((0.1, 0, r + 0.06), 0.05, 0.2, DARK)
    b.box((0.1, 0, r + 0.16), (b.v(1.5), 0.1, 0.03), BLACK)
    b.box((0.1, 0, r + 0.16), (0.1, b.v(1.5), 0.03), BLACK)
    for side in (-1, 1):
        b.box((0.15, side * 0.8 * r, -r - 0.08), (0.9, 0.06, 0.06), DARK)
        b.box((0.15, side * 0.7 * r, -r + 0.06), (0.06, 0.06, 0.3), DARK)


def boat(b: Builder) -> None:
    length, w, h = b.v(0.75), b.v(0.36), b.v(0.34)
    b.box((-0.15, 0, 0), (1.6 * length, 2 * w, h))
    b.cone((0.65 * length - 0.16, 0, 0.0), min(w, h) * 0.98, 0.55 * length, axis="x")
    b.box((-0.15, 0, h / 2), (1.66 * length, 2.1 * w, 0.06), BROWN)
    b.box((-0.25, 0, h / 2 + 0.18), (0.6 * length, 1.3 * w, 0.34), WHITE)
    b.box((-0.25 + 0.3 * length, 0, h / 2 + 0.22), (0.04, 0.9 * w, 0.14), GLASS)
    b.cylinder((-0.4, 0, h / 2 + 0.5), 0.11, b.v(0.36), RED)
    b.cylinder((-0.4, 0, h / 2 + 0.68), 0.12, 0.08, BLACK)


def bear(b: Builder) -> None:
    body, head = b.v(0.42), b.v(0.33)
    b.ball((0, 0, 0), (0.9 * body, body, 1.1 * body))
    b.ball((0.5 * body, 0, -0.02), (0.48 * body, 0.62 * body, 0.75 * body), BEIGE)
    z = body + 0.75 * head
    b.ball((0.03, 0, z), head)
    b.ball((0.03 + 0.85 * head, 0, z - 0.08), (0.12, 0.15, 0.11), BEIGE)
    b.ball((0.03 + 0.85 * head + 0.11, 0, z - 0.04), 0.05, BLACK)
    b.eyes(0.03 + 0.88 * head, 0.13, z + 0.09)
    for side in (-1, 1):
        b.ball((0, side * 0.75 * head, z + 0.75 * head), 0.13)
        b.ball((0.12, side * (body + 0.04), 0.18), (0.14, 0.16, 0.26))
        b.ball((0.25, side * 0.6 * body, -1.0 * body), (0.26, 0.17, 0.17))


def cat(b: Builder) -> None:
    length, r, head = b.v(0.5), b.v(0.28), b.v(0.29)
    b.ball((0, 0, 0), (1.15 * length, r, r))
    _legs(b, 0.65 * length, 0.6 * r, b.v(0.4), -0.12, MAIN)
    b.ball((length + 0.12, 0, 0.3), head)
    for side in (-1, 1):
        b.cone((length + 0.1, side * 0.17, 0.3 + 0.75 * head), 0.11, 0.24)
    b.eyes(length + 0.12 + 0.88 * head, 0.12, 0.36, 0.05, YELLOW)
    b.ball((length + 0.12 + 0.95 * head, 0, 0.24), 0.06, WHITE)
    for k in range(5):
        b.ball((-1.1 * length - 0.05 * k, 0, 0.08 + 0.13 * k), 0.08, MAIN if k < 3 else WHITE)


def penguin(b: Builder) -> None:
    r, h = b.v(0.4), b.v(0.62)
    b.ball((0, 0, 0), (0.9 * r, r, h))
    b.ball((0.32 * r, 0, -0.06), (0.68 * r, 0.74 * r, 0.84 * h), WHITE)
    z = h + 0.06
    head = b.v(0.27)
    b.ball((0, 0, z), head)
    b.cone((0.85 * head, 0, z - 0.02), 0.09, 0.26, ORANGE, axis="x")
    b.eyes(0.86 * head, 0.12, z + 0.08, 0.06, WHITE)
    for side in (-1, 1):
        b.ball((0, side * (r + 0.02), 0.05), (0.14, 0.08, 0.36))
        b.ball((0.16, side * 0.2, -h), (0.22, 0.14, 0.07), ORANGE)


def fish(b: Builder) -> None:
    length, r = b.v(0.6), b.v(0.38)
    b.ball((0, 0, 0), (length, 0.55 * r, r))
    b.box((-length - 0.1, 0, 0.14), (0.34, 0.09, 0.2), ORANGE, tilt_deg=35)
    b.box((-length - 0.1, 0, -0.14), (0.34, 0.09, 0.2), ORANGE, tilt_deg=-35)
    b.box((-0.05, 0, r + 0.06), (0.5, 0.07, 0.22), ORANGE)
    b.eyes(0.66 * length, 0.36 * r, 0.1, 0.09, WHITE)
    b.eyes(0.72 * length, 0.42 * r, 0.1, 0.05, BLACK)
    b.ball((0.97 * length, 0, -0.06), (0.07, 0.12, 0.05), RED)


def snail(b: Builder) -> None:
    r = b.v(0.42)
    b.ball((0, 0, -0.3), (b.v(0.85), 0.22, 0.17), BEIGE)
    b.cylinder((-0.15, 0, 0.12), r, 0.36, axis="y")
    for side in (-1, 1):
        b.cylinder((-0.15, side * 0.19, 0.12), 0.62 * r, 0.05, WHITE, axis="y")
        b.cylinder((-0.15, side * 0.22, 0.12), 0.3 * r, 0.05, MAIN, axis="y")
        b.box((0.78, side * 0.1, 0.1), (0.05, 0.05, 0.4), BEIGE)
        b.ball((0.78, side * 0.1, 0.32), 0.08, BLACK)
    b.ball((0.72, 0, -0.12), (0.18, 0.18, 0.2), BEIGE)


def turtle(b: Builder) -> None:
    r, h = b.v(0.58), b.v(0.4)
    skin = (0.55, 0.70, 0.35)
    b.ball((0, 0, 0.05), (1.1 * r, 0.95 * r, h))
    b.cylinder((0, 0, -0.02), 0.98 * r, 0.12, BROWN)
    b.ball((r + 0.28, 0, 0.12), (0.22, 0.17, 0.17), skin)
    b.eyes(r + 0.42, 0.1, 0.2)
    b.ball((-1.15 * r, 0, -0.06), (0.14, 0.06, 0.06), skin)
    for x in (-1, 1):
        for y in (-1, 1):
            b.ball((x * 0.75 * r, y * 0.75 * r, -0.18), (0.19, 0.16, 0.16), skin)


def elephant(b: Builder) -> None:
    length, r = b.v(0.5), b.v(0.4)
    b.ball((0, 0, 0), (1.2 * length, r, r))
    _legs(b, 0.55 * length, 0.5 * r, b.v(0.6), -0.15, MAIN)
    head_x = 1.15 * length
    b.ball((head_x, 0, 0.22), (0.3, 0.29, 0.3))
    for k in range(6):
        b.ball((head_x + 0.26 + 0.035 * k, 0, 0.1 - 0.11 * k), 0.11 - 0.008 * k)
    for side in (-1, 1):
        b.ball((head_x - 0.08, side * 0.36, 0.24), (0.06, 0.22, 0.28), DARK)
        b.cone((head_x + 0.2, side * 0.14, 0.02), 0.05, 0.28, WHITE, axis="x")
    b.eyes(head_x + 0.26, 0.14, 0.32)
    b.box((-1.25 * length, 0, 0.0), (0.05, 0.05, 0.35), DARK)


def rabbit(b: Builder) -> None:
    body, head = b.v(0.42), b.v(0.29)
    b.ball((0, 0, 0), (1.05 * body, 0.85 * body, body))
    b.ball((0.5 * body, 0, 0.95 * body), head)
    for side in (-1, 1):
        b.ball((0.4 * body, side * 0.13, 0.95 * body + 0.5), (0.07, 0.09, b.v(0.34)))
        b.ball((0.47 * body, side * 0.13, 0.95 * body + 0.48), (0.05, 0.05, 0.24), WHITE)
        b.ball((0.8 * body, side * 0.22, -0.85 * body), (0.2, 0.12, 0.1))
    b.ball((-1.05 * body, 0, -0.12), 0.16, WHITE)
    b.eyes(0.5 * body + 0.86 * head, 0.12, 0.95 * body + 0.07)
    b.ball((0.5 * body + 0.98 * head, 0, 0.95 * body - 0.05), 0.05, RED)


def ladybug(b: Builder) -> None:
    r, h = b.v(0.62), b.v(0.42)
    b.ball((0, 0, 0), (1.05 * r, 0.92 * r, h))
    b.cylinder((0, 0, -0.08), 0.85 * r, 0.1, BLACK)
    b.ball((r, 0, 0.02), (0.24, 0.28, 0.22), BLACK)
    b.eyes(r + 0.2, 0.14, 0.12, 0.08, WHITE)
    b.box((0, 0, 0.52 * h), (1.62 * r, 0.05, h * 0.96), BLACK)
    for x, y in ((0.4, 0.5), (-0.1, 0.55), (-0.6, 0.42)):
        for side in (-1, 1):
            z = h * (1 - (x / 1.05) ** 2 - (y / 0.92) ** 2) ** 0.5
            b.ball((x * r, side * y * r, z), 0.12, BLACK)
    for x in (-0.5, 0.0, 0.5):
        for side in (-1, 1):
            b.box((x * r, side * 0.9 * r, -0.2), (0.07, 0.2, 0.18), BLACK)
    for side in (-1, 1):
        b.box((r + 0.1, side * 0.12, 0.3), (0.04, 0.04, 0.3), BROWN)
    b.box((-1.03 * r, 0, 0.0), (0.06, 0.2, 0.1), DARK)
