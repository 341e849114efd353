# SPDX-License-Identifier: Apache-2.0
"""The texture of a surface, from the pictures of what it was extracted from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..atlas import filled, texels_of, unwrap
from ..interface import Cameras, Render, Renderer
from ..ops.meshes import Caster
from ..telling import each
from .mesh import Mesh, Skin
from .painting import Points, painted
from .surface import views_around

ELEVATIONS_DEG = (-60.0, -25.0, 10.0, 40.0, 65.0)
"""Of the pictures of a texture: lower and higher than those of a surface."""


@dataclass(frozen=True)
class Baked:
    """A textured mesh, and how much of it was seen."""

    mesh: Mesh
    texels: int  # on the surface
    unseen: int  # of them in no picture


def views_for_texture(resolution: int, distance: float, fov_y_deg: float) -> Cameras:
    """62 cameras: twelve around at five elevations, one above and one below."""
    return views_around(resolution, distance, fov_y_deg, ELEVATIONS_DEG)


def skinned(mesh: Mesh, size: int) -> Mesh:
    """The same surface with charts for a texture of ``size`` x ``size`` texels, still grey; its
    normals are smooth across their seams. Raises ValueError without xatlas."""
    flat = unwrap(mesh.vertices, mesh.faces, size)
    grey = np.full((size, size, 3), 0.5, np.float32)
    return Mesh(
        mesh.vertices[flat.source], flat.faces, mesh.colors[flat.source], Skin(flat.uv, grey),
        mesh.normals_or_smooth()[flat.source],
    )  # fmt: skip


def bake(
    mesh: Mesh,
    renders: Iterator[Render],
    cameras: Cameras,
    albedo: Callable[[Tensor], Tensor] | None = None,
) -> Baked:
    """Fill the texture of a :func:`skinned` mesh, counter-clockwise from outside, by
    :func:`painting.painted`: each texel is a point of the surface. What lies between charts is
    filled from them."""
    assert mesh.skin is not None
    size = mesh.skin.texture.shape[:2]
    texels = texels_of(mesh.skin.uv, mesh.faces, size)
    points = Points(
        texels.at(mesh.vertices.astype(np.float64), mesh.faces),
        texels.at(mesh.normals_or_smooth().astype(np.float64), mesh.faces),
        texels.face,
    )
    caster = Caster(mesh.vertices, mesh.faces)
    extent = float(np.ptp(mesh.vertices, axis=0).max())
    colours, seen = painted(points, caster, extent, renders, cameras, albedo)
    whole = filled(texels.picture(colours, size), texels.covered(size))
    textured = replace(mesh, skin=replace(mesh.skin, texture=whole))
    return Baked(textured, len(seen), int((~seen).sum()))


def one_by_one(shape: Renderer, cameras: Cameras, device: torch.device) -> Iterator[Render]:
    """A render per camera on black, on the CPU, drawn when it is asked for."""
    for view in each(range(len(cameras)), "picture"):
        camera = cameras[view : view + 1].to(device)
        with torch.no_grad():
            found, _ = shape.render(camera, torch.zeros(1, 3, device=device))
        yield Render(*(plane.cpu() for plane in found[:4]))
