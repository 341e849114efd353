# SPDX-License-Identifier: Apache-2.0
"""Kernels: one record of functions, chosen once. Below this line nobody asks for the device."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from .hash_grid import Encode, EncodeJacobian
from .ray_types import Composite, March
from .types import Splat, Splats, Splatted

__all__ = ["BACKENDS", "Ops", "Splat", "Splats", "Splatted", "select"]

BACKENDS = ("reference", "cpu", "cuda")


class Ops(NamedTuple):
    """The functions of one back-end."""

    name: str  # one of BACKENDS
    splat: Splat  # draw 3D Gaussians
    encode: Encode  # look points up in a hash grid
    encode_jacobian: EncodeJacobian  # the same with the derivative by position
    march: March  # where rays sample an occupied cube
    composite: Composite  # add up what they find there


@lru_cache(maxsize=16)
def _sound_on(device: torch.device) -> None:
    """The CUDA rasteriser is tried once per process and device, before it can do harm."""
    from . import cuda
    from .self_test import require_sound

    require_sound(cuda.splat, device)


def select(device: torch.device | str, name: str | None = None) -> Ops:
    """Choose the back-end for tensors on ``device``; a module is imported only when chosen.

    ``name`` overrides the default ("cuda" on a CUDA device, else "cpu"): "reference" is plain
    torch on any device and dtype and defines the meaning, "cpu" is numba (float32), "cuda" is
    gsplat for splats and our Triton kernels for fields, with tinycudann for hash grids where it is
    installed and plain torch where there is no Triton (float32). Raises ValueError for a word or a
    combination that cannot work, and RuntimeError when the hardware or package of the choice is
    missing.
    """
    device = torch.device(device)
    if name is None:
        name = "cuda" if device.type == "cuda" else "cpu"
    if name == "reference":
        from . import hash_grid, ray_reference, reference

        return Ops(
            "reference",
            reference.splat,
            hash_grid.encode,
            hash_grid.encode_jacobian,
            ray_reference.march,
            ray_reference.composite,
        )
    if name == "cpu":
        if device.type != "cpu":
            raise ValueError(
                f'back-end "cpu" needs tensors on the cpu, got device "{device}": '
                'write device="cpu", or back-end "cuda" or "reference"'
            )
        from . import cpu, hash_cpu, ray_cpu

        return Ops(
            "cpu",
            cpu.splat,
            hash_cpu.encode,
            hash_cpu.encode_jacobian,
            ray_cpu.march,
            ray_cpu.composite,
        )
    if name == "cuda":
        if not torch.cuda.is_available():
            raise RuntimeError(
                'back-end "cuda" was asked for, but torch.cuda.is_available() is False here: '
                'use a CUDA build of torch on a machine with a GPU, or back-end "cpu"'
            )
        if device.type != "cuda":
            raise ValueError(f'back-end "cuda" needs a cuda device, got "{device}"')
        from . import cuda, hash_cuda, ray_cuda

        _sound_on(device)
        return Ops(
            "cuda",
            cuda.splat,
            hash_cuda.encode,
            hash_cuda.encode_jacobian,
            ray_cuda.march,
            ray_cuda.composite,
        )
    raise ValueError(f'unknown back-end "{name}": choose one of {", ".join(BACKENDS)}')
