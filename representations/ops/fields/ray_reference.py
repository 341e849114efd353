# SPDX-License-Identifier: Apache-2.0
"""Ray marching in plain torch: defines the meaning, runs in any dtype on any device.

Emission and absorption along a ray (Max 1995) with density and features constant on each interval,
as in NeRF (Mildenhall et al. 2020). Exact for a field that is constant on the intervals; of second
order in the step for a smooth one, because intervals are asked in their middle.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .ray_types import STOP, Composited, MarchSpec, Rays, Samples

CHUNK = 2**20  # candidate intervals looked at together; about 60 bytes each


def clip(rays: Rays, spec: MarchSpec) -> tuple[Tensor, Tensor]:
    """Distances [N] at which rays enter and leave the cube; 0 and -1 for a ray that misses.

    Slab by slab. A direction component of zero never crosses its slab, and on a face division
    would make it nan: it sets no limit here, and what lies outside is dropped point by point.
    """
    near = torch.full_like(rays.origins[:, 0], spec.near)
    far = torch.full_like(near, torch.inf)
    for o, d in zip(rays.origins.unbind(-1), rays.directions.unbind(-1), strict=True):
        parallel = d == 0
        divisor = torch.where(parallel, torch.ones_like(d), d)
        a, b = (-spec.radius - o) / divisor, (spec.radius - o) / divisor
        near = torch.where(parallel, near, torch.maximum(near, torch.minimum(a, b)))
        far = torch.where(parallel, far, torch.minimum(far, torch.maximum(a, b)))
    hit = near < far
    return torch.where(hit, near, 0.0), torch.where(hit, far, -1.0)


def _march(
    rays: Rays, occupied: Tensor, spec: MarchSpec, jitter: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """start [M], end [M] and the number of samples [N] of a few rays.

    The numba back-end repeats this arithmetic operation by operation, so that both round alike
    and find the same cells; change both or none.
    """
    resolution = occupied.shape[0]
    near, far = clip(rays, spec)
    number = torch.arange(spec.steps + 1, dtype=near.dtype, device=near.device)
    bounds = near[:, None] + (number + jitter[:, None]) * spec.step  # [N, steps + 1]
    start, end = bounds[:, :-1], bounds[:, 1:]
    middle = (start + end) * 0.5
    keep = middle < far[:, None]
    cell = torch.zeros_like(keep, dtype=torch.int64)
    for axis in range(3):
        position = rays.origins[:, axis, None] + middle * rays.directions[:, axis, None]
        keep &= position.abs() <= spec.radius
        index = (position + spec.radius) * (resolution / (2.0 * spec.radius))
        cell = cell * resolution + index.clamp(0, resolution - 1).long()
    keep &= occupied.flatten()[cell]
    keep &= keep.cumsum(1) <= spec.max_samples
    return start[keep], end[keep], keep.sum(1)


@torch.no_grad()
def march(rays: Rays, occupied: Tensor, spec: MarchSpec, jitter: Tensor) -> Samples:
    """Cut rays into intervals where the grid is occupied.

    Boundaries lie at ``near + (k + jitter) * step`` for k = 0, 1, ..., where ``near`` is the
    entrance into the cube but at least ``spec.near``. An interval is kept when its middle lies in
    the cube and in an occupied cell, until ``spec.max_samples`` are kept. ``occupied`` [R, R, R] is
    indexed [ix, iy, iz], jitter [N] is in [0, 1). Raises ValueError for what does not fit.
    """
    rays.check(occupied, jitter)
    n, rows = len(jitter), max(1, CHUNK // spec.steps)
    parts = [
        _march(Rays(*(t[i : i + rows] for t in rays)), occupied, spec, jitter[i : i + rows])
        for i in range(0, max(n, 1), rows)
    ]
    start, end, counts = (torch.cat(column) for column in zip(*parts, strict=True))
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    ray = torch.repeat_interleave(torch.arange(n, device=counts.device), counts)
    return Samples(ray, start, end, offsets)


def in_front(value: Tensor, samples: Samples) -> Tensor:
    """Sums [M] of ``value`` [M] over the samples in front of each one on its ray.

    One row per ray, shifted by one: column i sums what lies in front of sample i. Subtracting a
    sample from an inclusive sum instead would lose everything in front of an opaque wall.
    """
    counts = samples.offsets.diff()
    rays = len(counts)
    width = (int(counts.max()) if rays else 0) + 1
    index = torch.arange(len(value), device=value.device) - samples.offsets[samples.ray]
    index = index + samples.ray * width
    table = value.new_zeros(rays * width).index_add(0, index + 1, value)
    return table.view(rays, width).cumsum(1).flatten().index_select(0, index)


def composite(
    sigma: Tensor,
    features: Tensor,
    samples: Samples,
    rays_count: int,
    summed: Callable[[Tensor, Samples], Tensor] = in_front,
) -> Composited:
    """Add up features [M, C] under the density sigma [M] (per world unit) along each ray.

    ``weight_i = T_i (1 - exp(-sigma_i delta_i))`` with ``T_i = exp(-sum_{j<i} sigma_j delta_j)``
    the light that reaches interval i of length delta_i; zero once T_i < STOP. Differentiable in
    sigma and features. Raises ValueError for what does not fit. ``summed``: another way to add up
    what lies in front of each sample.
    """
    samples.check(sigma, features, rays_count)
    thickness = sigma * (samples.end - samples.start)
    light = torch.exp(-summed(thickness, samples))
    weights = light * -torch.expm1(-thickness)
    weights = torch.where(light >= STOP, weights, torch.zeros_like(weights))
    total = features.new_zeros(rays_count, features.shape[-1])
    return Composited(
        features=total.index_add(0, samples.ray, weights[:, None] * features),
        opacity=weights.new_zeros(rays_count).index_add(0, samples.ray, weights),
        weights=weights.detach(),
    )
