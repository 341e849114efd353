# SPDX-License-Identifier: Apache-2.0
"""Which texel shows which point of a surface, and what the others hold."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

AT_ONCE = 2**21  # texels looked at together, so that memory stays flat
EDGE = 1e-9  # of a weight: a texel exactly on an edge belongs to a triangle beside it


class Texels(NamedTuple):
    """The texels whose centre lies on a triangle, row by row of the picture."""

    place: np.ndarray  # [M] row * width + column, ascending, each once
    face: np.ndarray  # [M] the triangle
    weight: np.ndarray  # [M, 3] float64 of its corners, sums to 1

    def at(self, values: np.ndarray, faces: np.ndarray) -> np.ndarray:
        """Values [V, C] of corners between them, [M, C]."""
        mixed: np.ndarray = np.einsum("mk,mkc->mc", self.weight, values[faces[self.face]])
        return mixed

    def picture(self, colours: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """[H, W, 3] float32 of their colours [M, 3]; black elsewhere."""
        flat = np.zeros((size[0] * size[1], 3), np.float32)
        flat[self.place] = colours
        return flat.reshape(*size, 3)

    def covered(self, size: tuple[int, int]) -> np.ndarray:
        """[H, W] whether a texel is one of them."""
        flat = np.zeros(size[0] * size[1], bool)
        flat[self.place] = True
        return flat.reshape(size)


def texels_of(uv: np.ndarray, faces: np.ndarray, size: tuple[int, int]) -> Texels:
    """The texels of a picture of ``size`` (height, width) under triangles with corners ``uv``
    [V, 2], (0, 0) its upper left corner. Where triangles overlap, the first one has the texel."""
    height, width = size
    corners = uv[faces] * np.array([width, height], np.float64) - 0.5  # [F, 3, 2]; centres whole
    low = np.ceil(corners.min(1) - EDGE).astype(np.int64).clip(0)
    high = np.floor(corners.max(1) + EDGE).astype(np.int64)
    high = np.minimum(high, [width - 1, height - 1])
    extent = (high - low + 1).clip(0)
    ends = np.cumsum(extent[:, 0] * extent[:, 1])
    parts = []
    first = 0
    while first < len(faces):
        before = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + AT_ONCE, side="right")))
        parts.append(
            _inside(corners[first:last], low[first:last], extent[first:last], first, width)
        )
        first = last
    index, face, weight = (np.concatenate(each) for each in zip(*parts, strict=True))
    index, kept = np.unique(index, return_index=True)
    return Texels(index, face[kept], weight[kept])


def _inside(
    corners: np.ndarray, low: np.ndarray, extent: np.ndarray, first: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Index, face and weights of the texels in the boxes of some triangles that lie on them."""
    count = extent[:, 0] * extent[:, 1]
    face = np.repeat(np.arange(len(count)), count)
    place = np.arange(len(face)) - np.repeat(np.cumsum(count) - count, count)
    across = np.maximum(extent[face, 0], 1)
    column, row = low[face, 0] + place % across, low[face, 1] + place // across
    a, b, c = corners[face, 0], corners[face, 1], corners[face, 2]
    at = np.stack([column, row], axis=1).astype(np.float64)
    area = _cross(b - a, c - a)
    with np.errstate(divide="ignore", invalid="ignore"):
        one, two = _cross(at - a, c - a) / area, _cross(b - a, at - a) / area
    weight = np.stack([1.0 - one - two, one, two], axis=1)
    on = (weight >= -EDGE).all(1) & (np.abs(area) > 0)  # a NaN is not on it
    return (row * width + column)[on], face[on] + first, weight[on]


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    value: np.ndarray = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
    return value


def filled(picture: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The picture [H, W, C] with each texel that is not ``known`` [H, W] given the value of the
    nearest one that is: seams do not show the empty space between charts, however small a viewer
    draws the picture. Unchanged where nothing is known."""
    from scipy.ndimage import distance_transform_edt

    if not known.any():
        return picture
    nearest = distance_transform_edt(~known, return_distances=False, return_indices=True)
    out: np.ndarray = picture[nearest[0], nearest[1]]
    return out
