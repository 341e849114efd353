# SPDX-License-Identifier: Apache-2.0
"""A mesh with vertex colours as one binary glTF 2.0 file (Khronos, "glTF 2.0 Specification").

Our own writer, since trimesh's stores colours with 8 linear bits (dark shades in steps that show)
and, with vertex colours, no material: glTF's own is a mirror (metallic 1), which is black where
nothing is reflected.
"""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np

ROUGH = 0.9  # plaster, not plastic: the colours already hold the light of the pictures

FLOAT, USHORT, UINT = 5126, 5123, 5125
VERTICES, TRIANGLES = 34962, 34963


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


def glb(
    vertices: np.ndarray, faces: np.ndarray, linear: np.ndarray, normals: np.ndarray, name: str
) -> bytes:
    """The file of vertices [V, 3] (metres, y up), faces [F, 3], ``linear`` colours [V, 3] in
    [0, 1] and unit normals [V, 3]."""
    position = np.ascontiguousarray(vertices, "<f4")
    opaque = np.concatenate([linear, np.ones((len(linear), 1))], axis=1)
    colour = np.round(np.clip(opaque, 0.0, 1.0) * 65535).astype("<u2")
    index = np.ascontiguousarray(faces.reshape(-1), "<u4")
    parts = [
        (position, VERTICES, FLOAT, "VEC3"),
        (np.ascontiguousarray(normals, "<f4"), VERTICES, FLOAT, "VEC3"),
        (colour, VERTICES, USHORT, "VEC4"),
        (index, TRIANGLES, UINT, "SCALAR"),
    ]
    views, accessors, body = [], list[dict[str, Any]](), b""
    for data, target, component, kind in parts:
        views.append(
            {"buffer": 0, "byteOffset": len(body), "byteLength": data.nbytes, "target": target}
        )
        accessors.append(
            {"bufferView": len(views) - 1, "componentType": component, "count": len(data),
             "type": kind}
        )  # fmt: skip
        body += data.tobytes()  # every size is a multiple of four
    accessors[0] |= {"min": position.min(0).tolist(), "max": position.max(0).tolist()}
    accessors[2]["normalized"] = True
    attributes = {"POSITION": 0, "NORMAL": 1, "COLOR_0": 2}
    tree = {
        "asset": {"version": "2.0", "generator": "sdi-gs"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": name}],
        "meshes": [
            {"name": name, "primitives": [{"attributes": attributes, "indices": 3, "material": 0}]}
        ],
        "materials": [
            {
                "name": "vertex colours",
                "pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": ROUGH},
            }
        ],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": len(body)}],
    }
    text = json.dumps(tree, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    size = 12 + 8 + len(text) + 8 + len(body)
    return b"".join([
        struct.pack("<4sII", b"glTF", 2, size), struct.pack("<I4s", len(text), b"JSON"), text,
        struct.pack("<I4s", len(body), b"BIN\0"), body,
    ])  # fmt: skip
