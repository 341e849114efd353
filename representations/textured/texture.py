# SPDX-License-Identifier: Apache-2.0
"""A picture looked up between its texels and between coarser copies of itself (Williams 1983), with
gradient to its texels.

A pixel of a small view covers many texels. Were only the nearest four of them asked, only they
would learn, and the rest of the texture would keep what it began with: grain. A coarser copy holds
means, and its gradient reaches all of them. The means overlap and fall off towards their sides, or
their gradient would print squares on the texture. Texels between charts belong to no surface, and
hardly count in a mean.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEVELS = 6  # copies, the picture itself included: each half as wide as the one before
TENT = (0.125, 0.375, 0.375, 0.125)  # weights of a mean along an axis
OUTSIDE = 1e-3  # weight of a texel that belongs to no surface


def pyramid(texture: Tensor, weight: Tensor) -> list[Tensor]:
    """The picture [H, W, 3] and its coarser copies, each [H', W', 4]: colour times weight, and
    weight. ``weight`` [H, W] says how much a texel counts, above 0. A side of odd length is not
    halved any more."""
    level = torch.cat([texture * weight[..., None], weight[..., None]], dim=-1)
    levels = [level]
    while len(levels) < LEVELS and level.shape[0] % 2 == level.shape[1] % 2 == 0:
        level = _halved(level)
        levels.append(level)
    return levels


def _halved(level: Tensor) -> Tensor:
    """Half as wide and high: each texel a mean of four by four, the inner ones three times as heavy
    along each axis; those at the edge are repeated beyond it."""
    row = level.new_tensor(TENT)
    kernel = (row[:, None] * row).expand(4, 1, 4, 4)
    padded = torch.nn.functional.pad(level.permute(2, 0, 1)[None], (1, 1, 1, 1), mode="replicate")
    halved = torch.nn.functional.conv2d(padded, kernel, stride=2, groups=4)
    return halved[0].permute(1, 2, 0)


def look_up(levels: list[Tensor], uv: Tensor, footprint: Tensor) -> Tensor:
    """Colours [N, 3] at ``uv`` [N, 2] in [0, 1], (0, 0) the upper left corner, of samples that
    cover ``footprint`` [N] texels of the finest level."""
    wanted = 0.5 * footprint.clamp(min=1.0).log2()
    wanted = wanted.clamp(max=float(len(levels) - 1))
    fine = wanted.floor().long().clamp(max=max(0, len(levels) - 2))
    share = (wanted - fine)[:, None]
    sizes = torch.tensor([level.shape[:2] for level in levels], device=uv.device)
    counts = sizes.prod(1)
    starts = counts.cumsum(0) - counts
    flat = torch.cat([level.reshape(-1, 4) for level in levels])
    found = (1.0 - share) * _bilinear(flat, uv, sizes[fine], starts[fine])
    if len(levels) > 1:
        found = found + share * _bilinear(flat, uv, sizes[fine + 1], starts[fine + 1])
    return found[:, :3] / found[:, 3:]


def _bilinear(flat: Tensor, uv: Tensor, size: Tensor, start: Tensor) -> Tensor:
    """Between four texels of the level that begins at ``start`` [N] and is ``size`` [N, 2] (height,
    width) large, [N, 4]."""
    height, width = size.unbind(-1)
    x, y = uv[:, 0] * width - 0.5, uv[:, 1] * height - 0.5
    left, top = x.floor(), y.floor()
    right, low = (x - left)[:, None], (y - top)[:, None]

    def texel(dx: int, dy: int) -> Tensor:
        column = torch.minimum((left.long() + dx).clamp(min=0), width - 1)
        row = torch.minimum((top.long() + dy).clamp(min=0), height - 1)
        return flat.index_select(0, start + row * width + column)

    upper = texel(0, 0) * (1.0 - right) + texel(1, 0) * right
    lower = texel(0, 1) * (1.0 - right) + texel(1, 1) * right
    return upper * (1.0 - low) + lower * low
