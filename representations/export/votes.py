# SPDX-License-Identifier: Apache-2.0
"""What pictures say of points in space: inside of a shape, outside, or how near its surface.

Two voices. **Outlines**: a point that falls beside the shape in a picture is outside, by how far it
is from the outline; the second largest distance over all pictures counts, so that one picture that
is a pixel off wears nothing away. **Depths**: a truncated signed distance along the ray (Curless
and Levoy 1996), averaged. A depth is a mean over half-transparent splats, and wrong where it mixes
two surfaces: next to an outline or a jump the farther one says nothing, and an empty space counts
less than a surface that is seen. Behind what it sees a picture knows less and less.

Soft splats look thicker from the side than from the front, where a mean depth lies inside of them.
:func:`outline_level` measures by how much, so that the surface fills the outlines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..interface import Cameras, Render
from .painting import SURFACE_ALPHA

CHUNK = 2**18
"""Points asked at once."""

EMPTY = 0.3  # weight of a picture that sees past a point, beside 1 where its surface is near
OUTLINE_RAYS, ALONG = 40, 64  # of a picture, and points on each
FILLED = 0.7  # of an outline's length, that the surface reaches
MOST = 0.6  # of the reach: beyond it depths say too little
LENIENT = 0.25  # pixels that an outline of whole pixels may be wrong by
NOWHERE = 1e6  # units: a depth of nothing, and a distance from no outline


class View(NamedTuple):
    """One picture, prepared."""

    matrix: Tensor  # [4, 4] world to camera
    k: Tensor  # [3, 3]
    outline: Tensor  # [H, W] pixels from the outline, negative inside
    depth: Tensor  # [H, W] z-depth; NOWHERE where nothing is
    nearest: Tensor  # [H, W] the smallest one around a pixel
    farthest: Tensor  # [H, W] the largest one


def views_of(renders: Sequence[Render], cameras: Cameras) -> list[View]:
    """The pictures prepared for :func:`signed_distance`."""
    from scipy.ndimage import distance_transform_edt, maximum_filter, minimum_filter

    made = []
    for i, render in enumerate(renders):
        solid = render.alpha[0, 0].numpy() > SURFACE_ALPHA
        if solid.all():
            outline = np.full(solid.shape, -NOWHERE)
        elif not solid.any():
            outline = np.full(solid.shape, NOWHERE)
        else:
            # From the centres of pixels to the border between two of them.
            away, inward = (distance_transform_edt(side) for side in (~solid, solid))
            outline = np.where(solid, 0.5 - inward, away - 0.5)
        depth = np.where(solid, render.depth[0, 0].numpy(), NOWHERE)
        planes = (outline, depth, minimum_filter(depth, 3), maximum_filter(depth, 3))
        camera = cameras[i : i + 1]
        made.append(
            View(
                camera.world_to_cam[0], camera.intrinsics[0],
                *(torch.from_numpy(plane.astype(np.float32)) for plane in planes),
            )
        )  # fmt: skip
    return made


@torch.no_grad()
def signed_distance(
    points: Tensor, views: Sequence[View], reach: float, level: float = 0.0
) -> Tensor:
    """Distance [N] of ``points`` [N, 3] from the surface, negative inside, in units of ``reach``
    and cut to [-1, 1]. What every picture hides is inside; what none reaches is outside. Depths are
    taken to lie ``level`` behind the surface, in the same units."""
    parts = [points.new_zeros(0)]
    for some in points.split(CHUNK):
        depth, outline = _of_some(some, views, reach)
        parts.append(torch.maximum(depth - level, outline).clamp(-1.0, 1.0))
    return torch.cat(parts)


@torch.no_grad()
def outline_level(views: Sequence[View], reach: float, radius: float) -> float:
    """How far behind the outlines depths lie, in units of ``reach``. A ray half a pixel inside of
    an outline touches the surface, and the smallest distance along it should be zero; the result is
    what :data:`FILLED` of all such rays stay below."""
    rng = torch.Generator().manual_seed(0)
    rays, inside = [], []
    for view in views:
        edge = ((view.outline < 0) & (view.outline > -1)).nonzero()
        edge = edge[torch.randperm(len(edge), generator=rng)[:OUTLINE_RAYS]]
        middle = float(view.matrix[2, 3])  # z-depth of the origin
        z = middle + torch.linspace(-radius, radius, ALONG)
        at = (edge.flip(-1) + 0.5 - view.k[:2, 2]) / view.k[[0, 1], [0, 1]]  # [E, 2]
        local = torch.cat([at, torch.ones(len(at), 1)], dim=1)[:, None] * z[:, None]
        rays.append((local - view.matrix[:3, 3]) @ view.matrix[:3, :3])
        inside.append(torch.full((len(edge),), 0.5 * middle / float(view.k[0, 0]) / reach))
    points = torch.cat(rays).reshape(-1, 3)
    depths = [_of_some(some, views, reach)[0] for some in points.split(CHUNK)]
    least = torch.cat([*depths, points.new_zeros(0)]).reshape(-1, ALONG).amin(1)
    level = least + torch.cat(inside)
    return float(level.quantile(FILLED).clamp(-MOST, MOST)) if len(level) else 0.0


def _of_some(points: Tensor, views: Sequence[View], reach: float) -> tuple[Tensor, Tensor]:
    """What depths and what outlines say, [N] each, as :func:`signed_distance` without a level."""
    total, weight = torch.zeros(len(points)), torch.zeros(len(points))
    beside = torch.full((2, len(points)), -NOWHERE)  # the two largest distances from an outline
    for view in views:
        local = points @ view.matrix[:3, :3].T + view.matrix[:3, 3]
        at, inside = _in_picture(local, view)
        pixel = at[:, 1].long() * view.outline.shape[1] + at[:, 0].long()
        size = local[:, 2] / view.k[0, 0]  # of a pixel there, world units
        off = torch.where(inside, (_between(view.outline, at) - LENIENT) * size, -NOWHERE)
        second = torch.minimum(beside[0], off)
        beside = torch.stack([torch.maximum(beside[0], off), torch.maximum(beside[1], second)])
        counts, ahead = _depth_says(local[:, 2], view, pixel, reach)
        counts = counts * (inside & (off < 0))
        total += counts * ahead
        weight += counts
    hull = beside[1] if len(views) > 1 else beside[0]
    known = (total / weight.clamp(min=1e-6)).clamp(-1.0, 1.0)
    # Hidden by all that see it whole: inside. In no picture at all: outside.
    hidden = torch.where(beside[0] <= -NOWHERE, 1.0, -1.0)
    depth = torch.where(weight > 1e-6, known, hidden)
    return depth, hull / reach


def _in_picture(local: Tensor, view: View) -> tuple[Tensor, Tensor]:
    """Where points in the camera's frame [N, 3] are in the picture, [N, 2] in pixels from its
    corner, column first, and whether they are in it [N]; those that are not are put on its edge."""
    height, width = view.outline.shape
    at = local[:, :2] / local[:, 2:].clamp(min=1e-6) * view.k[[0, 1], [0, 1]] + view.k[:2, 2]
    most = at.new_tensor([width - 1e-3, height - 1e-3])
    inside = (local[:, 2] > 0) & (at >= 0).all(1) & (at < most).all(1)
    return torch.minimum(at.clamp(min=0.0), most), inside


def _between(plane: Tensor, at: Tensor) -> Tensor:
    """Values [N] between the pixels of a plane [H, W] around ``at`` [N, 2]."""
    height, width = plane.shape
    grid = 2.0 * at / at.new_tensor([width, height]) - 1.0
    found: Tensor = torch.nn.functional.grid_sample(
        plane[None, None], grid[None, None], padding_mode="border", align_corners=False
    )
    return found[0, 0, 0]


def _depth_says(z: Tensor, view: View, pixel: Tensor, reach: float) -> tuple[Tensor, Tensor]:
    """How much a picture counts for points at z-depth ``z`` [N], and how far they are in front of
    what it sees, in units of ``reach``, at most 1."""
    near, far = view.nearest.flatten()[pixel], view.farthest.flatten()[pixel]
    mixed = far - near > reach  # of two surfaces, or of one with the empty space beside it
    ahead = (torch.where(mixed, near, view.depth.flatten()[pixel]) - z) / reach
    # Behind a surface only what has a single one is judged, and less and less.
    behind = torch.where(mixed, 0.0, (1.0 + ahead).clamp(min=0.0))
    # In front of it the weight falls to that of an empty space.
    before = 1.0 - (1.0 - EMPTY) * ahead.clamp(max=1.0)
    return torch.where(ahead > 0, before, behind), ahead.clamp(max=1.0)


def lattice_points(resolution: int, radius: float) -> Iterator[tuple[slice, Tensor]]:
    """Layers of x of a lattice over [-radius, radius]^3: which, and their points [L * R * R, 3]."""
    axis = torch.linspace(-radius, radius, resolution)
    layers = max(1, CHUNK // resolution**2)
    for first in range(0, resolution, layers):
        x = axis[first : first + layers]
        grid = torch.stack(torch.meshgrid(x, axis, axis, indexing="ij"), dim=-1)
        yield slice(first, first + len(x)), grid.reshape(-1, 3)
