# SPDX-License-Identifier: Apache-2.0
"""Drawing 3D Gaussians with our Triton kernels, behind two autograd functions. float32 only.

Triton comes with every CUDA build of torch on Linux and compiles without the CUDA toolkit. The
host waits for the card once per picture, for the length of the lists. Gradients are added up by
atomics in no fixed order. Not differentiable in the cameras (the reference is).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...interface import Cameras
from ..triton_launch import blocks, on
from . import triton_project, triton_raster, triton_tiles
from .staged import draw
from .types import Splats, Splatted

TILE = 16
"""Pixels along the edge of a tile."""

FORWARD = {"SPLATS": 4, "num_warps": 4, "TILE": TILE}
BACKWARD = {"SPLATS": 2, "num_warps": 2, "TILE": TILE}
"""Splats that a program takes at once, held in the registers of each thread for its pixels, and
warps. Few warps with many pixels each spend less on sums over pixels, many hide more waiting:
benchmarks/triton_splats.py prints registers, occupancy and instructions of either choice."""

MOST_CHANNELS = 16
"""Features of a program; more are drawn by more programs, which walk the same list again."""

LANES = 128  # splats of a program of the projection
LIST_LANES = 32  # splats of a program that deals them out: they wait for the largest of them


class Lists(NamedTuple):
    """Splats of every tile of every view, nearest first."""

    starts: Tensor  # [B * tiles + 1] int64
    ids: Tensor  # [P] int32


def _grid(size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of tiles of a picture of (height, width)."""
    return blocks(size[0], TILE), blocks(size[1], TILE)


class _Project(torch.autograd.Function):
    """means, quat_wxyz, scale -> means2d, conics, depths, radii."""

    @staticmethod
    def forward(
        ctx: Any, means: Tensor, quat: Tensor, scale: Tensor, opacity: Tensor, cameras: Cameras
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        views, n, size = len(cameras), len(means), (cameras.width, cameras.height)
        shapes = tuple(t.contiguous() for t in (means, quat, scale))
        lenses = (
            cameras.world_to_cam[:, :3].to(means).contiguous(),
            cameras.intrinsics.to(means).contiguous(),
        )
        means2d, conics = means.new_empty(views, n, 2), means.new_empty(views, n, 3)
        depths = means.new_empty(views, n)
        radii = torch.empty(views, n, 2, dtype=torch.int32, device=means.device)
        if n and views:
            with on(means):
                triton_project.project_forward[(blocks(n, LANES), views)](
                    *shapes, opacity.contiguous(), *lenses, means2d, conics, depths, radii,
                    n, *size, BLOCK=LANES,
                )  # fmt: skip
        ctx.save_for_backward(*shapes, *lenses, conics, radii)
        ctx.size = size
        ctx.mark_non_differentiable(radii)
        return means2d, conics, depths, radii

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_means2d: Tensor, d_conics: Tensor, d_depths: Tensor, _: Any) -> Any:
        saved = ctx.saved_tensors
        views, n = saved[-1].shape[:2]
        out = tuple(torch.zeros_like(t) for t in saved[:3])
        if n and views:
            with on(saved[0]):
                triton_project.project_backward[(blocks(n, LANES),)](
                    *saved, d_means2d.contiguous(), d_conics.contiguous(), d_depths.contiguous(),
                    *out, n, views, *ctx.size, BLOCK=LANES,
                )  # fmt: skip
        return (*out, None, None)


