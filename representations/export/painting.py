# SPDX-License-Identifier: Apache-2.0
"""The colours of points of a surface, from pictures of what it was extracted from.

A picture counts for a point as it looks at it: nothing of the surface may lie between, the depth of
the picture must agree, and the more straight the view, the more it counts. The weights are sharp,
so that a point has the colour of its best pictures, and not the mean of all, in which detail
drowns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..interface import Cameras, Render
from ..ops.meshes import Caster

SURFACE_ALPHA = 0.5
"""A pixel shows a surface when at least half of its light comes from the object."""

SHARPNESS = 6.0  # power of the cosine between view and normal
STEEPEST = 0.15  # smallest cosine at which a point is still seen
BESIDE = 0.02  # of the size of the shape: what lies so little before a point does not hide it
APART = 0.06  # of the size of the shape: the depth of a picture so far off halves its weight
OUTLINE = 2  # pixels from an outline that mix the shape with what is behind it
NEIGHBOURS = 4  # seen points that an unseen one takes its colour from


class Points(NamedTuple):
    """Points of a surface."""

    where: np.ndarray  # [M, 3] float64, world units
    normals: np.ndarray  # [M, 3] of any length
    face: np.ndarray | None = None  # [M] on which each lies, where it lies on one


class Painted(NamedTuple):
    colours: np.ndarray  # [M, 3] in [0, 1], as displayed
    seen: np.ndarray  # [M] whether a picture shows it; the others are filled


def painted(
    points: Points,
    caster: Caster,
    size: float,
    renders: Iterable[Render],
    cameras: Cameras,
    albedo: Callable[[Tensor], Tensor] | None = None,
) -> Painted:
    """Colours of ``points`` of the surface in ``caster``, which is ``size`` large.

    ``renders``: one for each of ``cameras``, on black, on the CPU. ``albedo``: colours [M, 3] at
    points [M, 3] inside of the shape, for those that no picture shows; None: they take the colours
    of the nearest ones that are seen, grey where none is.
    """
    look = _Looker(caster, points, size)
    total, weight = np.zeros((len(points.where), 3)), np.zeros(len(points.where))
    for view, render in enumerate(renders):
        which, counts, colour = look(render, cameras[view : view + 1])
        total[which] += counts[:, None] * colour
        weight[which] += counts
    seen = weight > 0
    colours = total / np.where(seen, weight, 1.0)[:, None]
    if not seen.all():
        colours[~seen] = _unseen(points.where, colours, seen, albedo)
    return Painted(colours.clip(0.0, 1.0), seen)


@dataclass(frozen=True)
class _Looker:
    """What one picture says of points."""

    caster: Caster
    points: Points
    size: float  # of the shape, world units

    def __call__(
        self, render: Render, camera: Cameras
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The points [K] that it shows, how much it counts for each, and their colours [K, 3]."""
        where, normals, face = self.points
        eye = camera.positions[0].double().numpy()
        towards = eye - where
        length = np.linalg.norm(towards, axis=1) * np.linalg.norm(normals, axis=1)
        cosine = (towards * normals).sum(1) / length.clip(1e-30)
        at, z, inside = _project(where, camera)
        which = np.flatnonzero(inside & (cosine > STEEPEST))
        row, column = at[which, 1].astype(int), at[which, 0].astype(int)
        which = which[_clear_of_outlines(render)[row, column]]
        own = None if face is None else face[which]
        which = which[~self.caster.occluded(where[which], eye, BESIDE * self.size, own)]
        # The pictures are on black: divided by alpha they show the surface's own colour.
        alpha, rgb, depth = _bilinear(render, at[which])
        off = (depth - z[which]) / (APART * self.size)
        counts = cosine[which] ** SHARPNESS * np.maximum(0.5 ** (off**2), 1e-6)
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
    """Colours of the points that no picture shows."""
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
