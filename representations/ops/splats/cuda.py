# SPDX-License-Identifier: Apache-2.0
"""The CUDA back-end: gsplat's rasteriser behind our signature. float32 only.

gsplat compiles its kernels on the first call, which needs the CUDA toolkit and takes minutes once.
"""

from __future__ import annotations

import torch

from ...checks import pip_install
from ...interface import Cameras
from .. import MissingBackend
from ..constants import BLUR_PX2, NEAR_PLANE
from ..dtypes import require_float32
from .types import Splats, Splatted


def splat(splats: Splats, features: torch.Tensor, cameras: Cameras) -> Splatted:
    """Draw; see :data:`~representations.ops.splats.types.Splat`."""
    try:
        from gsplat import rasterization
    except ImportError as error:
        raise MissingBackend(
            f'back-end "cuda" needs gsplat: {pip_install("gsplat")}, beside a CUDA build of torch'
        ) from error
    splats.check(features, cameras)
    require_float32("cuda", **splats._asdict(), features=features)
    picture, alpha, meta = rasterization(
        splats.means,
        splats.quat_wxyz,
        splats.scale,
        splats.opacity,
        features,  # [B, N, C]
        cameras.world_to_cam,
        cameras.intrinsics,
        cameras.width,
        cameras.height,
        near_plane=NEAR_PLANE,
        eps2d=BLUR_PX2,
        packed=False,  # per-splat outputs stay [B, N, ...]
        absgrad=False,
        render_mode="RGB+D",  # the last channel is the sum of weight * z
        rasterize_mode="classic",
    )
    picture = picture.permute(0, 3, 1, 2)  # [B, C + 1, H, W]
    drawn = (meta["radii"] > 0).all(-1)
    depths = meta["depths"].detach()
    conics = meta["conics"].detach()
    return Splatted(
        features=picture[:, :-1],
        depth=picture[:, -1:],
        alpha=alpha.permute(0, 3, 1, 2),
        means2d=meta["means2d"],
        radii=meta["radii"],
        depths=torch.where(drawn, depths, torch.zeros_like(depths)),
        conics=torch.where(drawn[..., None], conics, torch.zeros_like(conics)),
    )
