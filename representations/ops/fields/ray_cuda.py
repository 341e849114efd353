# SPDX-License-Identifier: Apache-2.0
"""Ray marching on a CUDA device: our Triton kernels where Triton is installed, which is wherever
torch has CUDA on Linux, else the reference on CUDA tensors. float32 only.

nerfacc, which must be compiled by nvcc first, is a back-end by name: :mod:`.ray_nerfacc`. Sums over
rays are added in no fixed order here, so two runs agree to rounding, not bit for bit.
"""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from .. import triton_launch
from ..dtypes import require_float32
from . import ray_reference
from .ray_types import Composited, MarchSpec, Rays, Samples


def _kernels() -> ModuleType:
    if not triton_launch.available():
        return ray_reference
    from . import ray_triton

    return ray_triton


def march(rays: Rays, occupied: Tensor, spec: MarchSpec, jitter: Tensor) -> Samples:
    """Cut rays into intervals; see :func:`representations.ops.fields.ray_reference.march`."""
    require_float32("cuda", origins=rays.origins, directions=rays.directions, jitter=jitter)
    found: Samples = _kernels().march(rays, occupied, spec, jitter)
    return found


def composite(sigma: Tensor, features: Tensor, samples: Samples, rays_count: int) -> Composited:
    """Add up along rays; see :func:`representations.ops.fields.ray_reference.composite`."""
    require_float32("cuda", sigma=sigma, features=features, start=samples.start, end=samples.end)
    added: Composited = _kernels().composite(sigma, features, samples, rays_count)
    return added
