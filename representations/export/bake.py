# SPDX-License-Identifier: Apache-2.0
"""The texture of a surface, from the pictures of what it was extracted from.

Each texel is a point of the surface. A picture counts for it as it looks at it: nothing of the
surface may lie between, the depth of the picture must agree, and the steeper the view and the
farther from an outline, the more it counts. The weights are sharp, so that a texel is what its
best pictures say, and not the mean of all, in which detail drowns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..atlas import Texels, filled, texels_of, unwrap
from ..cameras import orbit
from ..interface import Cameras, Render
from ..ops.meshes import Caster
from .mesh import Mesh, Skin
from .surface import SURFACE_ALPHA

ELEVATIONS_DEG = (-60.0, -25.0, 10.0, 40.0, 65.0)
AROUND = 12  # views at each of them
SHARPNESS = 6.0  # power of the cosine between view and normal
STEEPEST = 0.15  # smallest cosine at which a texel is still seen
BESIDE = 0.02  # of the size of the shape: a point so little behind the surface is on it
APART = 0.06  # of the size of the shape: the depth of a picture so far off halves its weight
OUTLINE = 2  # pixels from an outline that mix the shape with what is behind it
NEIGHBOURS = 4  # seen texels that an unseen one takes its colour from


@dataclass(frozen=True)
class Baked:
    """A textured mesh, and how much of it was seen."""

    mesh: Mesh
    texels: int  # on the surface
    unseen: int  # of them in no picture, and filled from their neighbours


def views_for_texture(resolution: int, distance: float, fov_y_deg: float) -> Cameras:
    """62 cameras: twelve around at five elevations, one above and one below."""
    angles = [
        ((360.0 / AROUND) * (a + 0.5 * (row % 2)), e)
        for row, e in enumerate(ELEVATIONS_DEG)
        for a in range(AROUND)
    ]
    angles += [(0.0, 89.0), (0.0, -89.0)]
    azimuth, elevation = torch.tensor(angles, dtype=torch.float32).T
    ones = torch.ones(len(angles))
    size = (resolution, resolution)
    return orbit(azimuth, elevation, distance * ones, fov_y_deg * ones, size)


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
    picture: Callable[[Cameras], Render],
    cameras: Cameras,
    albedo: Callable[[Tensor], Tensor] | None = None,
) -> Baked:
    """Fill the texture of a :func:`skinned` mesh.

    Args:
        mesh: in the world of the cameras, counter-clockwise from outside.
        picture: one view on black, without gradient, on the CPU.
        cameras: whose views are asked for, one by one.
        albedo: colours [M, 3] at points [M, 3] inside of the shape, for what no view shows; None:
            that is filled from the nearest texels that are seen.
    """
    assert mesh.skin is not None
    height, width = mesh.skin.texture.shape[:2]
    texels = texels_of(mesh.skin.uv, mesh.faces, (height, width))
    points = texels.at(mesh.vertices.astype(np.float64), mesh.faces)
    normals = texels.at(mesh.normals_or_smooth().astype(np.float64), mesh.faces)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True).clip(1e-12)
    size = float(np.ptp(mesh.vertices, axis=0).max())
    look = _Looker(Caster(mesh.vertices, mesh.faces), texels, points, normals, size)
    total, weight = np.zeros((len(points), 3)), np.zeros(len(points))
    for view in range(len(cameras)):
        camera = cameras[view : view + 1]
        which, counts, colour = look(picture(camera), camera)
        total[which] += counts[:, None] * colour
        weight[which] += counts
    seen = weight > 0
    colours = total / np.where(seen, weight, 1.0)[:, None]
    if not seen.all():
        colours[~seen] = _unseen(points, colours, seen, albedo)
    texture = np.zeros((height * width, 3), np.float32)
    known = np.zeros(height * width, bool)
    texture[texels.place], known[texels.place] = colours.clip(0.0, 1.0), True
    whole = filled(texture.reshape(height, width, 3), known.reshape(height, width))
    textured = replace(mesh, skin=replace(mesh.skin, texture=whole))
    return Baked(textured, len(points), int((~seen).sum()))


@dataclass(frozen=True)
class _Looker:
    """What one picture says of texels."""

    caster: Caster
    texels: Texels
    points: np.ndarray  # [M, 3] world
    normals: np.ndarray  # [M, 3]
    size: float  # of the shape, world units

    def __call__(self, render: Render, camera: Cameras) -> tuple[np.ndarray, ...]:
        """The texels [K] that it shows, how much it counts for each, and their colours [K, 3]."""
        eye = camera.positions[0].double().numpy()
        towards = eye - self.points
        cosine = (towards * self.normals).sum(1) / np.linalg.norm(towards, axis=1)
        at, z, inside = _project(self.points, camera)
        which = np.flatnonzero(inside & (cosine > STEEPEST))
        which = which[
            _clear_of_outlines(render)[at[which, 1].astype(int), at[which, 0].astype(int)]
        ]
        hidden = self.caster.occluded(
            self.points[which], eye, BESIDE * self.size, self.texels.face[which]
        )
        which = which[~hidden]
        # The pictures are on black: divided by alpha they show the surface's own colour.
        alpha, rgb, depth = _bilinear(render, at[which])
        off = np.abs(depth - z[which]) / (APART * self.size)
        counts = cosine[which] ** SHARPNESS * 0.5 ** (off**2)
        return which, counts, rgb / alpha.clip(SURFACE_ALPHA)[:, None]


def _project(points: np.ndarray, camera: Cameras) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where points [M, 3] are in the picture, [M, 2] in pixels from its corner, their z-depth [M],
    and whether they are in it [M]."""
    matrix = camera.world_to_cam[0].double().numpy()
    local = points @ matrix[:3, :3].T + matrix[:3, 3]
    k = camera.intrinsics[0].double().numpy()
    z = local[:, 2]
    at = (local[:, :2] / z.clip(1e-9)[:, None]) * [k[0, 0], k[1, 1]] + [k[0, 2], k[1, 2]]
    inside = (z > 0) & (at >= 0).all(1) & (at[:, 0] < camera.width) & (at[:, 1] < camera.height)
    return at, z, inside


