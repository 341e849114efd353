# SPDX-License-Identifier: Apache-2.0
"""Coloured triangle meshes as files: .glb, .obj and .ply.

A .glb is y-up as its standard says, with the front of the object towards +z; .obj and .ply follow,
as most modelling programs expect. Vertex colours are what the renderer displays (sRGB values);
glTF wants them linear, so the .glb holds them linearised, with 16 bits; its material is rough and
no metal, and its normals are smooth. The other two say in a remark which axis is up.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..files import write_atomically
from ..points import to_linear
from .gltf import glb, smooth_normals

KINDS = ("glb", "obj", "ply")

TO_FILE = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
"""Rotation from our world (z up, front +x) to the file's (y up, front +z)."""


class MeshError(ValueError):
    """No mesh can be made; the message says why and what to try."""


@dataclass(frozen=True)
class Mesh:
    """Triangles in our world frame."""

    vertices: np.ndarray  # [V, 3] float32, world units
    faces: np.ndarray  # [F, 3] int64, counter-clockwise seen from outside
    colors: np.ndarray  # [V, 3] float32 in [0, 1], as displayed

    def check(self) -> Mesh:
        """Itself; raises MeshError when there is nothing to write or a vertex is not finite."""
        if len(self.faces) == 0:
            raise MeshError(
                "the mesh has no faces: there is no surface at this level; train longer, or choose "
                "another threshold"
            )
        # As float32, which is what the files hold.
        for what, values in (("vertices", self.vertices), ("colors", self.colors)):
            with np.errstate(over="ignore"):
                broken = ~np.isfinite(np.asarray(values, np.float32)).all(axis=1)
            if bool(broken.any()):
                raise MeshError(
                    f"the mesh has {int(broken.sum())} {what} that are not finite, the first is "
                    f"row {int(broken.argmax())}"
                )
        if not 0 <= int(self.faces.min()) <= int(self.faces.max()) < len(self.vertices):
            raise MeshError(
                f"the mesh has faces of vertices {int(self.faces.min())} to "
                f"{int(self.faces.max())}, and {len(self.vertices)} vertices"
            )
        return self


def keep_large_parts(mesh: Mesh, share: float = 0.01) -> tuple[Mesh, int]:
    """Without connected parts of less than ``share`` of all faces; and how many parts remain."""
    import scipy.sparse as sparse
    from scipy.sparse.csgraph import connected_components

    edges = np.concatenate([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]]])
    n = len(mesh.vertices)
    graph = sparse.coo_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(n, n))
    _, part = connected_components(graph, directed=False)
    of_face = part[mesh.faces[:, 0]]
    sizes = np.bincount(of_face, minlength=int(part.max(initial=-1)) + 1)
    large = sizes >= max(1.0, share * len(mesh.faces))
    faces = mesh.faces[large[of_face]]
    used = np.unique(faces)
    renumber = np.full(n, -1)
    renumber[used] = np.arange(len(used))
    kept = Mesh(mesh.vertices[used], renumber[faces], mesh.colors[used])
    return kept, int(large.sum())


def write_mesh(path: str | Path, mesh: Mesh, kind: str, name: str = "") -> int:
    """Write as "glb", "obj" or "ply"; returns the number of faces. The file is written whole or
    not at all. ``name``: of the object inside a .glb; default that of the file. Raises MeshError
    for an empty mesh, ValueError for another kind."""
    if kind not in KINDS:
        raise ValueError(f"mesh format {kind!r} is not one of {', '.join(KINDS)}")
    mesh.check()
    vertices = mesh.vertices @ TO_FILE.T
    if kind == "glb":
        normals = smooth_normals(vertices, mesh.faces)
        linear = to_linear(np.clip(mesh.colors, 0.0, 1.0))
        raw = glb(vertices, mesh.faces, linear, normals, name or Path(path).stem)
    else:
        raw = _by_trimesh(vertices, mesh, kind)

    def write(stream: BinaryIO) -> None:
        stream.write(raw)

    write_atomically(path, write)
    return len(mesh.faces)


def _by_trimesh(vertices: np.ndarray, mesh: Mesh, kind: str) -> bytes:
    import trimesh

    rgba = np.concatenate([mesh.colors, np.ones((len(mesh.colors), 1))], axis=1)
    out = trimesh.Trimesh(
        vertices,
        mesh.faces,
        vertex_colors=(np.clip(rgba, 0, 1) * 255 + 0.5).astype(np.uint8),
        process=False,
    )
    data: Any = out.export(file_type=kind)
    raw = data.encode() if isinstance(data, str) else bytes(data)
    if kind == "obj":
        return b"# Vertical Axis: y\n" + raw
    first, form, rest = raw.split(b"\n", 2)
    return b"\n".join([first, form, b"comment Vertical Axis: y", rest])
