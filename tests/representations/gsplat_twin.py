# SPDX-License-Identifier: Apache-2.0
"""gsplat's rasterisation in plain torch, for machines on which it cannot be compiled."""

from __future__ import annotations

import torch
from torch import Tensor

from representations.interface import Cameras
from representations.ops.splats import Splats, reference


def rasterization(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, features: Tensor,
    views: Tensor, lenses: Tensor, width: int, height: int, **how: object,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:  # fmt: skip
    """As gsplat does it: memory as it was where nothing is drawn, and nothing like a number but
    numbers, of which there must be some."""
    assert len(means) > 0
    assert all(torch.isfinite(t).all() for t in (means, quats, scales, opacities))
    assert how["packed"] is False
    cameras = Cameras(views, lenses, width, height)
    given = Splats(means, quats, scales, opacities)
    seen = reference.project(given, cameras)
    drawn = (seen.radii > 0).all(-1, keepdim=True)
    means2d = torch.where(drawn, seen.means2d, 777.0)
    table = torch.cat([features, seen.depths[..., None]], dim=-1)
    pictures = torch.stack(
        [
            reference._draw(
                reference.Projection(means2d[b], *(t[b] for t in seen[1:])), table[b], opacities,
                (height, width),
            )
            for b in range(len(cameras))
        ]
    ).permute(0, 2, 3, 1)  # fmt: skip
    meta = {
        "means2d": means2d, "radii": seen.radii,
        "depths": torch.where(drawn[..., 0], seen.depths, 777.0),
        "conics": torch.where(drawn, seen.conics, 777.0),
    }  # fmt: skip
    return pictures[..., :-1], pictures[..., -1:], meta
