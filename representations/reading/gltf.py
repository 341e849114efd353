# SPDX-License-Identifier: Apache-2.0
"""Splats in glTF 2.0 by KHR_gaussian_splatting (Khronos, ratified): ``.glb`` and ``.gltf``.

Points whose attributes are rotations x, y, z, w, scales and opacities as they are, and harmonics
one coefficient an attribute, in the order and sign of 3D Gaussian Splatting. The frame is y up.
Nodes may move, turn and scale their splats evenly; where one stretches or mirrors them the file is
refused, since the harmonics of a stretched splat are not harmonics.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..axes import hamilton
from ..cloud import SH_COUNTS, SplatCloud
from ..harmonics import rotate_rest
from .base import Source, SplatFileError, opacity_logit, ranges, tensor
from .gltf_file import Column, Gltf, named_in, open_file

EXTENSION = "KHR_gaussian_splatting"
ROTATION, SCALE, OPACITY = (f"{EXTENSION}:{word}" for word in ("ROTATION", "SCALE", "OPACITY"))
DISPLAY, LINEAR = "srgb_rec709_display", "lin_rec709_display"
POINTS = 0
MOST_PLACES = 10_000  # of primitives in a scene
UNEVEN = 1e-4  # of the scale of a node, where float32 would have an even one


def harmonics(count: int) -> list[str]:
    """The attributes of the first ``count`` coefficients, the constant first."""
    names = [(degree, order) for degree in range(5) for order in range(2 * degree + 1)]
    return [f"{EXTENSION}:SH_DEGREE_{degree}_COEF_{order}" for degree, order in names[:count]]


class Part(NamedTuple):
    """The splats of one primitive at one place."""

    means: Column
    quat_xyzw: Column
    scales: Column
    opacity: Column
    coefficients: list[Column]  # of the harmonics, the constant first
    logs: bool  # scales are logarithms, as drafts of the extension had them
    linear: bool  # colours are linear light
    place: np.ndarray  # [4, 4] of its node

    def __len__(self) -> int:
        return len(self.means.raw)


def has_splats(path: Path) -> bool:
    """Whether a glTF file names the extension. False for what cannot be read."""
    return named_in(path, EXTENSION)


def open_gltf(path: Path) -> Source:
    """Raises SplatFileError for one that is not complete, holds no splats, or compresses them."""
    file, notes = open_file(path), list[str]()
    parts = list(_parts(file, notes))
    if not parts:
        raise SplatFileError(
            f"{path}: holds no splats by {EXTENSION}; if it holds triangles, --init starts a run "
            "from it"
        )
    count = sum(len(part) for part in parts)
    if count == 0:
        raise SplatFileError(f"{path}: holds 0 splats, needs at least 1")
    linear = {part.linear for part in parts}
    if len(linear) > 1:
        raise SplatFileError(f"{path}: has splats of two colour spaces; write them to two files")
    if any(part.logs for part in parts):
        notes.append(
            "some of its scales are below 0, so they are logarithms, as drafts of the extension "
            "had them: read so"
        )
    rest = max(len(part.coefficients) for part in parts) - 1
    blocks = (block for part in parts for block in _blocks(part, rest))
    return Source(count, rest, blocks, tuple(dict.fromkeys(notes)), "y", linear=linear.pop())


def _parts(file: Gltf, notes: list[str]) -> Iterator[Part]:
    """Every primitive of splats at each of its places; ``notes`` is told what is left out."""
    for mesh, place in _places(file):
        for primitive in _listed(file.row("meshes", mesh).get("primitives")):
            extensions = _object(_object(primitive).get("extensions"))
            if EXTENSION in extensions:
                yield _part(file, _object(primitive), _object(extensions[EXTENSION]), place, notes)
            else:
                notes.append("it has triangles or points beside the splats: they are left out")


def _part(
    file: Gltf, primitive: dict[str, Any], said: dict[str, Any], place: np.ndarray, notes: list[str]
) -> Part:
    packed = [*_object(said.get("extensions")), *_object(primitive.get("extensions"))]
    packed = [name for name in packed if name != EXTENSION and "compression" in name]
    if packed:
        raise SplatFileError(
            f"{file.path}: its splats are packed by {', '.join(packed)}, which is not read; write "
            "the file without it"
        )
    if primitive.get("mode", 4) != POINTS:
        raise file.broken(f"splats of mode {primitive.get('mode', 4)!r}, needs 0 (points)")
    space = said.get("colorSpace", DISPLAY)
    if said.get("kernel", "ellipse") != "ellipse":
        notes.append(f"its splats have the kernel {said['kernel']!r}: read as ellipses")
    if space not in (DISPLAY, LINEAR):
        notes.append(f"its colours are in {space!r}, which is not known here: read as {DISPLAY}")
    attributes = _object(primitive.get("attributes"))
    count = next((n for n in reversed(SH_COUNTS) if harmonics(n)[-1] in attributes), 1)
    if harmonics(25)[-1] in attributes:
        notes.append("its harmonics have degree 4: those above degree 3 are left out")
    wanted = [("POSITION", 3), (ROTATION, 4), (SCALE, 3), (OPACITY, 1)]
    wanted += [(name, 3) for name in harmonics(count)]
    missing = [name for name, _ in wanted if name not in attributes]
    if missing:
        raise SplatFileError(f"{file.path}: its splats miss the attributes {', '.join(missing)}")
    columns = [file.column(attributes[name], width) for name, width in wanted]
    for (name, _), column in zip(wanted, columns, strict=True):
        if len(column.raw) != len(columns[0].raw):
            raise file.broken(
                f"{name} has {len(column.raw):,} rows, POSITION {len(columns[0].raw):,}"
            )
    means, turns, scales, opacity, *higher = columns
    logs = any(bool((scales.raw[rows] < 0).any()) for rows in ranges(len(means.raw)))
    return Part(means, turns, scales, opacity, higher, logs, space == LINEAR, place)


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _places(file: Gltf) -> Iterator[tuple[int, np.ndarray]]:
    """Each mesh with the matrix of each node that has it: of the scene that is shown, or of all
    meshes where a file has no scene."""
    if not _listed(file.tree.get("scenes")):
        yield from ((i, np.eye(4)) for i in range(len(_listed(file.tree.get("meshes")))))
        return
    scene = file.row("scenes", file.tree.get("scene", 0))
    waiting = [(node, np.eye(4), 0) for node in reversed(_listed(scene.get("nodes")))]
    seen = 0
    while waiting:
        index, above, depth = waiting.pop()
        seen += 1
        if seen > MOST_PLACES or depth > len(_listed(file.tree.get("nodes"))):
            raise file.broken("its nodes are a circle, or more than any scene has")
        node = file.row("nodes", index)
        place = above @ _matrix(file, node)
        if "mesh" in node:
            yield file.whole(node["mesh"]), place
        waiting += [(child, place, depth + 1) for child in reversed(_listed(node.get("children")))]


def _matrix(file: Gltf, node: dict[str, Any]) -> np.ndarray:
    """[4, 4] of a node: its matrix, or its translation, rotation and scale."""
    if "matrix" in node:
        return _numbers(file, node["matrix"], 16).reshape(4, 4).T
    from scipy.spatial.transform import Rotation

    whole = np.eye(4)
    turn = Rotation.from_quat(_numbers(file, node.get("rotation", [0, 0, 0, 1]), 4)).as_matrix()
    whole[:3, :3] = turn * _numbers(file, node.get("scale", [1, 1, 1]), 3)
    whole[:3, 3] = _numbers(file, node.get("translation", [0, 0, 0]), 3)
    return whole


def _numbers(file: Gltf, value: Any, count: int) -> np.ndarray:
    held = np.asarray(value, np.float64)
    if held.shape != (count,) or not np.isfinite(held).all():
        raise file.broken(f"{value!r} where {count} numbers are needed")
    return held


def _blocks(part: Part, rest: int) -> Iterator[SplatCloud]:
    from scipy.spatial.transform import Rotation

    linear, offset = part.place[:3, :3], part.place[:3, 3]
    zoom = float(np.cbrt(abs(np.linalg.det(linear))))
    turn = linear / (zoom or 1.0)
    if zoom == 0 or np.linalg.det(turn) < 0 or np.abs(turn @ turn.T - np.eye(3)).max() > UNEVEN:
        raise ValueError(
            "a node stretches or mirrors its splats, for which there are no harmonics; apply its "
            "transform where the file was made, or leave the stretching out"
        )
    still = np.array_equal(part.place, np.eye(4))
    x, y, z, w = Rotation.from_matrix(turn).as_quat().tolist()
    for rows in ranges(len(part)):
        means, scales = part.means.at(rows).astype("f8"), part.scales.at(rows)
        turns = tensor(np.roll(part.quat_xyzw.at(rows), 1, axis=1))
        with np.errstate(divide="ignore", invalid="ignore"):
            log_scale = scales if part.logs else np.log(scales)
        shs = np.zeros((len(means), rest, 3), np.float32)
        for i, column in enumerate(part.coefficients[1:]):
            shs[:, i] = column.at(rows)
        opacity = part.opacity.at(rows)[:, 0]
        opacity = np.where((opacity >= 0) & (opacity <= 1), opacity, np.nan)
        if not still:
            means = means @ linear.T + offset
            log_scale = log_scale + np.log(zoom)
            turns = hamilton((w, x, y, z), turns.double()).float()
        yield SplatCloud(
            means=tensor(means),
            log_scale=tensor(log_scale),
            quat_wxyz=turns,
            opacity_logit=opacity_logit(opacity),
            sh_dc=tensor(part.coefficients[0].at(rows)),
            sh_rest=tensor(shs) if still else rotate_rest(tensor(shs), torch.from_numpy(turn)),
        )
