# SPDX-License-Identifier: Apache-2.0
"""From a representation to triangles: marching cubes on a density, or fusion of depth pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..cameras import orbit, rays
from ..interface import Cameras, Render, Renderer
from ..memory import require_memory
from ..ops.meshes import Caster
from ..telling import each
from . import votes
from .mesh import Mesh, MeshError, keep_large_parts
from .painting import SURFACE_ALPHA, Points, painted

ELEVATIONS_DEG = (-40.0, -5.0, 20.0, 50.0)
AROUND = 12  # views at each of them

CHUNK = 2**18
"""Points asked at once."""

TRUNCATION_VOXELS = 3.0
"""Depth fusion trusts a picture this many voxels in front of and behind what it sees."""

DISAGREEMENT = 0.1
"""Of the radius: pictures of one surface disagree about its depth by so much, at any resolution."""

SMOOTH, SMOOTH_VOXELS = 0.01, 0.7
"""Standard deviation of a blur of the fused distance: of the radius, and in voxels."""

COPIES = 10
"""Numbers that are held at once for a point of a lattice; about."""

COARSER, COARSEST = 4, 24
"""What is far from a surface is looked at on a lattice so much coarser, with no fewer points."""


NOTHING_SOLID = (
    "no picture shows anything that is more than half opaque: there is no surface; train longer, "
    "or look at the run's previews"
)


class Extracted(NamedTuple):
    mesh: Mesh
    level: float  # density of the surface, 1 / world unit; 0 for fused depth
    parts: int  # connected parts that are kept


def views_around(
    resolution: int,
    distance: float,
    fov_y_deg: float,
    elevations_deg: Sequence[float] = ELEVATIONS_DEG,
) -> Cameras:
    """Twelve cameras around at each elevation, in turn between one another, one above and one
    below: 50 for the four elevations of a surface."""
    angles = [
        (360.0 / AROUND * (turn + 0.5 * (row % 2)), elevation)
        for row, elevation in enumerate(elevations_deg)
        for turn in range(AROUND)
    ]
    angles += [(0.0, 89.0), (0.0, -89.0)]
    azimuth, elevation = torch.tensor(angles, dtype=torch.float32).T
    ones = torch.ones(len(angles))
    size = (resolution, resolution)
    return orbit(azimuth, elevation, distance * ones, fov_y_deg * ones, size)


@torch.no_grad()
def pictures(renderer: Renderer, cameras: Cameras, device: torch.device) -> list[Render]:
    """One render per camera on black, on the CPU."""
    out = []
    for i in each(range(len(cameras)), "picture"):
        render, _ = renderer.render(cameras[i : i + 1].to(device), torch.zeros(1, 3, device=device))
        out.append(Render(*(picture.cpu() for picture in render[:4])))
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


def _require_room(resolution: int) -> None:
    """ValueError for a lattice that does not fit into memory."""
    require_memory(
        4 * COPIES * resolution**3,
        torch.device("cpu"),
        f"a lattice of {resolution}^3 points",
        f"write resolution={resolution // 2}",
    )


def _lattice(resolution: int, radius: float) -> Tensor:
    """Corners of the sampling lattice, [R], world units."""
    return torch.linspace(-radius, radius, resolution)


@torch.no_grad()
def sample_density(
    density: Callable[[Tensor], Tensor], resolution: int, radius: float
) -> np.ndarray:
    """The density on a lattice over [-radius, radius]^3, [R, R, R] indexed x, y, z."""
    _require_room(resolution)
    values = np.empty((resolution,) * 3, np.float32)
    for layers, points in votes.lattice_points(resolution, radius):
        block = density(points).cpu().numpy()
        values[layers] = block.reshape(-1, resolution, resolution)
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
    padded = np.pad(_whole(values - level), 1, constant_values=min(low - level, -1.0))
    spacing = 2.0 * radius / (values.shape[0] - 1)
    vertices, faces, _, _ = extract(padded, 0.0, spacing=(spacing,) * 3,
                                    gradient_direction="ascent")  # fmt: skip
    return (vertices - spacing - radius).astype(np.float32), faces.astype(np.int64)


def _whole(above: np.ndarray) -> np.ndarray:
    """Without bubbles that nobody can see, and without zeros: where a surface runs through a point
    of the lattice, triangles shrink to nothing and others share an edge of theirs."""
    from scipy.ndimage import binary_fill_holes

    inside = above > 0
    bubbles = binary_fill_holes(inside) & ~inside
    tiny = 1e-3 * float(np.abs(above).mean())
    out = np.where(bubbles, tiny, above)
    flat = np.abs(out) < tiny
    return np.where(flat, np.where(out > 0, tiny, -tiny), out).astype(np.float32)


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
    renders: Sequence[Render], cameras: Cameras, *, radius: float, resolution: int = 96
) -> Extracted:
    """The surface that pictures agree on, in [-radius, radius]^3: the zero of
    :func:`votes.signed_distance` on a lattice of ``resolution`` points an axis.

    It is closed, has no bubbles inside, and is smooth to about a hundredth of the radius, below
    which pictures of splats disagree. What is far from it is looked at on a coarser lattice.
    """
    from scipy.ndimage import gaussian_filter

    _require_room(resolution)
    step = 2.0 * radius / (resolution - 1)
    reach = max(TRUNCATION_VOXELS * step, DISAGREEMENT * radius)
    views = votes.views_of(renders, cameras)
    seen = [seen_points(render, cameras[i : i + 1])[0] for i, render in enumerate(renders)]
    if not any(len(points) for points in seen):
        raise MeshError(NOTHING_SOLID)
    field = _Field(views, reach, votes.outline_level(views, reach, radius), radius)
    values = field.near(torch.cat(seen), resolution)
    values = gaussian_filter(values, max(SMOOTH_VOXELS, SMOOTH * radius / step), mode="nearest")
    try:
        vertices, faces = marching_cubes(-values, 0.0, radius)  # inside is high, as in a density
    except MeshError:
        raise MeshError(NOTHING_SOLID) from None
    plain = Mesh(vertices, faces, np.full((len(vertices), 3), 0.5, np.float32))
    kept, parts = keep_large_parts(plain)
    points = Points(kept.vertices.astype(np.float64), kept.normals_or_smooth())
    caster, size = Caster(kept.vertices, kept.faces), float(np.ptp(kept.vertices, axis=0).max())
    colours = painted(points, caster, size, renders, cameras).colours.astype(np.float32)
    return Extracted(replace(kept, colors=colours).check(), 0.0, parts)


class _Field(NamedTuple):
    """The distance that pictures agree on, to be asked for lattices over [-radius, radius]^3."""

    views: Sequence[votes.View]
    reach: float  # world units
    level: float  # in units of the reach
    radius: float

    def near(self, seen: Tensor, resolution: int) -> np.ndarray:
        """[R, R, R], exact near the points ``seen`` [P, 3] of the surface."""
        coarse = -(-(resolution - 1) // COARSER) + 1
        if coarse < COARSEST:
            return self.everywhere(resolution)
        rough = torch.from_numpy(self.everywhere(coarse))
        values: np.ndarray = torch.nn.functional.interpolate(
            rough[None, None], size=(resolution,) * 3, mode="trilinear", align_corners=True
        )[0, 0].numpy()
        axis = _lattice(resolution, self.radius)
        near = torch.from_numpy(self._around(seen, resolution).nonzero()[0])
        flat = values.reshape(-1)
        for some in near.split(CHUNK):
            x, rest = some // resolution**2, some % resolution**2
            index = (x, rest // resolution, rest % resolution)
            flat[some.numpy()] = self._at(torch.stack([axis[i] for i in index], dim=-1))
        return values

    def everywhere(self, resolution: int) -> np.ndarray:
        """[R, R, R]."""
        values = np.empty((resolution,) * 3, np.float32)
        for layers, points in votes.lattice_points(resolution, self.radius):
            values[layers] = self._at(points).reshape(-1, resolution, resolution)
        return values

    def _at(self, points: Tensor) -> np.ndarray:
        return votes.signed_distance(points, self.views, self.reach, self.level).numpy()

    def _around(self, seen: Tensor, resolution: int) -> np.ndarray:
        """[R * R * R] whether a lattice point is within the reach and a cell of one of ``seen``."""
        from scipy.ndimage import maximum_filter

        step = 2.0 * self.radius / (resolution - 1)
        cell = ((seen + self.radius) / step).round().long()
        cell = cell[((cell >= 0) & (cell < resolution)).all(-1)]
        marked = np.zeros((resolution,) * 3, np.uint8)
        marked[tuple(cell.T.numpy())] = 1
        wide: np.ndarray = maximum_filter(marked, 2 * math.ceil(self.reach / step) + 3)
        return wide.reshape(-1)
