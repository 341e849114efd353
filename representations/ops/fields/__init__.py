# SPDX-License-Identifier: Apache-2.0
"""Radiance fields: hash grids, walking along rays, adding up what is met. Plain torch, numba on a
CPU, our Triton kernels on a CUDA card, with tinycudann for hash grids where it is installed and
plain torch where there is no Triton. By name also nerfacc for what happens along rays."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from .. import backend_for
from .hash_grid import Encode, EncodeJacobian
from .ray_types import Composite, March

__all__ = ["CUDA_BACKENDS", "FieldOps", "field_ops"]

CUDA_BACKENDS = ("nerfacc",)
"""Back-ends for a card beside "cuda": never chosen but by name."""


class FieldOps(NamedTuple):
    """The functions of one back-end."""

    name: str  # reference, cpu, cuda or nerfacc
    encode: Encode  # look points up in a hash grid
    encode_jacobian: EncodeJacobian  # the same with the derivative by position
    march: March  # where rays sample an occupied cube
    composite: Composite  # add up what they find there


def field_ops(device: torch.device | str, name: str | None = None) -> FieldOps:
    """The back-end for tensors on ``device``; a module is imported only when chosen, and nerfacc is
    tried once before it can do harm. Errors: see :func:`representations.ops.backend_for`;
    MissingBackend where it does not work."""
    name = backend_for(device, name, CUDA_BACKENDS)
    match name:
        case "reference":
            from . import hash_grid as grid
            from . import ray_reference as ray
        case "cpu":
            from . import hash_cpu as grid  # type: ignore[no-redef]
            from . import ray_cpu as ray  # type: ignore[no-redef]
        case "nerfacc":
            from . import hash_cuda as grid  # type: ignore[no-redef]
            from . import ray_nerfacc as ray  # type: ignore[no-redef]
            from .ray_nerfacc import prepare

            prepare()
        case _:
            from . import hash_cuda as grid  # type: ignore[no-redef]
            from . import ray_cuda as ray  # type: ignore[no-redef]
    found = FieldOps(name, grid.encode, grid.encode_jacobian, ray.march, ray.composite)
    if name == "nerfacc":
        _require_sound_on(found, torch.device(device))
    return found


@lru_cache(maxsize=4)
def _require_sound_on(ops: FieldOps, device: torch.device) -> None:
    """Kernels that were compiled elsewhere are tried once per process and device."""
    from ..self_test import marching, require_sound

    require_sound(ops.name, lambda: marching(ops.march, ops.composite, device))
