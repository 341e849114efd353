# SPDX-License-Identifier: Apache-2.0
"""A ball of even triangles with a picture around it, to make another shape of."""

from __future__ import annotations

import numpy as np

from ..interface import Say
from .config import MeshInit, TexturedConfig
from .reading import GREY, SkinnedSurface, read_surface

RADIUS = 0.4  # world units, where no other is given
MARGIN = 2.0  # texels between a chart and its neighbours, so that look-ups do not mix them
# Right, up and outward of the six sides of a cube.
SIDES = (
    ((0, 1, 0), (0, 0, 1), (1, 0, 0)), ((-1, 0, 0), (0, 0, 1), (0, 1, 0)),
    ((0, -1, 0), (0, 0, 1), (-1, 0, 0)), ((1, 0, 0), (0, 0, 1), (0, -1, 0)),
    ((0, 1, 0), (-1, 0, 0), (0, 0, 1)), ((0, 1, 0), (1, 0, 0), (0, 0, -1)),
)  # fmt: skip


def first_surface(config: TexturedConfig, say: Say) -> SkinnedSurface:
    """What a run begins with: a ball where a shape is trained and no file is named, else the
    file."""
    if config.shape.rate > 0.0 and not config.init.path:
        return ball(config.init, config.size)
    return read_surface(config.init, config.size, say)


def ball(init: MeshInit, size: int) -> SkinnedSurface:
    """A ball of :attr:`MeshInit.radius` around the origin: a cube whose sides of
    :attr:`MeshInit.detail` squares each are blown up, by even angles. Each side has a third of the
    width and half of the height of a grey picture of ``size`` x ``size`` texels."""
    n = init.detail
    step = np.linspace(-1.0, 1.0, n + 1)
    even = np.tan(step * np.pi / 4.0)
    even = 0.5 * (even - even[::-1])  # sides meet to the bit
    even[[0, -1]] = -1.0, 1.0
    across, down = np.meshgrid(even, -even)
    u, v = np.meshgrid(0.5 * (step + 1.0), 0.5 * (step + 1.0))
    places, charts = [], []
    for number, side in enumerate(SIDES):
        right, up, out = np.array(side, np.float64)
        cube = across[..., None] * right + down[..., None] * up + out
        # From a cube's own numbers, the same for all sides that share an edge.
        places.append(cube / np.linalg.norm(np.sort(np.abs(cube), axis=-1), axis=-1)[..., None])
        column, row = number % 3, number // 3
        inside = [
            (first + MARGIN + (share * (cell - 2.0 * MARGIN))) / size
            for first, share, cell in (
                (column * (size / 3.0), u, size / 3.0), (row * (size / 2.0), v, size / 2.0)
            )
        ]  # fmt: skip
        charts.append(np.stack(inside, -1))
    corner = np.arange(6 * (n + 1) ** 2).reshape(6, n + 1, n + 1)
    a, b, c, d = corner[:, :-1, :-1], corner[:, 1:, :-1], corner[:, 1:, 1:], corner[:, :-1, 1:]
    faces = np.concatenate([np.stack([a, b, c], -1), np.stack([a, c, d], -1)], axis=1)
    vertices = (init.radius or RADIUS) * np.stack(places).reshape(-1, 3)
    return SkinnedSurface(
        vertices.astype(np.float32) + np.float32(0.0), faces.reshape(-1, 3),
        np.stack(charts).reshape(-1, 2).astype(np.float32),
        np.full((size, size, 3), GREY, np.float32),
    )  # fmt: skip
