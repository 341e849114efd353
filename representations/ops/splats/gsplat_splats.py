# SPDX-License-Identifier: Apache-2.0
"""gsplat's rasteriser behind our signature. float32 only.

Its kernels are CUDA C++ and are compiled once, which needs the CUDA toolkit and takes minutes; see
:mod:`..extension`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from ...interface import Cameras
from ..constants import BLUR_PX2, NEAR_PLANE
from ..dtypes import require_float32
from . import reference
from .gsplat_state import GSPLAT
from .types import Splats, Splatted

LOG = logging.getLogger(__name__)


@lru_cache(maxsize=1)
def _rasterization() -> Callable[..., Any]:
    GSPLAT.load(GSPLAT.ensure(LOG.warning))
    from gsplat import rasterization

    return rasterization  # type: ignore[no-any-return]


def prepare() -> None:
    """Compile and load gsplat's kernels if that has not been done; MissingBackend where it cannot
    be. Drawing does it too, later."""
    _rasterization()


def _sound(splats: Splats) -> Splats:
    """Without what is not finite, which is not drawn: gsplat keeps a splat whose x alone is NaN.
    Transparent instead, it is left out, and gradients stop here."""
    whole = torch.isfinite(splats.means).all(-1) & torch.isfinite(splats.scale).all(-1)
    whole = whole & torch.isfinite(splats.quat_wxyz).all(-1)
    row = whole[:, None]
    return Splats(
        torch.where(row, splats.means, 0.0),
        torch.where(row, splats.quat_wxyz, 1.0),
        torch.where(row, splats.scale, 1.0),
        torch.where(whole, splats.opacity, 0.0),
    )


def splat(splats: Splats, features: torch.Tensor, cameras: Cameras) -> Splatted:
    """Draw; see :data:`~representations.ops.splats.types.Splat`."""
    splats.check(features, cameras)
    require_float32("gsplat", **splats._asdict(), features=features)
    if len(splats.means) == 0:  # gsplat divides by their number
        return reference.splat(splats, features, cameras)
    picture, alpha, meta = _rasterization()(
        *_sound(splats),
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
    means2d = meta["means2d"]
    # gsplat leaves this memory as it found it where nothing is drawn. It must stay the very tensor
    # that the picture hangs on, for its gradient; no kernel reads what is cleared here.
    means2d.data.masked_fill_(~drawn[..., None], 0.0)
    return Splatted(
        features=picture[:, :-1],
        depth=picture[:, -1:],
        alpha=alpha.permute(0, 3, 1, 2),
        means2d=means2d,
        radii=meta["radii"],
        depths=torch.where(drawn, depths, torch.zeros_like(depths)),
        conics=torch.where(drawn[..., None], conics, torch.zeros_like(conics)),
    )
