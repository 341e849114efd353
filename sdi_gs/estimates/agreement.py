# SPDX-License-Identifier: Apache-2.0
"""How well the depth of a shape goes with an estimate of it."""

from __future__ import annotations

import torch
from torch import Tensor

COVERED = 0.5
"""A pixel counts where more than half of its light comes from the shape."""

_NONE = 1e-12  # a smaller variance is that of a flat picture


def disagreement(depth: Tensor, closeness: Tensor, alpha: Tensor) -> Tensor:
    """``1 - rho`` of each view, [B] in [0, 2].

    Args:
        depth: [B, 1, H, W] z-depth of the shape, 0 where there is nothing; has the gradient.
        closeness: [B, 1, H, W] what was estimated; larger is nearer, in any unit.
        alpha: [B, 1, H, W] in [0, 1]; the weight of a pixel, which counts from :data:`COVERED` on.

    A view in which nothing is covered, or in which either picture is flat, costs 1 and has no
    gradient.
    """
    weight = torch.where((alpha > COVERED) & (depth.detach() > 0.0), alpha, 0.0).detach()
    weight = weight / weight.sum((1, 2, 3), keepdim=True).clamp(min=_NONE)
    drawn = torch.where(weight > 0.0, 1.0 / depth.clamp(min=1e-6), 0.0)
    one, other = (x - (weight * x).sum((1, 2, 3), keepdim=True) for x in (drawn, closeness))
    both, first, second = ((weight * x).sum((1, 2, 3)) for x in (one * other, one**2, other**2))
    flat = (first.detach() <= _NONE) | (second <= _NONE)
    # The branch that is not taken must have a finite slope too.
    spread = torch.where(flat, torch.ones_like(first), first * second).sqrt()
    return 1.0 - torch.where(flat, torch.zeros_like(both), both / spread)
