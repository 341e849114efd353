# SPDX-License-Identifier: Apache-2.0
"""Between our world (z up, front +x) and the frames that splat files are written in.

========  =================  ==================  =================================================
name      (x, y, z) becomes  up and front are    for
========  =================  ==================  =================================================
viewer    (x, -z, y)         -y and +x           splat viewers: y down, as 3D Gaussian Splatting
y         (y, z, x)          +y and +z           y-up programs; the frame of our own ``.glb``
z         (x, y, z)          +z and +x           z-up programs; nothing is turned
========  =================  ==================  =================================================

All three are rotations. They permute positions without rounding, and turn the orientation of each
splat and its view-dependent colour along.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .cloud import SplatCloud
from .harmonics import rotate_rest

_HALF = math.sqrt(0.5)


@dataclass(frozen=True)
class Frame:
    """A rotation from our world to a file, written down twice: both must say the same."""

    rows: tuple[tuple[int, int, int], ...]  # [3, 3], entries 0 and +-1
    quat_wxyz: tuple[float, float, float, float]  # of unit length

    def matrix(self) -> Tensor:
        """[3, 3] float64."""
        return torch.tensor(self.rows, dtype=torch.float64)


FRAMES = {
    "viewer": Frame(((1, 0, 0), (0, 0, -1), (0, 1, 0)), (_HALF, _HALF, 0.0, 0.0)),
    "y": Frame(((0, 1, 0), (0, 0, 1), (1, 0, 0)), (0.5, -0.5, -0.5, -0.5)),
    "z": Frame(((1, 0, 0), (0, 1, 0), (0, 0, 1)), (1.0, 0.0, 0.0, 0.0)),
}
"""By the word of ``--up``."""

VIEWER = "viewer"


def to_file_matrix(up: str = VIEWER) -> Tensor:
    """Rotation [3, 3] float64 from our world to a file's frame."""
    return FRAMES[up].matrix()


def rotate_to_file(cloud: SplatCloud, up: str = VIEWER) -> SplatCloud:
    """The same splats in a file's frame."""
    return _rotate(cloud, FRAMES[up].matrix(), FRAMES[up].quat_wxyz)


def rotate_from_file(cloud: SplatCloud, up: str = VIEWER) -> SplatCloud:
    """Undo :func:`rotate_to_file`."""
    w, x, y, z = FRAMES[up].quat_wxyz
    return _rotate(cloud, FRAMES[up].matrix().T, (w, -x, -y, -z))


def turn_about_z(cloud: SplatCloud, degrees: float) -> SplatCloud:
    """The splats turned about the vertical, counter-clockwise seen from above: a front at +x comes
    to +y by 90 degrees. Their view-dependent colours turn along."""
    if degrees % 360.0 == 0.0:
        return cloud
    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    matrix = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    turn = (math.cos(angle / 2), 0.0, 0.0, math.sin(angle / 2))
    return cloud.replace(
        means=(cloud.means.double() @ matrix.T).to(cloud.means),
        quat_wxyz=hamilton(turn, cloud.quat_wxyz.double()).to(cloud.quat_wxyz),
        sh_rest=rotate_rest(cloud.sh_rest, matrix),
    )


def hamilton(turn: tuple[float, float, float, float], quat_wxyz: Tensor) -> Tensor:
    """The rotations ``quat_wxyz`` [N, 4] followed by ``turn`` (w, x, y, z): their product."""
    a, b, c, d = turn
    w, x, y, z = quat_wxyz.unbind(-1)
    return torch.stack(
        [
            a * w - b * x - c * y - d * z,
            a * x + b * w + c * z - d * y,
            a * y - b * z + c * w + d * x,
            a * z + b * y - c * x + d * w,
        ],
        dim=-1,
    )


def _rotate(
    cloud: SplatCloud, matrix: Tensor, turn: tuple[float, float, float, float]
) -> SplatCloud:
    if turn[0] == 1.0:
        return cloud  # nothing is turned
    # Entries of the matrix are 0 and +-1: positions are permuted, not rounded.
    source = matrix.abs().argmax(dim=1)
    sign = matrix.sum(dim=1).to(cloud.means)
    means = cloud.means[:, source] * sign
    quat = hamilton(turn, cloud.quat_wxyz.double())
    return cloud.replace(
        means=means,
        quat_wxyz=quat.to(cloud.quat_wxyz),
        sh_rest=rotate_rest(cloud.sh_rest, matrix),
    )
