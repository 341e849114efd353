# SPDX-License-Identifier: Apache-2.0
"""Ray marching in Triton, one ray per lane. float32 only.

Samples equal those of the reference bit for bit; sums along a ray are added from the front, in one
fixed order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..triton_launch import blocks, on
from . import ray_reference
from . import triton_kernels as kernels
from .ray_types import Composited, MarchSpec, Rays, Samples

BLOCK = 128  # rays of a program


@torch.no_grad()
def march(rays: Rays, occupied: Tensor, spec: MarchSpec, jitter: Tensor) -> Samples:
    """Cut rays into intervals; see :func:`representations.ops.fields.ray_reference.march`.

    Once to count and once to write: no more memory than the samples themselves take.
    """
    rays.check(occupied, jitter)
    rays = Rays(*(tensor.contiguous() for tensor in rays))
    n, near_far = len(jitter), ray_reference.clip(rays, spec)
    resolution = occupied.shape[0]
    counts = torch.zeros(n, dtype=torch.int64, device=jitter.device)
    given = (*rays, *near_far, jitter.contiguous(), occupied.contiguous().view(torch.uint8))
    numbers = (
        n, spec.steps, spec.max_samples, resolution, float(spec.radius),
        resolution / (2.0 * spec.radius), float(spec.step),
    )  # fmt: skip
    if n:
        with on(jitter):
            kernels.march[(blocks(n, BLOCK),)](
                *given, counts, counts, counts, near_far[0], near_far[0], *numbers,
                WRITE=False, BLOCK=BLOCK, enable_fp_fusion=False,
            )  # fmt: skip
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    total = int(offsets[-1])
    ray = torch.empty(total, dtype=torch.int64, device=jitter.device)
    start, end = jitter.new_empty(total), jitter.new_empty(total)
    if total:
        with on(jitter):
            kernels.march[(blocks(n, BLOCK),)](
                *given, offsets, counts, ray, start, end, *numbers,
                WRITE=True, BLOCK=BLOCK, enable_fp_fusion=False,
            )  # fmt: skip
    return Samples(ray, start, end, offsets)


class _InFront(torch.autograd.Function):
    """value [M], offsets [N + 1] -> sums of what lies in front on the same ray [M]."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, offsets: Tensor) -> Tensor:
        ctx.save_for_backward(offsets)
        return _scan(value, offsets, backward=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, None]:
        (offsets,) = ctx.saved_tensors
        return _scan(d_out, offsets, backward=True), None


def _scan(value: Tensor, offsets: Tensor, backward: bool) -> Tensor:
    value = value.contiguous()
    out, rays = torch.zeros_like(value), len(offsets) - 1
    if len(value):
        with on(value):
            kernels.ray_scan[(blocks(rays, BLOCK),)](
                value, out, offsets, rays, BACKWARD=backward, BLOCK=BLOCK
            )
    return out


def in_front(value: Tensor, samples: Samples) -> Tensor:
    """See :func:`~representations.ops.fields.ray_reference.in_front`; no memory for rays as long as
    the longest one."""
    out: Tensor = _InFront.apply(value, samples.offsets)
    return out


def composite(sigma: Tensor, features: Tensor, samples: Samples, rays_count: int) -> Composited:
    """Add up along rays; see :func:`representations.ops.fields.ray_reference.composite`."""
    return ray_reference.composite(sigma, features, samples, rays_count, in_front)
