# SPDX-License-Identifier: Apache-2.0
"""Drawing 3D Gaussians: plain torch, numba on a CPU, gsplat on a CUDA card."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from .. import backend_for
from .types import Splat, Splats, Splatted

__all__ = ["Splat", "SplatOps", "Splats", "Splatted", "splat_ops"]


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


@lru_cache(maxsize=16)
def _require_sound_on(device: torch.device) -> None:
    """The CUDA rasteriser is tried once per process and device, before it can do harm."""
    from ..self_test import require_sound
    from . import cuda

    require_sound(cuda.splat, device)
