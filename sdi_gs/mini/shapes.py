# SPDX-License-Identifier: Apache-2.0
"""A small modelling kit: coloured primitives with proportions that vary.

Units: an object fits a ball of radius about 0.75 around the origin after
:meth:`Builder.finish`; +z is up and the front faces +x (the package's camera convention).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

Vec3 = tuple[float, float, float]
Color = str | Vec3  # "main" is the colour that the caption names; otherwise RGB in [0, 1]

MAIN = "main"
BLACK: Vec3 = (0.10, 0.10, 0.12)
DARK: Vec3 = (0.28, 0.28, 0.31)
WHITE: Vec3 = (0.93, 0.93, 0.90)
BEIGE: Vec3 = (0.90, 0.80, 0.62)
BROWN: Vec3 = (0.45, 0.28, 0.15)
ORANGE: Vec3 = (0.97, 0.55, 0.10)
YELLOW: Vec3 = (0.98, 0.85, 0.25)
RED: Vec3 = (0.80, 0.10, 0.10)
GLASS: Vec3 = (0.62, 0.82, 0.93)

_AXES = {
    "x": np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]]),
    "y": np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
    "z": np.eye(3),
}  # rotations that take +z to the named axis


@functools.cache
def _unit(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and faces of a unit primitive; trimesh builds it once."""
    import trimesh

    if kind == "box":
        mesh = trimesh.creation.box(extents=(1, 1, 1))
    elif kind == "ball":
        mesh = trimesh.creation.icosphere(subdivisions=3, radius=1.0)
    elif kind == "cylinder":
        mesh = trimesh.creation.cylinder(radius=1.0, height=1.0, sections=40)
    elif kind == "cone":
        mesh = trimesh.creation.cone(radius=1.0, height=1.0, sections=40)
    elif kind == "prism":  # a gable roof: triangle in y-z, extruded along x
        vertices = np.array(
            [[x, y, z] for x in (-0.5, 0.5) for y, z in ((-0.5, 0), (0.5, 0), (0, 1))]
        )
        faces = np.array(
            [[0, 2, 1], [3, 4, 5], [0, 1, 4], [0, 4, 3], [1, 2, 5], [1, 5, 4], [2, 0, 3], [2, 3, 5]]
        )
        return vertices, faces
    else:
        raise AssertionError(kind)
    return np.asarray(mesh.vertices), np.asarray(mesh.faces)


@dataclass(frozen=True)
class Solid:
    """A triangle mesh whose faces carry colours; what the ray caster draws."""

    vertices: np.ndarray  # [V, 3]
    faces: np.ndarray  # [F, 3]
    face_part: np.ndarray  # [F] index into ``colors``
    colors: tuple[Color, ...]

    def palette(self, main: Vec3) -> np.ndarray:
        """RGB of every part, [P, 3], with ``main`` put in."""
        return np.array([main if isinstance(c, str) else c for c in self.colors], dtype=np.float64)


class Builder:
    """Collects parts. With ``rng=None`` every proportion takes its central value."""

    def __init__(self, rng: np.random.Generator | None, spread: float = 0.07) -> None:
        self._rng = rng
        self._spread = spread
        self._vertices: list[np.ndarray] = []
        self._faces: list[np.ndarray] = []
        self._parts: list[np.ndarray] = []
        self._colors: list[Color] = []

    def v(self, value: float) -> float:
        """``value``, varied log-normally (cut at two deviations)."""
        if self._rng is None:
            return value
        return value * math.exp(self._spread * float(np.clip(self._rng.normal(), -2.0, 2.0)))

    def _add(
        self, kind: str, scale: Vec3, center: Vec3, color: Color, rotation: np.ndarray
    ) -> None:
        vertices, faces = _unit(kind)
        offset = sum(len(v) for v in self._vertices)
        self._vertices.append(vertices * np.array(scale) @ rotation.T + np.array(center))
        self._faces.append(faces + offset)
        self._parts.append(np.full(len(faces), len(self._colors)))
        self._colors.append(color)

    def box(self, center: Vec3, size: Vec3, color: Color = MAIN, tilt_deg: float = 0.0) -> None:
        """``tilt_deg`` turns about +y, so that a positive tilt lowers the front."""
        a = math.radians(tilt_deg)
        turn = np.array([[math.cos(a), 0, math.sin(a)], [0, 1, 0], [-math.sin(a), 0, math.cos(a)]])
        self._add("box", size, center, color, turn)

    def ball(self, center: Vec3, radii: float | Vec3, color: Color = MAIN) -> None:
        scale = (radii, radii, radii) if isinstance(radii, int | float) else radii
        self._add("ball", scale, center, color, np.eye(3))

    def cylinder(
        self, center: Vec3, radius: float, height: float, color: Color = MAIN, axis: str = "z"
    ) -> None:
        self._add("cylinder", (radius, radius, height), center, color, _AXES[axis])

    def cone(
        self, base: Vec3, radius: float, height: float, color: Color = MAIN, axis: str = "z"
    ) -> None:
        self._add("cone", (radius, radius, height), base, color, _AXES[axis])

    def roof(self, base: Vec3, size: Vec3, color: Color) -> None:
        self._add("prism", size, base, color, np.eye(3))

    def ring(
        self,
        center: Vec3,
        radius: float,
        thickness: float,
        color: Color = MAIN,
        axis: str = "z",
        stretch: float = 1.0,
    ) -> None:
        """A torus; ``stretch`` scales it along its second in-plane direction."""
        import trimesh

        mesh = trimesh.creation.torus(radius, thickness, major_sections=28, minor_sections=10)
        vertices = np.asarray(mesh.vertices) @ _AXES[axis].T
        vertices = vertices * np.array([1.0, 1.0, stretch]) + np.array(center)
        offset = sum(len(v) for v in self._vertices)
        self._vertices.append(vertices)
        self._faces.append(np.asarray(mesh.faces) + offset)
        self._parts.append(np.full(len(mesh.faces), len(self._colors)))
        self._colors.append(color)

    def eyes(
        self, x: float, gap: float, z: float, radius: float = 0.045, color: Color = BLACK
    ) -> None:
        for side in (-1, 1):
            self.ball((x, side * gap, z), radius, color)

    def finish(self, size: float = 0.60) -> Solid:
        """Centre the bounding box; scale so that its longest half-diagonal axis is ``size``.

        The scale uses the mean of the largest half-extent and of the bounding sphere, which keeps
        long thin and compact objects at a similar apparent size.
        """
        vertices = np.concatenate(self._vertices)
        low, high = vertices.min(axis=0), vertices.max(axis=0)
        vertices = vertices - 0.5 * (low + high)
        extent = 0.5 * float((high - low).max())
        sphere = float(np.linalg.norm(vertices, axis=1).max())
        vertices = vertices * (size / (0.5 * (extent + sphere)))
        return Solid(
            vertices, np.concatenate(self._faces), np.concatenate(self._parts), tuple(self._colors)
        )
