# SPDX-License-Identifier: Apache-2.0
"""From a representation to triangles: marching cubes on a density, or fusion of depth pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..cameras import orbit, rays
from ..interface import Cameras, Render, Renderer
from .mesh import Mesh, MeshError, keep_large_parts

SURFACE_ALPHA = 0.5
"""A pixel shows a surface when at least half of its light comes from the object."""

CHUNK = 2**18
"""Points asked at once."""

TRUNCATION_VOXELS = 3.0
"""Depth fusion trusts a picture this many voxels in front of and behind what it sees."""


NOTHING_SOLID = (
    "no picture shows anything that is more than half opaque: there is no surface; train longer, "
    "or look at the run's previews"
)


class Extracted(NamedTuple):
    mesh: Mesh
    level: float  # density of the surface, 1 / world unit; 0 for fused depth
    parts: int  # connected parts that are kept


def views_around(resolution: int, distance: float, fov_y_deg: float) -> Cameras:
    """26 cameras: eight around at three elevations, one above and one below."""
    angles = [(a, e) for e in (-30.0, 10.0, 45.0) for a in np.arange(8) * 45.0]
    angles += [(0.0, 89.0), (0.0, -89.0)]
    azimuth, elevation = torch.tensor(angles, dtype=torch.float32).T
    ones = torch.ones(len(angles))
    size = (resolution, resolution)
    return orbit(azimuth, elevation, distance * ones, fov_y_deg * ones, size)


@torch.no_grad()
def pictures(renderer: Renderer, cameras: Cameras, device: torch.device) -> list[Render]:
    """One render per camera on black, on the CPU."""
    out = []
    for i in range(len(cameras)):
        render, _ = renderer.render(cameras[i : i + 1].to(device), torch.zeros(1, 3, device=device))
        out.append(Render(*(picture.cpu() for picture in render)))
    return out


def seen_points(render: Render, camera: Cameras) -> tuple[Tensor, Tensor]:
    """World points [P, 3] of the pixels of one picture that show a surface, and their colours."""
    origins, directions = rays(camera)
    forward = camera.world_to_cam[:, 2, :3]
    cosine = (directions * forward[:, None, None]).sum(-1)  # [1, H, W]
    solid = render.alpha[:, 0] > SURFACE_ALPHA
    distance = render.depth[:, 0] / cosine
    points = (origins + directions * distance[..., None])[solid]
    # The pictures are on black: divide by alpha to get the surface's own colour.
    color = (render.rgb / render.alpha.clamp(min=SURFACE_ALPHA)).permute(0, 2, 3, 1)[solid]
    return points, color.clamp(0.0, 1.0)


@torch.no_grad()
def surface_level(
    density: Callable[[Tensor], Tensor], renders: Sequence[Render], cameras: Cameras
) -> float:
    """The density at which pictures see the surface: the median over all pixels that show one.

    Raises MeshError when no pixel does.
    """
    levels = []
    for i, render in enumerate(renders):
        points, _ = seen_points(render, cameras[i : i + 1])
        if len(points):
            levels.append(density(points).cpu())
    if not levels:
        raise MeshError(
            "the field is empty: no picture shows anything that is more than half opaque; train "
            "longer, or look at the run's previews"
        )
    return float(torch.cat(levels).median())


def _lattice(resolution: int, radius: float) -> Tensor:
    """Corners of the sampling lattice, [R], world units."""
    return torch.linspace(-radius, radius, resolution)


@torch.no_grad()
def sample_density(
    density: Callable[[Tensor], Tensor], resolution: int, radius: float
) -> np.ndarray:
    """The density on a lattice over [-radius, radius]^3, [R, R, R] indexed x, y, z."""
    axis = _lattice(resolution, radius)
    values = np.empty((resolution,) * 3, np.float32)
    layers = max(1, CHUNK // resolution**2)
    for first in range(0, resolution, layers):
        x = axis[first : first + layers]
        grid = torch.stack(torch.meshgrid(x, axis, axis, indexing="ij"), dim=-1)
        block = density(grid.reshape(-1, 3)).reshape(grid.shape[:3])
        values[first : first + layers] = block.cpu().numpy()
    return values


def marching_cubes(
    values: np.ndarray, level: float, radius: float
) -> tuple[np.ndarray, np.ndarray]:
    """Vertices [V, 3] in the world and faces [F, 3] where ``values`` cross ``level``, wound so
    that they are counter-clockwise from the lower side. Raises MeshError when they never do."""
    from skimage.measure import marching_cubes as extract

    low, high = float(values.min()), float(values.max())
    if not low < level < high:
        raise MeshError(
            f"no surface at threshold {level:.4g}: the field lies between {low:.4g} and {high:.4g}"
            " everywhere; choose a threshold between them"
        )
    # A border of the lowest value closes what touches the edge of the cube.
    padded = np.pad(values, 1, constant_values=min(low, level - 1.0))
    spacing = 2.0 * radius / (values.shape[0] - 1)
    vertices, faces, _, _ = extract(padded, level, spacing=(spacing,) * 3,
                                    gradient_direction="ascent")  # fmt: skip
    return (vertices - spacing - radius).astype(np.float32), faces.astype(np.int64)


@torch.no_grad()
def from_density(
    density: Callable[[Tensor], Tensor],
    albedo: Callable[[Tensor], Tensor],
    level: float,
    *,
    radius: float,
    resolution: int = 128,
) -> Extracted:
    """The surface ``density`` = ``level`` with the albedo just below it as vertex colours."""
    values = sample_density(density, resolution, radius)
    vertices, faces = marching_cubes(values, level, radius)
    colors = []
    for first in range(0, len(vertices), CHUNK):
        points = torch.from_numpy(vertices[first : first + CHUNK])
        colors.append(albedo(points).cpu().numpy())
    mesh = Mesh(vertices, faces, np.concatenate(colors).astype(np.float32))
    kept, parts = keep_large_parts(mesh)
    return Extracted(kept.check(), level, parts)


def fuse(
    renders: Iterable[Render], cameras: Cameras, *, radius: float, resolution: int = 96
) -> Extracted:
    """Fuse depth pictures into a truncated signed distance (Curless and Levoy 1996) on a lattice
    over [-radius, radius]^3, and take its zero.

    A pixel that shows no surface says that everything along it is outside: without that, splats
    that no picture sees as solid would leave walls. What is hidden behind a surface in every
    picture is inside; points that no picture reaches are outside.
    """
    axis = _lattice(resolution, radius)
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(-1, 3)
    reach = TRUNCATION_VOXELS * 2.0 * radius / (resolution - 1)
    total = torch.zeros(len(points))
    weight = torch.zeros(len(points))
    color = torch.zeros(len(points), 3)
    paint = torch.zeros(len(points))
    covered = torch.zeros(len(points), dtype=torch.bool)
    for i, render in enumerate(renders):
        distance, rgb, known, near, hidden = _look(points, render, cameras[i : i + 1], reach)
        total += known * distance
        covered |= hidden
        weight += known
        color += near[:, None] * rgb
        paint += near
    sdf = torch.where(weight > 0, total / weight.clamp(min=1e-6), 1.0 - 2.0 * covered.float())
    values = -sdf.reshape((resolution,) * 3).numpy()  # inside is high, as in a density
    try:
        vertices, faces = marching_cubes(values, 0.0, radius)
    except MeshError:
        raise MeshError(NOTHING_SOLID) from None
    shades = color / paint.clamp(min=1e-6)[:, None]
    colors = _nearest_painted(vertices, points[paint > 0], shades[paint > 0])
    kept, parts = keep_large_parts(Mesh(vertices, faces, colors))
    return Extracted(kept.check(), 0.0, parts)


def _look(
    points: Tensor, render: Render, camera: Cameras, reach: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What one picture says of ``points`` [P, 3]: signed distance [P] in units of ``reach``
    (positive in front of the surface), colour [P, 3], whether the distance counts [P], how
    much the colour does [P], and whether a surface hides the point [P]."""
    matrix = camera.world_to_cam[0]
    local = points @ matrix[:3, :3].T + matrix[:3, 3]
    z = local[:, 2].clamp(min=1e-6)
    k = camera.intrinsics[0]
    column = (local[:, 0] / z * k[0, 0] + k[0, 2]).floor().long()
    row = (local[:, 1] / z * k[1, 1] + k[1, 2]).floor().long()
    inside = (column >= 0) & (column < camera.width) & (row >= 0) & (row < camera.height)
    inside &= local[:, 2] > 0
    column, row = column.clamp(0, camera.width - 1), row.clamp(0, camera.height - 1)
    alpha = render.alpha[0, 0, row, column]
    solid = alpha > SURFACE_ALPHA
    distance = (render.depth[0, 0, row, column] - z) / reach
    distance = torch.where(solid, distance, torch.ones_like(distance)).clamp(max=1.0)
    known = (inside & (distance > -1.0)).float()
    rgb = render.rgb[0, :, row, column].T / alpha.clamp(min=SURFACE_ALPHA)[:, None]
    near = known * (solid & (distance.abs() < 1.0)).float() * (1.0 - distance.abs())
    return distance, rgb.clamp(0.0, 1.0), known, near, inside & (distance <= -1.0)


def _nearest_painted(vertices: np.ndarray, points: Tensor, colors: Tensor) -> np.ndarray:
    """Colour of each vertex: the mean of the four nearest lattice points that have one."""
    from scipy.spatial import cKDTree

    count = min(4, len(points))
    if count == 0:
        return np.full((len(vertices), 3), 0.5, np.float32)
    _, index = cKDTree(points.numpy()).query(vertices, k=count)
    picked: np.ndarray = colors.numpy()[np.asarray(index).reshape(len(vertices), count)]
    mean: np.ndarray = picked.mean(axis=1).astype(np.float32)
    return mean
