# SPDX-License-Identifier: Apache-2.0
"""A mesh with vertex colours or a texture as one binary glTF 2.0 file (Khronos, "glTF 2.0
Specification").

Our own writer, since trimesh's stores colours with 8 linear bits (dark shades in steps that show)
and, with vertex colours, no material: glTF's own is a mirror (metallic 1), which is black where
nothing is reflected.
"""

from __future__ import annotations

import json
import struct
from typing import Any, NamedTuple

import numpy as np

ROUGH = 0.9  # plaster, not plastic: the colours already hold the light of the pictures

FLOAT, USHORT, UINT = 5126, 5123, 5125
VERTICES, TRIANGLES = 34962, 34963
LINEAR, MIPMAPS, TO_THE_EDGE = 9729, 9987, 33071  # of a sampler


class Part(NamedTuple):
    """What every file holds."""

    vertices: np.ndarray  # [V, 3] metres, y up
    faces: np.ndarray  # [F, 3]
    normals: np.ndarray  # [V, 3] of unit length
    name: str  # of the object


def smooth_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit normals [V, 3]: of the faces around a vertex, by their area; any where there is none."""
    corners = vertices[faces].astype(np.float64)
    scale = np.abs(corners - corners[:, :1]).max(initial=0.0) or 1.0
    edges = (corners - corners[:, :1]) / scale  # squares of tiny and of huge edges stay in range
    weighted = np.cross(edges[:, 1], edges[:, 2])
    total = np.zeros((len(vertices), 3))
    for corner in range(3):
        for axis in range(3):
            total[:, axis] += np.bincount(
                faces[:, corner], weighted[:, axis], minlength=len(vertices)
            )
    length = np.linalg.norm(total, axis=1, keepdims=True)
    flat = length[:, 0] == 0
    total[flat], length[flat] = (0.0, 1.0, 0.0), 1.0
    unit: np.ndarray = (total / length).astype(np.float32)
    return unit


class _Body:
    """The bytes of a file, and what its tree says of them."""

    def __init__(self) -> None:
        self.raw, self.views, self.accessors = bytearray(), list[dict[str, Any]](), list[Any]()

    def add(self, data: bytes, target: int | None = None) -> int:
        """Append bytes from a multiple of four on; the number of their view."""
        self.raw += bytes(-len(self.raw) % 4)
        view = {"buffer": 0, "byteOffset": len(self.raw), "byteLength": len(data)}
        self.views.append(view if target is None else view | {"target": target})
        self.raw += data
        return len(self.views) - 1

    def array(self, values: np.ndarray, target: int, component: int, kind: str) -> int:
        """Append an array; the number of its accessor."""
        accessor = {"bufferView": self.add(values.tobytes(), target), "componentType": component,
                    "count": len(values), "type": kind}  # fmt: skip
        self.accessors.append(accessor)
        return len(self.accessors) - 1


def glb(
    part: Part,
    linear: np.ndarray | None = None,
    uv: np.ndarray | None = None,
    png: bytes = b"",
) -> bytes:
    """The file, with ``linear`` colours [V, 3] in [0, 1], or with the picture ``png`` and its
    coordinates ``uv`` [V, 2], (0, 0) the upper left corner."""
    body = _Body()
    position = np.ascontiguousarray(part.vertices, "<f4")
    attributes = {"POSITION": body.array(position, VERTICES, FLOAT, "VEC3")}
    body.accessors[0] |= {"min": position.min(0).tolist(), "max": position.max(0).tolist()}
    normals = np.ascontiguousarray(part.normals, "<f4")
    attributes["NORMAL"] = body.array(normals, VERTICES, FLOAT, "VEC3")
    surface: dict[str, Any] = {"metallicFactor": 0.0, "roughnessFactor": ROUGH}
    extra: dict[str, Any] = {}
    if linear is not None:
        opaque = np.concatenate([linear, np.ones((len(linear), 1))], axis=1)
        colour = np.round(np.clip(opaque, 0.0, 1.0) * 65535).astype("<u2")
        attributes["COLOR_0"] = body.array(colour, VERTICES, USHORT, "VEC4")
        body.accessors[-1]["normalized"] = True
    if uv is not None:
        where = np.ascontiguousarray(uv, "<f4")
        attributes["TEXCOORD_0"] = body.array(where, VERTICES, FLOAT, "VEC2")
        surface["baseColorTexture"] = {"index": 0}
        extra = _picture(body.add(png))
    index = body.array(
        np.ascontiguousarray(part.faces.reshape(-1), "<u4"), TRIANGLES, UINT, "SCALAR"
    )
    tree = {
        "asset": {"version": "2.0", "generator": "sdi-gs"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": part.name}],
        "meshes": [
            {
                "name": part.name,
                "primitives": [{"attributes": attributes, "indices": index, "material": 0}],
            }
        ],
        "materials": [
            {
                "name": "texture" if uv is not None else "vertex colours",
                "pbrMetallicRoughness": surface,
            }
        ],
        **extra,
        "accessors": body.accessors,
        "bufferViews": body.views,
        "buffers": [{"byteLength": len(body.raw)}],
    }
    return _packed(tree, bytes(body.raw))


def _picture(view: int) -> dict[str, Any]:
    """The parts of the tree that a texture adds; a viewer mixes its texels, also in small."""
    return {
        "textures": [{"sampler": 0, "source": 0}],
        "samplers": [
            {"magFilter": LINEAR, "minFilter": MIPMAPS, "wrapS": TO_THE_EDGE, "wrapT": TO_THE_EDGE}
        ],
        "images": [{"bufferView": view, "mimeType": "image/png", "name": "texture"}],
    }


def _packed(tree: dict[str, Any], body: bytes) -> bytes:
    """The tree and the bytes as one file."""
    text = json.dumps(tree, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    body += bytes(-len(body) % 4)
    size = 12 + 8 + len(text) + 8 + len(body)
    return b"".join([
        struct.pack("<4sII", b"glTF", 2, size), struct.pack("<I4s", len(text), b"JSON"), text,
        struct.pack("<I4s", len(body), b"BIN\0"), body,
    ])  # fmt: skip
