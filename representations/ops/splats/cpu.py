# SPDX-License-Identifier: Apache-2.0
"""The CPU back-end: numba kernels behind two autograd functions. float32 only.

Not differentiable in the cameras (the reference is). Results are the same bit for bit for any
number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...interface import Cameras
from ..cpu_jit import array
from . import cpu_project, cpu_raster, cpu_tiles
from .staged import draw
from .types import Splats, Splatted


class _Project(torch.autograd.Function):
    """means, quat_wxyz, scale -> means2d, conics, depths, radii."""

    @staticmethod
    def forward(
        ctx: Any, means: Tensor, quat: Tensor, scale: Tensor, opacity: Tensor, cameras: Cameras
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        inputs = tuple(array(tensor) for tensor in (means, quat, scale))
        view = (
            array(cameras.world_to_cam[:, :3]),
            array(cameras.intrinsics),
            cameras.width,
            cameras.height,
        )
        ctx.shape = (*inputs, *view)
        means2d, conics, depths, radii = cpu_project.forward(ctx.shape, array(opacity))
        ctx.seen = conics, radii
        out = tuple(torch.from_numpy(array) for array in (means2d, conics, depths, radii))
        ctx.mark_non_differentiable(out[3])
        return out  # type: ignore[return-value]

    @staticmethod
    def backward(ctx: Any, d_means2d: Tensor, d_conics: Tensor, d_depths: Tensor, _: Any) -> Any:
        pull = tuple(array(tensor) for tensor in (d_means2d, d_conics, d_depths))
        out = cpu_project.backward(ctx.shape, ctx.seen, pull)
        return (*(torch.from_numpy(array) for array in out), None, None)


def _by_depth(depths: np.ndarray, radii: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Splat ids [B, N], the visible ones first and by depth, then by id; and their number [B].

    The bits of a positive float32 grow with it, so depth and id fit one integer, and sorting
    those is several times faster than a stable sort of depths.
    """
    visible = radii[..., 0] > 0
    key = np.where(visible, depths, np.float32(np.inf)).view(np.int32).astype(np.int64) << 32
    key |= np.arange(depths.shape[1])
    key.sort(axis=1)
    key &= 0xFFFFFFFF
    return key, visible.sum(1)


class _Rasterise(torch.autograd.Function):
    """means2d, conics, opacity, features [B, N, C] -> picture [B, C, H, W], alpha [B, H, W]."""

    @staticmethod
    def forward(
        ctx: Any,
        means2d: Tensor,
        conics: Tensor,
        opacity: Tensor,
        features: Tensor,
        depths: Tensor,
        radii: Tensor,
        size: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        height, width = size
        order, drawn = _by_depth(array(depths), array(radii))
        arrays = tuple(array(t) for t in (means2d, conics, opacity, features))
        seen = (*arrays[:2], array(radii), arrays[2])
        pairs = cpu_tiles.bin_tiles(order, drawn, seen, (width, height))
        picture, light, last = cpu_raster.forward(pairs, arrays, width, height)
        ctx.pairs, ctx.splats, ctx.left = pairs, arrays, (light, last)
        return torch.from_numpy(picture), 1.0 - torch.from_numpy(light)

    @staticmethod
    def backward(ctx: Any, d_picture: Tensor, d_alpha: Tensor) -> Any:
        pull = array(d_picture), array(d_alpha)
        rows = cpu_raster.backward(ctx.pairs, ctx.splats, ctx.left, pull)
        starts, ids, _ = ctx.pairs
        rows = cpu_raster.reduce_rows(starts, ids, rows, *ctx.splats[3].shape[:2])
        grad = torch.from_numpy(rows)  # [B, N, 6 + C]
        return grad[..., :2], grad[..., 2:5], grad[..., 5].sum(0), grad[..., 6:], None, None, None


def splat(splats: Splats, features: Tensor, cameras: Cameras) -> Splatted:
    """Draw; see :data:`~representations.ops.splats.types.Splat`."""
    return draw("cpu", _Project, _Rasterise, splats, features, cameras)
