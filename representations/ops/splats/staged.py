# SPDX-License-Identifier: Apache-2.0
"""Drawing in two stages of our own, each with its own gradient: projection, then rasterising."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import Function

from ...interface import Cameras
from ..dtypes import require_float32
from .types import Splats, Splatted


def draw(
    backend: str,
    project: type[Function],
    rasterise: type[Function],
    splats: Splats,
    features: Tensor,
    cameras: Cameras,
) -> Splatted:
    """Draw with the stages of ``backend``; see :data:`~representations.ops.splats.types.Splat`.

    ``project``: means, quat_wxyz, scale, opacity, cameras -> means2d [B, N, 2], conics [B, N, 3],
    depths [B, N], radii [B, N, 2]. ``rasterise``: means2d, conics, opacity, features [B, N, C],
    depths, radii, (height, width) -> picture [B, C, H, W], alpha [B, H, W].
    """
    splats.check(features, cameras)
    require_float32(backend, **splats._asdict(), features=features)
    means2d, conics, depths, radii = project.apply(
        splats.means, splats.quat_wxyz, splats.scale, splats.opacity, cameras
    )
    picture, alpha = rasterise.apply(
        means2d,
        conics,
        splats.opacity,
        torch.cat([features, depths[..., None]], dim=-1),
        depths.detach(),
        radii,
        (cameras.height, cameras.width),
    )
    return Splatted(
        features=picture[:, :-1],
        depth=picture[:, -1:],
        alpha=alpha[:, None],
        means2d=means2d,
        radii=radii,
        depths=depths.detach(),
        conics=conics.detach(),
    )
