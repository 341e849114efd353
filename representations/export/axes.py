# SPDX-License-Identifier: Apache-2.0
"""Between our world (z up, front +x) and the frame of splat viewers (y down).

(x, y, z) -> (x, -z, y): a rotation by 90 degrees about x, so up (+z) becomes -y.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..gaussians.cloud import SplatCloud
from ..gaussians.harmonics import rotate_rest

_TO_FILE = ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0), (0.0, 1.0, 0.0))
_HALF = math.sqrt(0.5)


def to_file_matrix() -> Tensor:
    """Rotation [3, 3] float64 from our world to the file's frame."""
    return torch.tensor(_TO_FILE, dtype=torch.float64)


def rotate_to_file(cloud: SplatCloud) -> SplatCloud:
    """The same splats in the file's frame."""
    return _rotate(cloud, to_file_matrix(), (_HALF, _HALF))


def rotate_from_file(cloud: SplatCloud) -> SplatCloud:
    """Undo :func:`rotate_to_file`."""
    return _rotate(cloud, to_file_matrix().T, (_HALF, -_HALF))


def _rotate(cloud: SplatCloud, matrix: Tensor, half_angle: tuple[float, float]) -> SplatCloud:
    # Entries of the matrix are 0 and +-1: positions are permuted, not rounded.
    source = matrix.abs().argmax(dim=1)
    sign = matrix.sum(dim=1).to(cloud.means)
    means = cloud.means[:, source] * sign
    a, b = half_angle  # the rotation's quaternion is (a, b, 0, 0)
    w, x, y, z = cloud.quat_wxyz.double().unbind(-1)
    quat = torch.stack([a * w - b * x, a * x + b * w, a * y - b * z, a * z + b * y], dim=-1)
    return cloud.replace(
        means=means,
        quat_wxyz=quat.to(cloud.quat_wxyz),
        sh_rest=rotate_rest(cloud.sh_rest, matrix),
    )
