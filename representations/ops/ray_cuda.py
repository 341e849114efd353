# SPDX-License-Identifier: Apache-2.0
"""Ray marching on a CUDA device: the reference on CUDA tensors. float32 only.

Not nerfacc (0.5.3): its traversal places samples by another rule than ours, and its scan over rays
of unequal length waits at a barrier inside of diverging loops, which CUDA leaves undefined, drops
launch errors and must be compiled by nvcc first. The plain version needs a few dozen kernel
launches per chunk and bounded memory, and a radiance field spends its time elsewhere. Sums of a
ray are added in no fixed order here, so two runs agree to rounding, not bit for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import ray_reference
from .ray_types import Composited, MarchSpec, Rays, Samples


def _require(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or tensor.device.type != "cuda":
            raise ValueError(
                f'back-end "cuda" takes float32 on a cuda device, got {name} in {tensor.dtype} '
                f"on {tensor.device}: convert it with .to(device, torch.float32)"
            )


def march(rays: Rays, occupied: Tensor, spec: MarchSpec, jitter: Tensor) -> Samples:
    """Cut rays into intervals; see :func:`representations.ops.ray_reference.march`."""
    _require(origins=rays.origins, directions=rays.directions, jitter=jitter)
    return ray_reference.march(rays, occupied, spec, jitter)


def composite(sigma: Tensor, features: Tensor, samples: Samples, rays_count: int) -> Composited:
    """Add up along rays; see :func:`representations.ops.ray_reference.composite`."""
    _require(sigma=sigma, features=features, start=samples.start, end=samples.end)
    return ray_reference.composite(sigma, features, samples, rays_count)
