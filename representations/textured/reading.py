# SPDX-License-Identifier: Apache-2.0
"""The surface and the first texture, from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..atlas import filled, texels_of, unwrap
from ..axes import FRAMES
from ..claims import require_honest
from ..interface import Say
from ..points import Shade, Surface, parts_of, require_sound, shaded, up_of
from .config import MeshInit

GREY = 0.5  # where a file has no colours
IN_SIGHT = (0.25, 1.5)  # world units: of a shape that cameras of ours see well


class SkinnedSurface(NamedTuple):
    """Triangles in our world (z up), each with a place on a picture."""

    vertices: np.ndarray  # [V, 3] float32, world units
    faces: np.ndarray  # [F, 3] int64, counter-clockwise from outside
    uv: np.ndarray  # [V, 2] float32 in [0, 1]; (0, 0) is the upper left corner
    texture: np.ndarray  # [H, W, 3] float32 in [0, 1], as displayed


def placeholder() -> SkinnedSurface:
    """A triangle, to be replaced by the state of a checkpoint."""
    corner = np.eye(3, dtype=np.float32)
    grey = np.full((4, 4, 3), GREY, np.float32)
    return SkinnedSurface(corner, np.array([[0, 1, 2]]), corner[:, :2].copy(), grey)


def read_surface(init: MeshInit, size: int, say: Say) -> SkinnedSurface:
    """What the file of ``init`` holds. The texture of a single part is kept as it is; several
    parts, or one without a texture, are laid out anew on ``size`` x ``size`` texels in the colours
    they have. ValueError for a file that holds no triangles."""
    path = Path(init.path)
    if not init.path:
        raise ValueError(
            "a texture needs a surface: write representation.init.path=FILE, or --init FILE, with "
            "a mesh such as the .glb of 'sdi-gs export RUN --format glb --texture 1024', or "
            "bend a ball into a shape with representation.shape.rate=0.04"
        )
    if not path.is_file():
        raise ValueError(
            f"init.path={init.path!r} is not a file: give a mesh, such as a .glb or an .obj"
        )
    require_honest(path)
    try:
        parts = parts_of(path)[0]
        for part in parts:
            require_sound(part.vertices, part.faces)
    except Exception as error:  # trimesh raises a dozen unrelated types
        told = str(error).strip() or type(error).__name__
        raise ValueError(f"{path} cannot be read as a mesh: {told}") from error
    if not parts:
        raise ValueError(f"{path} holds no triangles: give a mesh, such as a .glb or an .obj")
    frame, note = up_of(path, init.up)
    if note:
        say(note)
    found = _kept(parts) or _laid_out(path, parts, size)
    vertices = found.vertices.astype(np.float64) @ FRAMES[frame].matrix().numpy()
    return found._replace(vertices=_in_sight(vertices, init, say))


def _in_sight(vertices: np.ndarray, init: MeshInit, say: Say) -> np.ndarray:
    """As large as wanted; whether cameras can see it is told."""
    if init.radius > 0.0:
        vertices = vertices - 0.5 * (vertices.min(0) + vertices.max(0))
        vertices = vertices * (init.radius / max(float(np.linalg.norm(vertices, axis=1).max()),
                                                 1e-30))  # fmt: skip
    reach = float(np.linalg.norm(vertices, axis=1).max())
    if not IN_SIGHT[0] <= reach <= IN_SIGHT[1]:
        say(
            f"{init.path}: reaches {reach:.3g} units from the origin, at which the cameras look "
            "from 1.5 to 4: bring it there with representation.init.radius=0.6"
        )
    return vertices.astype(np.float32)


def _kept(parts: list[Surface]) -> SkinnedSurface | None:
    """The texture of a single part, where nothing but it colours the surface."""
    part = parts[0]
    material = getattr(part.visual, "material", None)
    image = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
    uv = getattr(part.visual, "uv", None)
    plain = getattr(material, "baseColorFactor", None)
    tinted = plain is not None and float(np.min(plain)) < np.asarray(_white(plain))
    if len(parts) != 1 or image is None or uv is None or len(uv) != len(part.vertices) or tinted:
        return None
    where = np.asarray(uv, np.float64)[:, :2] * [1.0, -1.0] + [0.0, 1.0]  # trimesh: from below
    if not (np.isfinite(where).all() and where.min() >= -1e-6 and where.max() <= 1.0 + 1e-6):
        return None
    texture = np.asarray(image.convert("RGB"), np.float32) / 255.0
    return SkinnedSurface(
        part.vertices.astype(np.float32), part.faces, where.clip(0.0, 1.0).astype(np.float32),
        texture,
    )  # fmt: skip


def _white(values: Any) -> float:
    """What 1 is among numbers of that kind."""
    held = np.asarray(values)
    return float(np.iinfo(held.dtype).max) if held.dtype.kind in "iu" else 1.0


def _laid_out(path: Path, parts: list[Surface], size: int) -> SkinnedSurface:
    """All parts on one new picture."""
    vertices = np.concatenate([part.vertices for part in parts])
    starts = np.cumsum([0, *(len(part.vertices) for part in parts)])
    faces = np.concatenate([p.faces + s for p, s in zip(parts, starts, strict=False)])
    flat = unwrap(vertices, faces, size)
    texels = texels_of(flat.uv, flat.faces, (size, size))
    colours = np.full((len(texels.place), 3), GREY)
    ends = np.cumsum([0, *(len(part.faces) for part in parts)])
    for number, part in enumerate(parts):
        here = (texels.face >= ends[number]) & (texels.face < ends[number + 1])
        own = texels.face[here] - ends[number]
        found = shaded(path, part, Shade(own, part.faces[own], texels.weight[here]))
        if found is not None:
            colours[here] = found
    square = (size, size)
    picture = filled(texels.picture(colours.clip(0.0, 1.0), square), texels.covered(square))
    return SkinnedSurface(
        vertices[flat.source].astype(np.float32), flat.faces, flat.uv.astype(np.float32), picture
    )
