# SPDX-License-Identifier: Apache-2.0
"""Fewer triangles for the same surface, by fast-simplification (extra ``mesh``): edges collapse
where a quadric says that it matters least (Garland and Heckbert 1997)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..checks import pip_install
from .mesh import Mesh, MeshError

FEWEST = 4  # a closed surface has no fewer triangles


def _library() -> Any:
    try:
        import fast_simplification
    except ImportError as error:
        raise MeshError(
            "fewer faces need the package fast-simplification, which cannot be imported here "
            f"({error}): {pip_install('fast-simplification')}, or leave the number of faces out"
        ) from None
    return fast_simplification


def simplify(mesh: Mesh, faces: int) -> Mesh:
    """At most ``faces`` triangles; itself where it has no more already. Each vertex takes the
    colour of the nearest old one.

    Raises MeshError without the library, or when nothing would be left.
    """
    from scipy.spatial import cKDTree

    if len(mesh.faces) <= faces:
        return mesh
    library = _library()
    # In the same size for every shape: the library's own tolerances are absolute.
    centre = 0.5 * (mesh.vertices.min(0) + mesh.vertices.max(0)).astype(np.float64)
    scale = max(float(np.abs(mesh.vertices - centre).max()), 1e-300)
    unit = ((mesh.vertices - centre) / scale).astype(np.float64)
    points, corners = library.simplify(unit, mesh.faces.astype(np.int64), target_count=faces)
    if len(corners) < FEWEST:
        raise MeshError(f"{faces} faces leave nothing of this surface: give a larger number")
    _, nearest = cKDTree(unit).query(points)
    vertices = (np.asarray(points, np.float64) * scale + centre).astype(np.float32)
    return Mesh(vertices, np.asarray(corners, np.int64), mesh.colors[nearest]).check()
