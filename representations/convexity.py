# SPDX-License-Identifier: Apache-2.0
"""The convexity loss of the SDI paper (App. A), in the camera's frame.

Neighbouring normals of a convex surface turn away from each other: from left to right about the
vertical axis, from top to bottom about the horizontal one. The sines of these turns are rewarded.
Measuring them in the camera's frame makes the value independent of where the camera stands; the
published code measures in the world's frame and so favours some azimuths.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def camera_normals(normal_world: Tensor, world_to_cam: Tensor) -> Tensor:
    """World normals [B, 3, H, W] in a frame with +x right, +y up, +z towards the viewer."""
    turned = torch.einsum("bij,bjhw->bihw", world_to_cam[:, :3, :3], normal_world)
    right, down, away = turned.unbind(1)
    return torch.stack([right, -down, -away], dim=1)


def convexity(normal_cam: Tensor, grid: int | None = 8) -> Tensor:
    """Mean sines between adjacent normals, negated: below 0 for convex, above for concave.

    Args:
        normal_cam: [B, 3, H, W] from :func:`camera_normals`; zero where there is no surface,
            which then counts for nothing.
        grid: normals are averaged down to ``grid`` x ``grid`` first, because the sines between
            neighbouring pixels measure noise; None keeps the picture's own.

    Returns: a scalar, finite for an empty picture (0) and differentiable.
    """
    n = normal_cam if grid is None else F.adaptive_avg_pool2d(normal_cam, grid)
    length = n.square().sum(dim=1, keepdim=True)
    surface = length > 0.25  # at least half of the cell looks one way
    n = torch.where(surface, n / length.clamp_min(1e-6).sqrt(), torch.zeros_like(n))
    left, right = n[..., :-1], n[..., 1:]
    above, below = n[..., :-1, :], n[..., 1:, :]
    turn_y = torch.linalg.cross(left, right, dim=1)[:, 1]
    turn_x = torch.linalg.cross(above, below, dim=1)[:, 0]
    loss: Tensor = -(turn_y.mean() + turn_x.mean())
    return loss


def released_convexity(normal_world: Tensor, alpha: Tensor, grid: int = 8) -> Tensor:
    """What the published SDI code computes, for comparisons with its results.

    Normals [B, 3, H, W] of the world frame are moved to [0, 1], multiplied by ``alpha``
    [B, 1, H, W], resized to ``grid`` x ``grid`` from 2 x 2 taps, and the third component of both
    cross products is rewarded. The shift to [0, 1] makes the value depend on the azimuth, and the
    vertical term vanishes at elevation 0.
    """
    shifted = 0.5 * (normal_world + 1.0) * alpha
    small = F.interpolate(shifted, size=(grid, grid), mode="bilinear", align_corners=False)
    across = torch.linalg.cross(small[..., :-1], small[..., 1:], dim=1)[:, 2]
    upwards = torch.linalg.cross(small[..., 1:, :], small[..., :-1, :], dim=1)[:, 2]
    loss: Tensor = -(across.mean() + upwards.mean())
    return loss
