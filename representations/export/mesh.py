# SPDX-License-Identifier: Apache-2.0
"""Triangle meshes as files, with colours at the vertices or with a texture: .glb, .obj and .ply.

A .glb is y-up as its standard says, with the front of the object towards +z; .obj and .ply follow,
as most modelling programs expect. Colours are what the renderer displays (sRGB values), and so is a
texture. glTF wants vertex colours linear, so the .glb holds them linearised, with 16 bits; its
material is rough and no metal, and its normals are smooth. The other two say in a remark which axis
is up. A texture lies inside a .glb, and beside an .obj with its .mtl.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..files import write_atomically, write_bytes
from ..points import to_linear
from .gltf import Part, glb, smooth_normals

KINDS = ("glb", "obj", "ply")
TEXTURED = ("glb", "obj")  # those that can hold a texture

TO_FILE = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
"""Rotation from our world (z up, front +x) to the file's (y up, front +z)."""


class MeshError(ValueError):
    """No mesh can be made; the message says why and what to try."""


@dataclass(frozen=True)
class Skin:
    """A texture, and where on it each vertex lies."""

    uv: np.ndarray  # [V, 2] float64 in [0, 1]; (0, 0) is the upper left corner
    texture: np.ndarray  # [H, W, 3] float32 in [0, 1], as displayed

    def png(self) -> bytes:
        """The texture as a file, 8 bits a channel."""
        from PIL import Image

        stream = io.BytesIO()
        held = (np.clip(self.texture, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
        Image.fromarray(held).save(stream, "PNG")
        return stream.getvalue()


@dataclass(frozen=True)
class Mesh:
    """Triangles in our world frame."""

    vertices: np.ndarray  # [V, 3] float32, world units
    faces: np.ndarray  # [F, 3] int64, counter-clockwise seen from outside
    colors: np.ndarray  # [V, 3] float32 in [0, 1], as displayed
    skin: Skin | None = None  # instead of the colours, in formats that can hold it
    normals: np.ndarray | None = None  # [V, 3] of unit length; None: of the faces around a vertex

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

    def normals_or_smooth(self) -> np.ndarray:
        """Unit normals [V, 3]: its own, or those of the faces around each vertex."""
        if self.normals is not None:
            return self.normals
        vertices, faces, copies = self.sewn()
        unit: np.ndarray = smooth_normals(vertices, faces)[copies]
        return unit

    def sewn(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The surface without its seams: vertices in one place are one. Vertices [V', 3], faces
        [F, 3] of them, and which of them each vertex [V] is."""
        if self.skin is None:
            return self.vertices, self.faces, np.arange(len(self.vertices))
        places, copies = np.unique(self.vertices, axis=0, return_inverse=True)
        copies = copies.reshape(-1)
        return places, copies[self.faces], copies


def placed(mesh: Mesh, height: float | None = None, pivot: str | None = None) -> Mesh:
    """``height`` tall, in the units of the file, and with its origin at ``pivot``: "ground" below
    the middle of its bounding box at its lowest vertex, "centre" in the middle of that box; None
    leaves either as it is. Raises MeshError for a flat mesh that is to have a height."""
    vertices = mesh.vertices.astype(np.float64)
    if height is not None:
        tall = float(np.ptp(vertices[:, 2]))
        if not tall > 0.0:
            raise MeshError("the mesh is flat: it cannot be scaled to a height; leave that out")
        vertices = vertices * (height / tall)
    low, high = vertices.min(0), vertices.max(0)
    if pivot is not None:
        origin = 0.5 * (low + high)
        if pivot == "ground":
            origin[2] = low[2]
        vertices = vertices - origin
    return replace(mesh, vertices=vertices.astype(np.float32))


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


def companions(path: Path) -> tuple[Path, Path]:
    """The files that a textured .obj has beside it: its material and its picture."""
    return path.with_suffix(".mtl"), path.with_suffix(".png")


def write_mesh(path: str | Path, mesh: Mesh, kind: str, name: str = "") -> int:
    """Write as "glb", "obj" or "ply"; returns the number of faces. Each file is written whole or
    not at all; the picture and material of an "obj" (:func:`companions`) come before it. ``name``:
    of the object inside the file; default that of the file. Raises MeshError for an empty mesh and
    for a texture in a "ply", ValueError for another kind."""
    path = Path(path)
    if kind not in KINDS:
        raise ValueError(f"mesh format {kind!r} is not one of {', '.join(KINDS)}")
    if mesh.skin is not None and kind not in TEXTURED:
        raise MeshError(f"a .{kind} holds no texture: write {' or '.join(TEXTURED)}")
    mesh.check()
    vertices = mesh.vertices @ TO_FILE.T
    name = name or path.stem
    if kind == "glb":
        raw = _glb(vertices, mesh, name)
    elif mesh.skin is not None:
        raw = _textured_obj(path, vertices, mesh, name)
    else:
        raw = _by_trimesh(vertices, mesh, kind)

    def write(stream: BinaryIO) -> None:
        stream.write(raw)

    write_atomically(path, write)
    return len(mesh.faces)


def _glb(vertices: np.ndarray, mesh: Mesh, name: str) -> bytes:
    part = Part(vertices, mesh.faces, mesh.normals_or_smooth() @ TO_FILE.T, name)
    if mesh.skin is not None:
        return glb(part, uv=mesh.skin.uv, png=mesh.skin.png())
    return glb(part, linear=to_linear(np.clip(mesh.colors, 0.0, 1.0)))


def _textured_obj(path: Path, vertices: np.ndarray, mesh: Mesh, name: str) -> bytes:
    """The text of an .obj, after its material and its picture were written beside it."""
    assert mesh.skin is not None
    material, picture = companions(path)
    write_bytes(picture, mesh.skin.png())
    told = f"newmtl surface\nKa 1 1 1\nKd 1 1 1\nKs 0 0 0\nillum 1\nmap_Kd {picture.name}\n"
    write_bytes(material, told.encode())
    uv = mesh.skin.uv * [1.0, -1.0] + [0.0, 1.0]  # an .obj counts rows from below
    name = " ".join(name.split())
    lines = ["# Vertical Axis: y", f"mtllib {material.name}", f"o {name}"]
    rows = (("v", vertices, "%.9g"), ("vt", uv, "%.7f"),
            ("vn", mesh.normals_or_smooth() @ TO_FILE.T, "%.5f"))  # fmt: skip
    for word, values, form in rows:
        pattern = " ".join([word, *[form] * values.shape[1]])
        lines += [pattern % tuple(row) for row in values.tolist()]
    lines.append("usemtl surface")
    lines += ["f " + " ".join(f"{i}/{i}/{i}" for i in row) for row in (mesh.faces + 1).tolist()]
    return ("\n".join(lines) + "\n").encode()


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
