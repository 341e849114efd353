# SPDX-License-Identifier: Apache-2.0
"""Ray marching by nerfacc (Li et al. 2023, arXiv 2305.04966) behind our signatures. float32 only.

For comparisons, of speed and of results: its walk through the occupied cells and its sums over rays
of unequal length. They are CUDA C++ and compiled once; see :mod:`..extension`.

Where it differs from ours, all within rounding: boundaries are added up step by step, so that after
512 steps they may lie 2% of a step aside; which cell a middle lies in is found by walking from cell
to cell, so that a middle closer to a border than that may be counted to the other side, and a
middle may lie outside of the cube by rounding. Its sum over rays waits at barriers within loops of
unequal length (``utils_scan.cuh``), which CUDA leaves undefined: a small march is compared with
the reference before a card is used.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..dtypes import require_float32
from . import ray_reference
from .nerfacc_state import NERFACC
from .ray_types import STOP, Composited, MarchSpec, Rays, Samples

LOG = logging.getLogger(__name__)


@lru_cache(maxsize=1)
def _nerfacc() -> Any:
    NERFACC.load(NERFACC.ensure(LOG.warning))
    import nerfacc

    return nerfacc


def prepare() -> None:
    """Compile and load nerfacc's kernels if that has not been done; MissingBackend where it cannot
    be. Marching does it too, later."""
    _nerfacc()


@torch.no_grad()
def march(rays: Rays, occupied: Tensor, spec: MarchSpec, jitter: Tensor) -> Samples:
    """Cut rays into intervals; see :func:`representations.ops.fields.ray_reference.march`.

    Rays start where they enter the cube. Walked along are only those that are long enough for a
    middle: of others nerfacc's walk may start behind its last cell, and would not find it. A ray
    beside the cube and parallel to it is left out too, which ``clip`` does not do.
    """
    rays.check(occupied, jitter)
    require_float32("nerfacc", origins=rays.origins, directions=rays.directions, jitter=jitter)
    if len(jitter) == 0:  # nerfacc divides by their number
        return ray_reference.march(rays, occupied, spec, jitter)
    near, far = ray_reference.clip(rays, spec)
    length, first = far - near, jitter * spec.step
    beside = ((rays.directions == 0) & (rays.origins.abs() > spec.radius)).any(dim=-1)
    hits = (first + 0.5 * spec.step < length) & ~beside
    face = near.new_full((3,), spec.radius)
    intervals, middles, _ = _nerfacc().traverse_grids(
        rays.origins + near[:, None] * rays.directions,
        rays.directions,
        occupied[None],
        torch.cat([-face, face])[None],  # [1, 6]
        near_planes=first,
        far_planes=length,
        step_size=spec.step,
        traverse_steps_limit=spec.max_samples,
        t_sorted=torch.stack([torch.zeros_like(length), length], dim=-1),
        t_indices=torch.arange(2, device=near.device).expand(len(near), 2),
        hits=hits[:, None],
    )
    ray, counts = middles.ray_indices, middles.packed_info[:, 1]
    entrance = near[ray]
    return Samples(
        ray=ray,
        start=entrance + intervals.vals[intervals.is_left],
        end=entrance + intervals.vals[intervals.is_right],
        offsets=torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
    )


def composite(sigma: Tensor, features: Tensor, samples: Samples, rays_count: int) -> Composited:
    """Add up along rays; see :func:`representations.ops.fields.ray_reference.composite`."""
    samples.check(sigma, features, rays_count)
    require_float32("nerfacc", sigma=sigma, features=features, start=samples.start, end=samples.end)
    nerfacc, offsets = _nerfacc(), samples.offsets
    weights, light, _ = nerfacc.render_weight_from_density(
        samples.start, samples.end, sigma,
        packed_info=torch.stack([offsets[:-1], offsets.diff()], dim=-1),
    )  # fmt: skip
    weights = torch.where(light >= STOP, weights, torch.zeros_like(weights))

    def summed(values: Tensor | None) -> Tensor:
        out: Tensor = nerfacc.accumulate_along_rays(
            weights, values, ray_indices=samples.ray, n_rays=rays_count
        )
        return out

    return Composited(summed(features), summed(None)[:, 0], weights.detach())
