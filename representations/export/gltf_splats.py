# SPDX-License-Identifier: Apache-2.0
"""Splats as one binary glTF 2.0 file by KHR_gaussian_splatting; what it holds is told where it is
read, :mod:`..reading.gltf`. A program that does not know the extension shows coloured points.

Our own writer: of the packages on PyPI none writes the ratified extension (November 2026).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from ..cloud import SplatCloud
from ..files import write_atomically
from ..interface import Say, silent
from ..ops.constants import SH_DC
from ..reading.gltf import DISPLAY, EXTENSION, OPACITY, POINTS, ROTATION, SCALE, harmonics
from ..reading.gltf_file import BINARY_CHUNK, JSON_CHUNK, MAGIC, VERSION
from ..transfer import linear_of
from .layout import DEFAULT, Layout, require_scales, tell_cut

LOG_SCALES = (-87.0, 88.0)
"""Whose exponentials are neither 0 nor infinite in float32."""

LARGEST = 2**32 - 1  # bytes of a .glb
UP = "y"  # by the standard
IN_POINTS = "0 to 1: whole in the splats, cut in the points for programs that know no splats"

FLOAT, USHORT = 5126, 5123
VERTICES = 34962


def write_gltf_splats(
    path: str | Path, cloud: SplatCloud, layout: Layout = DEFAULT, say: Say = silent
) -> int:
    """Write splats of our world frame; returns how many rows the file has. Values are float32;
    ``say`` is told what the points for other programs cannot show.

    Raises ValueError for another ``layout.up`` than y, which is the standard's, when no splat is
    left or one does not fit; OSError when the disk refuses, and the old file survives.
    """
    if layout.up not in (None, UP):
        raise ValueError(f"up={layout.up}: a glTF file has y up by its standard; leave it out")
    cloud = layout.apply(cloud, UP)
    require_scales(cloud, *LOG_SCALES, "a glTF file")
    tell_cut(say, cloud.sh_dc, 0.5 / SH_DC + 1e-4, "colours", IN_POINTS)
    columns = list(_columns(cloud))
    tree, size = _tree(columns, Path(path).name.split(".")[0], len(cloud))
    text = json.dumps(tree, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    whole = 28 + len(text) + size
    if whole > LARGEST:
        raise ValueError(
            f"{len(cloud):,} splats need {whole:,} bytes, and a .glb has at most {LARGEST:,}: "
            "write a .ply, or add --sh-degree 0 or --max-splats"
        )

    def write(stream: BinaryIO) -> None:
        stream.write(struct.pack("<4sII", MAGIC, VERSION, whole))
        stream.write(struct.pack("<I4s", len(text), JSON_CHUNK) + text)
        stream.write(struct.pack("<I4s", size, BINARY_CHUNK))
        for _, column in columns:
            stream.write(np.ascontiguousarray(column).data)

    write_atomically(path, write, needed=whole)
    return len(cloud)


def _columns(cloud: SplatCloud) -> Iterator[tuple[str, np.ndarray]]:
    """Attributes as the file holds them; every size is a multiple of four bytes."""
    yield "POSITION", cloud.means.numpy()
    yield ROTATION, cloud.quat_wxyz.numpy()[:, [1, 2, 3, 0]]
    yield SCALE, cloud.log_scale.exp().numpy()
    opacity = cloud.opacity_logit.sigmoid()
    yield OPACITY, opacity.numpy()[:, None]
    names = harmonics(1 + cloud.sh_rest.shape[1])
    yield names[0], cloud.sh_dc.numpy()
    for name, coefficient in zip(names[1:], cloud.sh_rest.unbind(1), strict=True):
        yield name, coefficient.numpy()
    seen = linear_of((0.5 + SH_DC * cloud.sh_dc).clamp(0.0, 1.0))
    tint = torch.cat([seen, opacity[:, None]], dim=1)
    yield "COLOR_0", (tint * 65535.0).round().numpy().astype("<u2")


def _tree(
    columns: list[tuple[str, np.ndarray]], name: str, count: int
) -> tuple[dict[str, Any], int]:
    """The tree of the file, and the bytes of its numbers."""
    views, accessors, attributes, size = [], list[dict[str, Any]](), {}, 0
    for index, (attribute, column) in enumerate(columns):
        whole = column.dtype.kind == "u"
        views.append(
            {"buffer": 0, "byteOffset": size, "byteLength": column.nbytes, "target": VERTICES}
        )
        accessors.append(
            {"bufferView": index, "componentType": USHORT if whole else FLOAT, "count": count,
             "type": {1: "SCALAR", 3: "VEC3", 4: "VEC4"}[column.shape[1]]}
        )  # fmt: skip
        if whole:
            accessors[index]["normalized"] = True
        attributes[attribute] = index
        size += column.nbytes
    position = columns[0][1]
    accessors[0] |= {"min": position.min(0).tolist(), "max": position.max(0).tolist()}
    said = {
        "kernel": "ellipse", "colorSpace": DISPLAY, "projection": "perspective",
        "sortingMethod": "cameraDistance",
    }  # fmt: skip
    primitive = {"attributes": attributes, "mode": POINTS, "extensions": {EXTENSION: said}}
    tree = {
        "asset": {"version": "2.0", "generator": "sdi-gs"},
        "extensionsUsed": [EXTENSION],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": name}],
        "meshes": [{"name": name, "primitives": [primitive]}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": size}],
    }
    return tree, size
