# SPDX-License-Identifier: Apache-2.0
"""Drawing 3D Gaussians: plain torch, numba on a CPU, Triton kernels or gsplat on a CUDA card."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ...interface import Cameras
from .. import backend_for, triton_launch
from . import gsplat_state
from .types import Splat, Splats, Splatted

__all__ = ["CUDA_BACKENDS", "Splat", "SplatOps", "Splats", "Splatted", "rasterize", "splat_ops"]

LOG = logging.getLogger(__name__)

CUDA_BACKENDS = ("triton", "gsplat")
"""What "cuda" chooses from."""


class SplatOps(NamedTuple):
    """The functions of one back-end."""

    name: str  # reference, cpu, triton or gsplat
    splat: Splat  # draw


def splat_ops(device: torch.device | str, name: str | None = None) -> SplatOps:
    """The back-end for tensors on ``device``; a module is imported only when chosen, and a CUDA
    back-end is tried once before it can do harm. Errors: see
    :func:`representations.ops.backend_for`; MissingBackend where it does not work."""
    name = backend_for(device, name, CUDA_BACKENDS)
    if name == "cuda":
        name = _best_on_a_card()
    match name:
        case "reference":
            from . import reference

            return SplatOps(name, reference.splat)
        case "cpu":
            from . import cpu

            return SplatOps(name, cpu.splat)
        case "triton":
            from . import triton_splats

            found = SplatOps(name, triton_splats.splat)
        case _:
            from . import gsplat_splats

            gsplat_splats.prepare()
            found = SplatOps(name, gsplat_splats.splat)
    if torch.device(device).type == "cuda":
        _require_sound_on(found, torch.device(device))
    return found


@lru_cache(maxsize=1)
def _best_on_a_card() -> str:
    """gsplat where it is compiled, else our Triton kernels, else gsplat if it can be compiled, else
    plain torch. What was passed over is said once."""
    if gsplat_state.compiled() is not None:
        return "gsplat"
    if triton_launch.available():
        LOG.warning("splats: our Triton kernels. %s", gsplat_state.offer())
        return "triton"
    if gsplat_state.obstacle() is None:
        return "gsplat"
    LOG.warning(
        "splats: plain torch, slowly, for want of Triton and of a C compiler. %s",
        gsplat_state.offer(),
    )
    return "reference"


def rasterize(
    splats: Splats, features: Tensor, cameras: Cameras, backend: str | None = None
) -> Splatted:
    """Draw Gaussians with the kernels that fit their device.

    Args:
        splats: N activated Gaussians in the world frame, float32.
        features: [B, N, C] of each splat in each view; colours, or anything else.
        cameras: B views.
        backend: "reference" (plain torch, any dtype), "cpu", "cuda", "triton" or "gsplat"; None
            chooses by device.

    Returns sums over splats, front to back, of weight times feature; the background is not added:
    ``picture = out.features + (1 - out.alpha) * background``. Differentiable in splats and
    features. Raises ValueError for shapes that do not fit.
    """
    return splat_ops(splats.means.device, backend).splat(splats, features, cameras)


@lru_cache(maxsize=16)
def _require_sound_on(ops: SplatOps, device: torch.device) -> None:
    """A CUDA rasteriser is tried once per process and device."""
    from ..self_test import require_sound, splatting

    require_sound(ops.name, lambda: splatting(ops.splat, device))
