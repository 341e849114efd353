# SPDX-License-Identifier: Apache-2.0
"""Radiance fields: hash grids, walking along rays, adding up what is met. Plain torch, numba on a
CPU, our Triton kernels on a CUDA card, with tinycudann for hash grids where it is installed and
plain torch where there is no Triton."""

from __future__ import annotations

from typing import NamedTuple

import torch

from .. import backend_for
from .hash_grid import Encode, EncodeJacobian
from .ray_types import Composite, March

__all__ = ["FieldOps", "field_ops"]


class FieldOps(NamedTuple):
    """The functions of one back-end."""

    name: str  # one of ops.BACKENDS
    encode: Encode  # look points up in a hash grid
    encode_jacobian: EncodeJacobian  # the same with the derivative by position
    march: March  # where rays sample an occupied cube
    composite: Composite  # add up what they find there


def field_ops(device: torch.device | str, name: str | None = None) -> FieldOps:
    """The back-end for tensors on ``device``; a module is imported only when chosen. Errors: see
    :func:`representations.ops.backend_for`."""
    match backend_for(device, name):
        case "reference":
            from . import hash_grid as grid
            from . import ray_reference as ray
        case "cpu":
            from . import hash_cpu as grid  # type: ignore[no-redef]
            from . import ray_cpu as ray  # type: ignore[no-redef]
        case _:
            from . import hash_cuda as grid  # type: ignore[no-redef]
            from . import ray_cuda as ray  # type: ignore[no-redef]
    name = backend_for(device, name)
    return FieldOps(name, grid.encode, grid.encode_jacobian, ray.march, ray.composite)
