# SPDX-License-Identifier: Apache-2.0
"""Cut a surface into charts and pack them into a square, by xatlas (extra ``mesh``)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..checks import pip_install

PADDING = 4  # texels between charts, about: what a coarser copy of the picture may mix


class Unwrapped(NamedTuple):
    """The same triangles, with a vertex of its own wherever two charts meet."""

    source: np.ndarray  # [V'] the vertex that each new one is a copy of
    faces: np.ndarray  # [F, 3] int64, in the order of the old ones
    uv: np.ndarray  # [V', 2] float64 in [0, 1]; (0, 0) is the upper left corner of the picture


def _xatlas() -> Any:
    try:
        import xatlas
    except ImportError as error:
        raise ValueError(
            f"a texture needs the package xatlas, which cannot be imported here ({error}): "
            f"{pip_install('xatlas')}, or leave the texture out for colours at the vertices"
        ) from None
    return xatlas


def unwrap(vertices: np.ndarray, faces: np.ndarray, size: int) -> Unwrapped:
    """Charts that do not overlap, for a picture of ``size`` x ``size`` texels.

    Raises ValueError without xatlas, or when the charts do not fit into one picture.
    """
    xatlas = _xatlas()
    # Its tolerances are absolute: every shape comes in the same size.
    centred = np.asarray(vertices, np.float64) - vertices.mean(0)
    scale = max(float(np.abs(centred).max()), 1e-300)
    atlas = xatlas.Atlas()
    atlas.add_mesh((centred / scale).astype(np.float32), np.asarray(faces, np.uint32))
    packing = xatlas.PackOptions()
    packing.resolution, packing.padding, packing.bilinear = size, PADDING, True
    atlas.generate(xatlas.ChartOptions(), packing)
    if atlas.atlas_count != 1:
        raise ValueError(
            f"the surface falls into {atlas.chart_count} charts, which do not fit into one picture "
            f"of {size} x {size} texels: choose a larger texture, or fewer faces"
        )
    source, found, uv = atlas[0]
    # The picture is a square, and xatlas measures each axis by its own length.
    sides = np.array([atlas.width, atlas.height], np.float64)
    return Unwrapped(
        np.asarray(source, np.int64),
        np.asarray(found, np.int64),
        np.clip(np.asarray(uv, np.float64) * (sides / sides.max()), 0.0, 1.0),
    )
