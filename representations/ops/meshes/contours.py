# SPDX-License-Identifier: Apache-2.0
"""The outline of triangles in a picture, with gradient to their corners.

A ray hits a triangle or it does not: a picture made of rays does not say where to an outline should
move. Here each contour edge is followed through the picture. Where it crosses the line between the
centres of two neighbouring samples, the two are blended by the place of the crossing, so that the
picture moves with the edge: what Laine et al. 2020 ("Modular Primitives for High-Performance
Differentiable Rendering", 3.5) do from the samples' side, done from the edges' side, which does not
miss the edges of triangles that are smaller than a sample.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...interface import Cameras
from .cast import Caster

NEAREST = 1e-4  # world units: edges that reach behind it are left out
IN_FRONT = 1e-3  # of the size of a mesh: what is nearer by less hides no edge
SLOPE = 8.0  # by how many widths of a sample a surface may lie behind its own edge, one sample on


class Edges(NamedTuple):
    """Edges that can be an outline: those of one triangle, and those between two."""

    ends: Tensor  # [E, 2] int64, corners
    opposite: Tensor  # [E, 2] int64, the third corner of each triangle; twice the same at a rim


def edges_of(faces: np.ndarray) -> Edges:
    """The edges of faces [F, 3] of welded corners. Triangles that have a corner twice have none;
    an edge of more than two triangles appears for each two that follow each other."""
    kept = faces[(faces != np.roll(faces, 1, axis=1)).all(1)]
    ends = np.concatenate([kept[:, [0, 1]], kept[:, [1, 2]], kept[:, [2, 0]]])
    opposite = np.concatenate([kept[:, 2], kept[:, 0], kept[:, 1]])
    ends = np.sort(ends, axis=1)
    order = np.lexsort((ends[:, 1], ends[:, 0]))
    ends, opposite = ends[order], opposite[order]
    same = (ends[1:] == ends[:-1]).all(1)
    first = np.flatnonzero(same)
    alone = np.ones(len(ends), bool)
    alone[first], alone[first + 1] = False, False
    pair = np.concatenate([np.flatnonzero(alone), first])
    other = np.concatenate([np.flatnonzero(alone), first + 1])
    return Edges(
        torch.from_numpy(ends[pair]),
        torch.from_numpy(np.stack([opposite[pair], opposite[other]], 1)),
    )


class Crossings(NamedTuple):
    """Where contour edges cross the lines between neighbouring samples."""

    near: Tensor  # [N] int64, flat index in [B, H, W] of the sample on the surface's side
    far: Tensor  # [N] int64, the one on the other side
    place: Tensor  # [N] in [0, 1] from near to far, with gradient
    depth: Tensor  # [N] z of the edge there, without
    width: Tensor  # [N] of a sample there, world units


def crossings(cameras: Cameras, vertices: Tensor, edges: Edges, caster: Caster) -> Crossings:
    """All visible ones. ``vertices`` [V, 3] float64 with gradient; ``caster`` holds the same
    triangles."""
    found = [_of_view(cameras, view, vertices, edges, caster) for view in range(len(cameras))]
    return Crossings(*(torch.cat(part) for part in zip(*found, strict=True)))


def _of_view(
    cameras: Cameras, view: int, vertices: Tensor, edges: Edges, caster: Caster
) -> Crossings:
    matrix, lens = (x[view].to(vertices) for x in (cameras.world_to_cam, cameras.intrinsics))
    seen = vertices @ matrix[:3, :3].T + matrix[:3, 3]
    z = seen[:, 2].detach()
    flat = (seen @ lens.T)[:, :2] / seen[:, 2:].clamp(min=NEAREST)  # [V, 2] pixels
    outline = _outline(flat.detach(), z, edges)
    ends, third = edges.ends[outline], edges.opposite[outline, 0]
    a, b = flat[ends[:, 0]], flat[ends[:, 1]]
    along = (b - a).detach().abs()
    steep = along[:, 1] >= along[:, 0]  # steep edges cross rows, flat ones columns
    parts = [
        _crossed(cameras, axis, a[mine], b[mine], flat[third[mine]].detach(), z[ends[mine]],
                 ends[mine])
        for axis, mine in enumerate((steep, ~steep))
    ]  # fmt: skip
    near, far, place, depth, at, share = (torch.cat(part) for part in zip(*parts, strict=True))
    corner = vertices.detach()[at]  # [N, 2, 3]
    points = corner[:, 0] + share[:, None] * (corner[:, 1] - corner[:, 0])
    eye = cameras.positions[view].double().cpu().numpy()
    hidden = caster.occluded(points.cpu().numpy(), eye, IN_FRONT * caster.size)
    open_to_view = torch.from_numpy(~hidden).to(near.device)
    first = view * cameras.height * cameras.width
    return Crossings(
        near[open_to_view] + first, far[open_to_view] + first, place[open_to_view],
        depth[open_to_view], depth[open_to_view] / lens[0, 0],
    )  # fmt: skip


def _outline(flat: Tensor, z: Tensor, edges: Edges) -> Tensor:
    """Which edges [E] have nothing on one side in the picture: those at a rim, and those both of
    whose triangles lie on the same side."""
    a, b = flat[edges.ends[:, 0]], flat[edges.ends[:, 1]]
    side = _side(a[:, None], b[:, None], flat[edges.opposite])  # [E, 2]
    before = (z[edges.ends] > NEAREST).all(1) & (z[edges.opposite] > NEAREST).all(1)
    return before & (side[:, 0] * side[:, 1] > 0)


def _side(a: Tensor, b: Tensor, point: Tensor) -> Tensor:
    """Twice the signed area of a triangle [..., 2]."""
    one, other = b - a, point - a
    return one[..., 0] * other[..., 1] - one[..., 1] * other[..., 0]


def _crossed(
    cameras: Cameras, axis: int, a: Tensor, b: Tensor, third: Tensor, z: Tensor, ends: Tensor
) -> tuple[Tensor, ...]:
    """Where edges from ``a`` to ``b`` [E, 2] cross the lines along ``axis`` through the centres of
    samples: near and far sample in the picture, place, depth, the edge's ends, and the share of the
    way from one to the other in the world."""
    size = (cameras.width, cameras.height)
    start, stop = a[:, 1 - axis].detach(), b[:, 1 - axis].detach()
    first = (torch.minimum(start, stop) - 0.5).ceil().clamp(0, size[1 - axis])
    last = (torch.maximum(start, stop) - 0.5).ceil().clamp(0, size[1 - axis])  # not included
    count = (last - first).long().clamp(min=0)
    edge = torch.repeat_interleave(torch.arange(len(a), device=a.device), count)
    begin = torch.repeat_interleave(count.cumsum(0) - count, count)
    line = first.long()[edge] + torch.arange(len(edge), device=a.device) - begin
    a, b, third, z, ends = a[edge], b[edge], third[edge], z[edge], ends[edge]
    done = (line + 0.5 - a[:, 1 - axis]) / (b - a)[:, 1 - axis]
    where = a[:, axis] + done * (b - a)[:, axis]
    low = (where.detach() - 0.5).floor()
    offset = where - (low + 0.5)
    # The surface lies where the third corner of its triangle lies.
    turned = _side(a.detach(), b.detach(), third) * (b - a).detach()[:, 1 - axis]
    before = (turned > 0) if axis == 0 else (turned < 0)
    low = low.long()
    near, far = torch.where(before, low, low + 1), torch.where(before, low + 1, low)
    inside = (low >= 0) & (low + 1 < size[axis])
    stride = (1, cameras.width)
    row = line * stride[1 - axis]
    share = done.detach() / z[:, 1]
    depth = 1.0 / ((1.0 - done.detach()) / z[:, 0] + share)
    place = torch.where(before, offset, 1.0 - offset)
    everything = (
        row + near * stride[axis], row + far * stride[axis], place, depth, ends, share * depth
    )  # fmt: skip
    return tuple(part[inside] for part in everything)


def blended(values: Tensor, z: Tensor, crossed: Crossings) -> Tensor:
    """Values [N, C] of all samples, those beside an outline mixed with what is beyond it by the
    share of a sample's width that it covers. ``z`` [N] without gradient, inf where nothing is."""
    near, far = crossed.near, crossed.far
    # What is thinner than a sample lies between rays: those beside it show what is behind.
    mine = z[near] <= crossed.depth + SLOPE * crossed.width
    near, far, place = near[mine], far[mine], crossed.place[mine].to(values)[:, None]
    step = values[near] - values[far]
    return values.index_add(0, far, (place - 0.5).clamp(min=0.0) * step).index_add(
        0, near, -(0.5 - place).clamp(min=0.0) * step
    )