def _clear_of_outlines(render: Render) -> np.ndarray:
    """Pixels [H, W] around which everything is solid."""
    from scipy.ndimage import minimum_filter

    solid = render.alpha[0, 0].numpy() > SURFACE_ALPHA
    clear: np.ndarray = minimum_filter(solid, size=2 * OUTLINE + 1)
    return clear


def _bilinear(render: Render, at: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Alpha [K], colour [K, 3] and depth [K] between the pixels around ``at`` [K, 2]."""
    planes = torch.cat([render.alpha, render.rgb, render.depth], dim=1).double()
    height, width = planes.shape[2:]
    grid = torch.from_numpy(2.0 * at / [width, height] - 1.0)
    found = torch.nn.functional.grid_sample(
        planes, grid[None, None], mode="bilinear", padding_mode="border", align_corners=False
    )[0, :, 0].numpy()
    return found[0], found[1:4].T, found[4]


def _unseen(
    points: np.ndarray,
    colours: np.ndarray,
    seen: np.ndarray,
    albedo: Callable[[Tensor], Tensor] | None,
) -> np.ndarray:
    """Colours of the texels that no picture shows: the shape's own, or those of the nearest points
    that are seen, grey where none is."""
    from scipy.spatial import cKDTree

    if albedo is not None:
        asked: np.ndarray = albedo(torch.from_numpy(points[~seen]).float()).cpu().double().numpy()
        return asked
    count = min(NEIGHBOURS, int(seen.sum()))
    if count == 0:
        return np.full((int((~seen).sum()), 3), 0.5)
    distance, index = cKDTree(points[seen]).query(points[~seen], k=count)
    share = 1.0 / np.asarray(distance).reshape(-1, count).clip(1e-12)
    near = colours[seen][np.asarray(index).reshape(-1, count)]
    mixed: np.ndarray = (share[..., None] * near).sum(1) / share.sum(1, keepdims=True)
    return mixed


def picture_by_picture(
    render: Callable[[Cameras, Tensor], tuple[Render, object]], device: torch.device
) -> Callable[[Cameras], Render]:
    """``render`` of a renderer as :func:`bake` asks for it."""

    @torch.no_grad()
    def one(camera: Cameras) -> Render:
        found, _ = render(camera.to(device), torch.zeros(1, 3, device=device))
        return Render(*(plane.cpu() for plane in found))

    return one
