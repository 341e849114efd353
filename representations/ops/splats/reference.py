# SPDX-License-Identifier: Apache-2.0
"""Splatting in plain torch: defines the meaning, runs in any dtype on any device.

The picture of a Gaussian under a pinhole camera is approximated by a Gaussian on the screen (EWA
splatting, Zwicker et al. 2001), and the pictures are alpha-composited front to back in the order
of the depth of their centres (3D Gaussian Splatting, Kerbl et al. 2023). Everything here is
differentiated by autograd.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...cameras import rotation_matrices
from ...interface import Cameras
from ..constants import (
    ALPHA_MAX,
    ALPHA_MIN,
    BLUR_PX2,
    EXTENT_SIGMAS,
    FRUSTUM_MARGIN,
    NEAR_PLANE,
    REFERENCE_TILE_PX,
    TRANSMITTANCE_MIN,
)
from .types import Splats, Splatted


class Projection(NamedTuple):
    """Gaussians on the screen."""

    means2d: Tensor  # [B, N, 2] pixels
    conics: Tensor  # [B, N, 3] xx, xy, yy of the inverse covariance
    depths: Tensor  # [B, N] z in the camera frame
    radii: Tensor  # [B, N, 2] int32, half extent per axis, 0 = not drawn


def project(splats: Splats, cameras: Cameras) -> Projection:
    """Project every Gaussian into every camera; what is not drawn gets zeros everywhere."""
    world_to_cam, k = cameras.world_to_cam, cameras.intrinsics
    rotation, translation = world_to_cam[:, :3, :3], world_to_cam[:, :3, 3]
    focal_x, focal_y = k[:, 0, 0, None], k[:, 1, 1, None]  # [B, 1]
    centre_x, centre_y = k[:, 0, 2, None], k[:, 1, 2, None]

    point = torch.einsum("bij,nj->bni", rotation, splats.means) + translation[:, None]
    depth = point[..., 2]
    in_front = (depth > NEAR_PLANE) & torch.isfinite(point).all(-1)
    # A harmless stand-in behind the camera keeps 1/z finite, so that no NaN enters the graph.
    z = torch.where(in_front, depth, torch.ones_like(depth))
    x, y = point[..., 0], point[..., 1]
    means2d = torch.stack([focal_x * x / z + centre_x, focal_y * y / z + centre_y], dim=-1)

    margin_x = FRUSTUM_MARGIN * 0.5 * cameras.width / focal_x
    margin_y = FRUSTUM_MARGIN * 0.5 * cameras.height / focal_y
    slope_x = (x / z).clamp(
        -(centre_x / focal_x + margin_x), (cameras.width - centre_x) / focal_x + margin_x
    )
    slope_y = (y / z).clamp(
        -(centre_y / focal_y + margin_y), (cameras.height - centre_y) / focal_y + margin_y
    )
    zero = torch.zeros_like(z)
    row_x = torch.stack([focal_x / z, zero, -focal_x * slope_x / z], dim=-1)
    row_y = torch.stack([zero, focal_y / z, -focal_y * slope_y / z], dim=-1)
    jacobian = torch.stack([row_x, row_y], dim=-2)  # [B, N, 2, 3]

    axes = rotation_matrices(splats.quat_wxyz) * splats.scale[:, None, :]  # [N, 3, 3]
    screen_axes = jacobian @ (rotation[:, None] @ axes)  # [B, N, 2, 3]
    cov = screen_axes @ screen_axes.transpose(-1, -2)  # [B, N, 2, 2]
    xx, xy, yy = cov[..., 0, 0] + BLUR_PX2, cov[..., 0, 1], cov[..., 1, 1] + BLUR_PX2
    determinant = xx * yy - xy * xy
    conics = torch.stack([yy, -xy, xx], dim=-1) / determinant[..., None]

    radii = _radii(means2d, xx, yy, determinant, splats.opacity, in_front, cameras)
    drawn = (radii[..., 0] > 0)[..., None]
    return Projection(
        torch.where(drawn, means2d, torch.zeros_like(means2d)),
        torch.where(drawn, conics, torch.zeros_like(conics)),
        torch.where(drawn[..., 0], depth, zero),
        radii,
    )


@torch.no_grad()
def _radii(
    means2d: Tensor,
    xx: Tensor,
    yy: Tensor,
    determinant: Tensor,
    opacity: Tensor,
    in_front: Tensor,
    cameras: Cameras,
) -> Tensor:
    """Half extents [B, N, 2] of the region where alpha can reach ALPHA_MIN; 0 = not drawn."""
    sigmas = torch.sqrt(2.0 * torch.log((opacity / ALPHA_MIN).clamp(min=1.0)))
    sigmas = sigmas.clamp(max=EXTENT_SIGMAS)
    extent = torch.ceil(sigmas[None, :, None] * torch.stack([xx, yy], dim=-1).sqrt())
    size = means2d.new_tensor([cameras.width, cameras.height])
    inside = ((means2d + extent > 0) & (means2d - extent < size)).all(-1)
    # An infinite covariance has determinant inf or nan: such a splat is not a picture.
    sound = torch.isfinite(determinant) & (determinant > 0)
    drawn = in_front & inside & sound & (opacity >= ALPHA_MIN)
    extent = extent.clamp(max=2.0**30)
    return torch.where(drawn[..., None], extent, torch.zeros_like(extent)).to(torch.int32)


def _composite(pixels: Tensor, means2d: Tensor, conics: Tensor, opacity: Tensor) -> Tensor:
    """Weights [K, P] of K depth-sorted splats at P pixel centres [P, 2]."""
    delta = pixels[None] - means2d[:, None]  # [K, P, 2]
    dx, dy = delta[..., 0], delta[..., 1]
    xx, xy, yy = conics.T[..., None]  # [K, 1] each
    sigma = 0.5 * (xx * dx * dx + yy * dy * dy) + xy * dx * dy
    alpha = (opacity[:, None] * torch.exp(-sigma)).clamp(max=ALPHA_MAX)
    alpha = torch.where((sigma >= 0) & (alpha >= ALPHA_MIN), alpha, torch.zeros_like(alpha))
    after = (1.0 - alpha).cumprod(0)  # light left behind each splat
    before = torch.cat([torch.ones_like(after[:1]), after[:-1]])
    # The light only shrinks, so "stop at the first" is the same as "drop all below".
    reached = after > TRANSMITTANCE_MIN
    return torch.where(reached, alpha * before, torch.zeros_like(alpha))


def _draw(
    projection: Projection, features: Tensor, opacity: Tensor, size: tuple[int, int]
) -> Tensor:
    """One view: features [N, D] of splats -> picture [D + 1, H, W], the last channel is alpha."""
    height, width = size
    tile = REFERENCE_TILE_PX
    means2d, conics, depths, radii = projection
    order = torch.argsort(depths.detach(), stable=True)
    order = order[radii[order, 0] > 0]
    centre, extent = means2d.detach()[order], radii[order]
    low, high = centre - extent, centre + extent  # [K, 2]
    features = torch.cat([features, torch.ones_like(features[:, :1])], dim=-1)
    rows = []
    for y in range(0, height, tile):
        in_row = (high[:, 1] > y) & (low[:, 1] < y + tile)
        row_ids, row_low, row_high = order[in_row], low[in_row, 0], high[in_row, 0]
        strips = []
        for x in range(0, width, tile):
            ids = row_ids[(row_high > x) & (row_low < x + tile)]
            h, w = min(tile, height - y), min(tile, width - x)
            if len(ids) == 0:
                strips.append(features.new_zeros(features.shape[-1], h, w))
                continue
            pixels = torch.cartesian_prod(
                torch.arange(y, y + h, device=features.device),
                torch.arange(x, x + w, device=features.device),
            ).flip(-1)
            weights = _composite(
                pixels.to(features.dtype) + 0.5, means2d[ids], conics[ids], opacity[ids]
            )
            strips.append((features[ids].T @ weights).unflatten(-1, (h, w)))
        rows.append(torch.cat(strips, dim=-1))
    return torch.cat(rows, dim=-2)


def splat(splats: Splats, features: Tensor, cameras: Cameras) -> Splatted:
    """Draw; see :data:`~.types.Splat`. Differentiable in the cameras too."""
    splats.check(features, cameras)
    projection = project(splats, cameras)
    means2d = projection.means2d
    features = torch.cat([features, projection.depths[..., None]], dim=-1)
    size = (cameras.height, cameras.width)
    picture = torch.stack(
        [
            _draw(
                Projection(means2d[b], *(tensor[b] for tensor in projection[1:])),
                features[b],
                splats.opacity,
                size,
            )
            for b in range(len(cameras))
        ]
    )
    return Splatted(
        features=picture[:, :-2],
        depth=picture[:, -2:-1],
        alpha=picture[:, -1:],
        means2d=means2d,
        radii=projection.radii,
        depths=projection.depths.detach(),
        conics=projection.conics.detach(),
    )
