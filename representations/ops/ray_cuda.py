# SPDX-License-Identifier: Apache-2.0
"""Ray marching on a CUDA device: the reference on CUDA tensors. float32 only.

Not nerfacc (0.5.3): its traversal places samples by another rule than ours, and its scan over rays
of unequal length waits at a barrier inside of diverging loops, which CUDA leaves undefined, drops
launch errors and must be compiled by nvcc first. The plain version needs a few dozen kernel
launches per chunk and bounded memory, and a radiance field spends its time elsewhere. Sums of a
ray are added in no fixed order here, so two runs agree to rounding, not bit for bit.
"""

from __future__ import annotations

from torch import Tensor

from . import ray_reference
from .ray_types import Composited, MarchSpec, Rays, Samples
from .types import require_float32


def march(rays: Rays, occupied: Tensor, spec: MarchSpec, jitter: Tensor) -> Samples:
    """Cut rays into intervals; see :func:`representations.ops.ray_reference.march`."""
    require_float32("cuda", origins=rays.origins, directions=rays.directions, jitter=jitter)
    return ray_reference.march(rays, occupied, spec, jitter)


def composite(sigma: Tensor, features: Tensor, samples: Samples, rays_count: int) -> Composited:
    """Add up along rays; see :func:`representations.ops.ray_reference.composite`."""
    require_float32("cuda", sigma=sigma, features=features, start=samples.start, end=samples.end)
    return ray_reference.composite(sigma, features, samples, rays_count)