@torch.no_grad()
def tile_lists(
    means2d: Tensor,
    conics: Tensor,
    opacity: Tensor,
    depths: Tensor,
    radii: Tensor,
    size: tuple[int, int],
) -> Lists:
    """Deal the splats of all views out to tiles of a picture of ``size`` (height, width).

    Counted, summed up, written and sorted by one key (view, tile, depth); equal depths keep the
    order of the splats. The host waits once, for the sum.
    """
    views, n = depths.shape
    rows, columns = _grid(size)
    device, tiles = means2d.device, rows * columns
    if n * views == 0:
        none = torch.zeros(views * tiles + 1, dtype=torch.int64, device=device)
        return Lists(none, torch.empty(0, dtype=torch.int32, device=device))
    seen = (means2d, conics, opacity.contiguous(), depths, radii)
    numbers = (n, views * n, size[1], size[0], columns, rows)
    grid = (blocks(views * n, LIST_LANES),)
    options = {"TILE": TILE, "BLOCK": LIST_LANES, "num_warps": 1}
    counts = torch.empty(views * n, dtype=torch.int64, device=device)
    with on(means2d):
        triton_tiles.deal_out[grid](
            *seen, counts, counts, counts, radii, *numbers, WRITE=False, **options
        )
    ends = counts.cumsum(0)
    total = int(ends[-1])
    keys = torch.empty(total, dtype=torch.int64, device=device)
    splats = torch.empty(total, dtype=torch.int32, device=device)
    if total:
        with on(means2d):
            triton_tiles.deal_out[grid](
                *seen, ends - counts, counts, keys, splats, *numbers, WRITE=True, **options
            )
    keys, order = torch.sort(keys, stable=True)
    borders = torch.arange(views * tiles + 1, device=device) << 32
    return Lists(torch.searchsorted(keys, borders), splats[order])


def _channels(count: int) -> tuple[int, int]:
    """Features of a program, a power of two, and programs for all of them."""
    most = min(1 << (count - 1).bit_length(), MOST_CHANNELS)
    return most, blocks(count, most)


def _in_groups(features: Tensor) -> Tensor:
    """[B, N, C] -> [groups, B, N, channels of a program], contiguous, filled up with zeros."""
    channels, groups = _channels(features.shape[-1])
    full = torch.nn.functional.pad(features, (0, groups * channels - features.shape[-1]))
    grouped: Tensor = full.unflatten(-1, (groups, channels))
    return grouped.movedim(-2, 0).contiguous()


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
        lists = tile_lists(means2d, conics, opacity, depths, radii, size)
        (views, n, channels), (rows, columns) = features.shape, _grid(size)
        column = opacity.expand(views, n)[..., None]
        filler = column.new_zeros(()).expand(views, n, triton_raster.RECORD - 6)
        records = torch.cat([means2d, conics, column, filler], dim=-1)
        given = (*lists, records, _in_groups(features))
        picture = features.new_empty(views, channels, *size)
        light = features.new_empty(views, *size)
        latest = torch.empty(views, *size, dtype=torch.int32, device=features.device)
        numbers = (n, views, channels, size[1], size[0], columns, rows * columns)
        with on(features):
            triton_raster.raster_forward[(views * rows * columns, len(given[-1]))](
                *given, picture, light, latest, *numbers, CHANNELS=given[-1].shape[-1], **FORWARD
            )  # fmt: skip
        ctx.save_for_backward(*given, light, latest)
        ctx.numbers = numbers
        return picture, 1.0 - light

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_picture: Tensor, d_alpha: Tensor) -> Any:
        saved, numbers = ctx.saved_tensors, ctx.numbers
        records, features = (torch.zeros_like(tensor) for tensor in saved[2:4])
        jobs, groups = len(records) * numbers[-1], len(features)
        with on(records):
            triton_raster.raster_backward[(jobs, groups)](
                *saved, d_picture.contiguous(), d_alpha.contiguous(), records, features, *numbers,
                CHANNELS=features.shape[-1], **BACKWARD,
            )  # fmt: skip
        flat = features.movedim(0, -2).flatten(-2)[..., : numbers[2]]
        return (
            records[..., :2], records[..., 2:5], records[..., 5].sum(0), flat, None, None, None,
        )  # fmt: skip


def splat(splats: Splats, features: Tensor, cameras: Cameras) -> Splatted:
    """Draw; see :data:`~representations.ops.splats.types.Splat`."""
    return draw("triton", _Project, _Rasterise, splats, features, cameras)
