# SPDX-License-Identifier: Apache-2.0
"""Drawing 3D Gaussians: plain torch, numba on a CPU, gsplat on a CUDA card."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ...interface import Cameras
from .. import backend_for
from .types import Splat, Splats, Splatted

__all__ = ["Splat", "SplatOps", "Splats", "Splatted", "rasterize", "splat_ops"]


class SplatOps(NamedTuple):
    """The functions of one back-end."""

    name: str  # one of ops.BACKENDS
    splat: Splat  # draw


def splat_ops(device: torch.device | str, name: str | None = None) -> SplatOps:
    """The back-end for tensors on ``device``; a module is imported only when chosen. Errors: see
    :func:`representations.ops.backend_for`."""
    match backend_for(device, name):
        case "reference":
            from . import reference

            return SplatOps("reference", reference.splat)
        case "cpu":
            from . import cpu

            return SplatOps("cpu", cpu.splat)
        case _:
            from . import cuda

            _require_sound_on(torch.device(device))
            return SplatOps("cuda", cuda.splat)


def rasterize(
    splats: Splats, features: Tensor, cameras: Cameras, backend: str | None = None
) -> Splatted:
    """Draw Gaussians with the kernels that fit their device.

    Args:
        splats: N activated Gaussians in the world frame, float32.
        features: [B, N, C] of each splat in each view; colours, or anything else.
        cameras: B views.
        backend: "reference" (plain torch, any dtype), "cpu" or "cuda"; None chooses by device.

    Returns sums over splats, front to back, of weight times feature; the background is not added:
    ``picture = out.features + (1 - out.alpha) * background``. Differentiable in splats and
    features. Raises ValueError for shapes that do not fit.
    """
    return splat_ops(splats.means.device, backend).splat(splats, features, cameras)


@lru_cache(maxsize=16)
def _require_sound_on(device: torch.device) -> None:
    """The CUDA rasteriser is tried once per process and device, before it can do harm."""
    from ..self_test import require_sound
    from . import cuda

    require_sound(cuda.splat, device)
