# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs
"""Ray marching in numba, one ray after the other. float32 only.

No two threads ever write the same number and every sum of a ray has a fixed order, so the result
is the same bit for bit for any number of threads. Samples equal those of the reference bit for bit.

The march may jump through an empty cell without looking at every step because rounding is
monotonic: distance, position and cell index (clamped to the grid) never turn back along a ray.
When step k and step k + n lie in one cell, so do all steps between them, whatever the rounding.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..cpu_jit import array, jit, spread
from ..dtypes import require_float32
from .ray_types import STOP, Composited, MarchSpec, Rays, Samples

_HALF, _ZERO = np.float32(0.5), np.float32(0.0)
_INF = np.float32(np.inf)


@jit(error_model="numpy")
def _clip(origin, direction, radius, near):
    """Distances at which a ray enters and leaves the cube; far <= near for a ray that misses."""
    far = _INF
    for axis in range(3):
        o, d = origin[axis], direction[axis]
        if d != _ZERO:
            a, b = (-radius - o) / d, (radius - o) / d
            near, far = max(near, min(a, b)), min(far, max(a, b))
    return near, far


@jit()
def _middle(near, k, jitter, step):
    """Start, middle and end of interval k."""
    start = near + (np.float32(k) + jitter) * step
    end = near + (np.float32(k + 1) + jitter) * step
    return start, (start + end) * _HALF, end


@jit()
def _index(o, d, t, radius, scale, resolution):
    """Cell index along one axis, -1 outside of the cube."""
    position = o + t * d
    if not abs(position) <= radius:
        return -1
    return min(int((position + radius) * scale), resolution - 1)


@jit()
def _cell(origin, direction, t, radius, scale, resolution):
    return (
        _index(origin[0], direction[0], t, radius, scale, resolution),
        _index(origin[1], direction[1], t, radius, scale, resolution),
        _index(origin[2], direction[2], t, radius, scale, resolution),
    )


@jit(error_model="numpy")
def _reach(origin, direction, cell, radius, scale):
    """About how far along the ray a cell ends. A guess: the caller looks before it leaps."""
    reach = _INF
    for axis in range(3):
        o, d = origin[axis], direction[axis]
        if d != _ZERO:
            face = np.float32(cell[axis] + (1 if d > _ZERO else 0)) / scale - radius
            reach = min(reach, (face - o) / d)
    return reach


@jit(error_model="numpy")
def _walk(origin, direction, jitter, occupied, lengths, limits, start, end):
    """Number of samples of one ray; the first len(start) of them are written down."""
    radius, near, step, scale = lengths
    steps, most = limits
    resolution = occupied.shape[0]
    near, far = _clip(origin, direction, radius, near)
    found, k = 0, 0
    while near < far and k < steps and found < most:
        a, t, b = _middle(near, k, jitter, step)
        if t >= far:
            break
        cell = _cell(origin, direction, t, radius, scale, resolution)
        if min(cell) >= 0:
            if occupied[cell[0], cell[1], cell[2]]:
                if found < len(start):
                    start[found], end[found] = a, b
                found += 1
            else:
                ahead = (_reach(origin, direction, cell, radius, scale) - t) / step
                n = int(min(max(ahead, _ZERO), np.float32(steps - 1 - k)))
                later = _middle(near, k + n, jitter, step)[1]
                if _cell(origin, direction, later, radius, scale, resolution) == cell:
                    k += n
        k += 1
    return found


@jit(nogil=True)
def _count(first, last, plan, counts):
    """Samples of the rays first to last."""
    origins, directions, jitter, occupied, lengths, limits = plan
    for r in range(first, last):
        nowhere = origins[r, :0]
        counts[r] = _walk(
            origins[r], directions[r], jitter[r], occupied, lengths, limits, nowhere, nowhere
        )


@jit(nogil=True)
def _fill(first, last, plan, offsets, out):
    """Write the samples of the rays first to last down."""
    origins, directions, jitter, occupied, lengths, limits = plan
    ray, start, end = out
    for r in range(first, last):
        lo, hi = offsets[r], offsets[r + 1]
        ray[lo:hi] = r
        _walk(
            origins[r], directions[r], jitter[r], occupied, lengths, (limits[0], hi - lo),
            start[lo:hi], end[lo:hi],
        )  # fmt: skip


@jit(nogil=True)
def _forward(first, last, samples, stop, out):
    """Rays first to last: total [N, C], opacity [N], weights [M] and after [M], the light behind
    each sample, all of which were zero.

    Light and opacity are kept in float64: 1 - exp(-x) would lose small x in float32.
    """
    offsets, start, end, sigma, features = samples
    total, opacity, weights, after = out
    channels = features.shape[1]
    for r in range(first, last):
        light, covered = 1.0, 0.0
        for i in range(offsets[r], offsets[r + 1]):
            if light < stop:
                break
            delta = np.float64(end[i]) - np.float64(start[i])
            left = light * math.exp(-np.float64(sigma[i]) * delta)
            weight = np.float32(light - left)
            covered += light - left
            light = left
            weights[i], after[i] = weight, np.float32(left)
            for c in range(channels):
                total[r, c] += weight * features[i, c]
        opacity[r] = covered


@jit(nogil=True)
def _backward(first, last, samples, pull, out):
    """Rays first to last: gradients of sigma [M] and features [M, C].

    With g_i the gradient of weight i and x_i = sigma_i delta_i:
    ``d / dx_i = g_i after_i - sum_{j>i} g_j weight_j``, the sum growing from the back. Nothing is
    divided, so light that underflows is harmless. Behind the stop weights and after are zero, and
    with them the gradients.
    """
    offsets, start, end, features, weights, after = samples
    d_total, d_opacity = pull
    d_sigma, d_features = out
    for r in range(first, last):
        behind = 0.0
        for i in range(offsets[r + 1] - 1, offsets[r] - 1, -1):
            weight = np.float64(weights[i])
            gradient = np.float64(d_opacity[r])
            for c in range(features.shape[1]):
                gradient += np.float64(d_total[r, c]) * np.float64(features[i, c])
                d_features[i, c] = weights[i] * d_total[r, c]
            delta = np.float64(end[i]) - np.float64(start[i])
            d_sigma[i] = delta * (gradient * np.float64(after[i]) - behind)
            behind += gradient * weight


def march(rays: Rays, occupied: Tensor, spec: MarchSpec, jitter: Tensor) -> Samples:
    """Cut rays into intervals; see :func:`representations.ops.fields.ray_reference.march`."""
    require_float32("cpu", origins=rays.origins, directions=rays.directions, jitter=jitter)
    rays.check(occupied, jitter)
    scale = occupied.shape[0] / (2.0 * spec.radius)
    arrays = tuple(array(t) for t in (rays.origins, rays.directions, jitter, occupied))
    lengths = tuple(np.float32(x) for x in (spec.radius, spec.near, spec.step, scale))
    limits = (spec.steps, spec.max_samples)
    plan, count = (*arrays, lengths, limits), len(arrays[0])
    offsets = np.zeros(count + 1, np.int64)
    spread(_count, count, plan, offsets[1:])
    np.cumsum(offsets, out=offsets)
    kinds = (np.int64, np.float32, np.float32)
    found = tuple(np.empty(offsets[-1], kind) for kind in kinds)  # ray, start, end
    spread(_fill, count, plan, offsets, found)
    return Samples(*(torch.from_numpy(array) for array in (*found, offsets)))


class _Composite(torch.autograd.Function):
    """sigma [M], features [M, C] -> total [N, C], opacity [N], weights [M]."""

    @staticmethod
    def forward(
        ctx: Any, sigma: Tensor, features: Tensor, start: Tensor, end: Tensor, offsets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        arrays = tuple(array(t) for t in (offsets, start, end, sigma, features))
        rays, found, channels = len(offsets) - 1, *features.shape
        out = tuple(np.zeros(s, np.float32) for s in ((rays, channels), rays, found, found))
        spread(_forward, rays, arrays, STOP, out)
        total, opacity, weights, after = (torch.from_numpy(array) for array in out)
        ctx.save_for_backward(offsets, start, end, features, weights, after)
        ctx.mark_non_differentiable(weights)
        return total, opacity, weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_total: Tensor, d_opacity: Tensor, _: Any) -> Any:
        samples = tuple(array(t) for t in ctx.saved_tensors)
        features, weights = samples[3:5]
        out = np.empty(len(weights), np.float32), np.empty(features.shape, np.float32)
        pull = array(d_total), array(d_opacity)
        spread(_backward, len(samples[0]) - 1, samples, pull, out)
        return *(torch.from_numpy(gradient) for gradient in out), None, None, None


def composite(sigma: Tensor, features: Tensor, samples: Samples, rays_count: int) -> Composited:
    """Add up along rays; see :func:`representations.ops.fields.ray_reference.composite`.

    Differentiable once.
    """
    require_float32("cpu", sigma=sigma, features=features, start=samples.start, end=samples.end)
    samples.check(sigma, features, rays_count)
    return Composited(
        *_Composite.apply(sigma, features, samples.start, samples.end, samples.offsets)
    )
