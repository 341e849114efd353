# SPDX-License-Identifier: Apache-2.0
"""The canonical PLY of 3D Gaussian Splatting (Kerbl et al. 2023).

Values are stored before activation: opacity is a logit, scales are natural logs, the quaternion
is w, x, y, z and of unit length, colour = 0.5 + 0.28209479177387814 * f_dc. f_rest is
channel-major: all red coefficients, then green, then blue. Binary little endian, every property
a ``float``, normals present and zero. The frame is y-down unless asked
otherwise: :mod:`representations.axes`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ..axes import VIEWER
from ..cloud import SplatCloud
from ..files import write_atomically
from .layout import DEFAULT, Layout


def property_names(sh_rest_count: int) -> list[str]:
    """Column names for ``sh_rest_count`` higher coefficients per channel."""
    return [
        *("x", "y", "z", "nx", "ny", "nz"),
        *(f"f_dc_{i}" for i in range(3)),
        *(f"f_rest_{i}" for i in range(3 * sh_rest_count)),
        "opacity",
        *(f"scale_{i}" for i in range(3)),
        *(f"rot_{i}" for i in range(4)),
    ]


def write_ply(path: str | Path, cloud: SplatCloud, layout: Layout = DEFAULT) -> int:
    """Write splats of our world frame as ``layout`` says; returns how many rows the file has.

    Raises ValueError when no splat is left, OSError when the disk refuses; the old file survives.
    """
    from plyfile import PlyData, PlyElement

    cloud = layout.apply(cloud)
    n, rest = len(cloud), cloud.sh_rest.shape[1]
    columns = torch.cat(
        [
            cloud.means,
            torch.zeros(n, 3),
            cloud.sh_dc,
            cloud.sh_rest.transpose(1, 2).reshape(n, 3 * rest),  # channel-major
            cloud.opacity_logit[:, None],
            cloud.log_scale,
            torch.nn.functional.normalize(cloud.quat_wxyz, dim=-1),
        ],
        dim=1,
    )
    names = property_names(rest)
    rows = np.ascontiguousarray(columns.numpy(), dtype="<f4").view(
        [(name, "<f4") for name in names]
    )
    # Viewers' frame is what every program expects of a file that says nothing.
    axis = [] if layout.up in (None, VIEWER) else [f"Vertical Axis: {layout.up}"]
    vertex = PlyElement.describe(rows[:, 0], "vertex")
    data = PlyData([vertex], text=False, byte_order="<", comments=axis)
    write_atomically(path, data.write)
    return n
