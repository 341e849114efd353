# SPDX-License-Identifier: Apache-2.0
"""Rays against triangles, by Embree (Wald et al. 2014) on the CPU.

Embree says which triangle is met first; where on it is computed here in double precision, so that
neither the size nor the place of a shape costs digits. Nothing of this has a gradient.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

CHUNK = 2**20
"""Rays cast at once."""

TINY = 1e-300


class Hits(NamedTuple):
    """What each ray meets first."""

    face: np.ndarray  # [N] int64; -1 where it meets nothing
    weight: np.ndarray  # [N, 3] float64 of the corners of the face, sums to 1; 0 where nothing
    distance: np.ndarray  # [N] float64 along the direction, in its lengths; inf where nothing


class Caster:
    """Triangles, sorted for rays.

    Args:
        vertices: [V, 3], finite.
        faces: [F, 3], at least one.
    """

    def __init__(self, vertices: np.ndarray, faces: np.ndarray) -> None:
        corners = np.asarray(vertices, np.float64)[np.asarray(faces, np.int64)]  # [F, 3, 3]
        low, high = corners.min((0, 1)), corners.max((0, 1))
        self._centre = 0.5 * (low + high)
        self._scale = 1.0 / max(float((high - low).max()), TINY)
        self._corners = (corners - self._centre) * self._scale
        self._scene: Any = None

    @property
    def size(self) -> float:
        """The longest side of the box around the triangles."""
        return 1.0 / self._scale

    def _ready(self) -> Any:
        """Embree's scene, built for the first ray; it does not travel between processes."""
        if self._scene is None:
            from embreex.mesh_construction import TriangleMesh
            from embreex.rtcore_scene import EmbreeScene

            self._scene = EmbreeScene()
            TriangleMesh(self._scene, self._corners.astype(np.float32))
        return self._scene

    def first(self, origins: np.ndarray, directions: np.ndarray) -> Hits:
        """The first triangle of each ray from ``origins`` [N, 3] along ``directions`` [N, 3], from
        either side."""
        scene = self._ready()
        o = (np.asarray(origins, np.float64) - self._centre) * self._scale
        d = np.asarray(directions, np.float64)
        face = np.empty(len(o), np.int64)
        for first in range(0, len(o), CHUNK):
            part = slice(first, first + CHUNK)
            near, along = (np.ascontiguousarray(x[part], np.float32) for x in (o, d))
            face[part] = scene.run(near, along)
        met = np.flatnonzero(face >= 0)
        weight, distance = np.zeros((len(o), 3)), np.full(len(o), np.inf)
        if len(met):
            weight[met], distance[met] = _on_plane(self._corners[face[met]], o[met], d[met])
        return Hits(face, weight, distance / self._scale)

    def occluded(
        self, points: np.ndarray, eye: np.ndarray, tolerance: float, face: np.ndarray | None = None
    ) -> np.ndarray:
        """Whether something lies more than ``tolerance`` (world units) in front of each of
        ``points`` [N, 3], seen from ``eye`` [3]; [N] bool. A triangle of ``face`` [N] that is met
        does not hide its own point."""
        towards = np.asarray(points, np.float64) - eye
        length = np.linalg.norm(towards, axis=1)
        hits = self.first(np.broadcast_to(eye, towards.shape), towards / length[:, None])
        hidden: np.ndarray = hits.distance < length - tolerance
        return hidden if face is None else hidden & (hits.face != face)


def _on_plane(
    corners: np.ndarray, origins: np.ndarray, directions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weights [N, 3] of the corners [N, 3, 3] where rays meet the planes of their triangles, and
    the distance [N] (Moeller and Trumbore 1997)."""
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    across = np.cross(directions, second)
    scale = (first * across).sum(1)
    scale = np.where(np.abs(scale) < TINY, TINY, scale)
    away = origins - corners[:, 0]
    u = (away * across).sum(1) / scale
    over = np.cross(away, first)
    v = (directions * over).sum(1) / scale
    # Embree decides in single precision which triangle it is: at an edge a weight may leave [0, 1].
    weight = np.clip(np.stack([1.0 - u - v, u, v], axis=1), 0.0, 1.0)
    weight /= weight.sum(1, keepdims=True)
    distance: np.ndarray = (second * over).sum(1) / scale
    return weight, distance
