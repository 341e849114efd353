# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""The kernels of the CUDA back-end in Triton, which comes with every CUDA build of torch on Linux.

They are compiled when they are first called, without the CUDA toolkit.
With TRITON_INTERPRET=1 set before this module is imported they run on the CPU instead, which is
how their meaning is tested where there is no card. Every kernel works on a block of points or
rays, one lane each; nothing is shared between lanes but the table of the hash grid.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _corner(i, j, k, resolution, entries, dense, corner: tl.constexpr):
    """Row of the table, within its level, of one of the eight vertices of cell (i, j, k)."""
    i = i + (corner & 1)
    j = j + ((corner >> 1) & 1)
    k = k + ((corner >> 2) & 1)
    # Unsigned 32-bit products wrap around, as those of the reference are made to. Both layouts are
    # cheap beside the memory access that follows, and a choice costs no divergence.
    plain = i + j * resolution + k * resolution * resolution
    mixed = i ^ (j * tl.full((), 2654435761, tl.uint32)) ^ (k * tl.full((), 805459861, tl.uint32))
    return tl.where(dense != 0, plain, mixed) % entries


@triton.jit
def _cell(x_ptr, n, inside, scale):
    """Cell of each point as three unsigned numbers, and where in it the point lies, in [0, 1)."""
    px = tl.load(x_ptr + 3 * n, mask=inside, other=0.0) * scale + 0.5
    py = tl.load(x_ptr + 3 * n + 1, mask=inside, other=0.0) * scale + 0.5
    pz = tl.load(x_ptr + 3 * n + 2, mask=inside, other=0.0) * scale + 0.5
    fx, fy, fz = tl.floor(px), tl.floor(py), tl.floor(pz)
    i, j, k = fx.to(tl.int32), fy.to(tl.int32), fz.to(tl.int32)
    return i.to(tl.uint32), j.to(tl.uint32), k.to(tl.uint32), px - fx, py - fy, pz - fz


@triton.jit
def _sides(u, v, w, corner: tl.constexpr):
    """Weight of a vertex along each axis."""
    a = u if corner & 1 else 1.0 - u
    b = v if (corner >> 1) & 1 else 1.0 - v
    c = w if (corner >> 2) & 1 else 1.0 - w
    return a, b, c


@triton.jit
def _level(shapes_ptr, level):
    """offset, entries, resolution and dense of a level."""
    row = shapes_ptr + 4 * level
    entries = tl.load(row + 1).to(tl.uint32)
    resolution = tl.load(row + 2).to(tl.uint32)
    return tl.load(row), entries, resolution, tl.load(row + 3)


@triton.jit
def hash_forward(
    table_ptr, x_ptr, scales_ptr, shapes_ptr, out_ptr, slopes_ptr, count, width,
    FEATURES: tl.constexpr, JACOBIAN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Features [N, width] of a block of points at one level, and their slopes [N, width, 3]."""
    level = tl.program_id(1)
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = n < count
    scale = tl.load(scales_ptr + level)
    offset, entries, resolution, dense = _level(shapes_ptr, level)
    i, j, k, u, v, w = _cell(x_ptr, n, inside, scale)
    f = tl.arange(0, FEATURES)
    total = tl.zeros((BLOCK, FEATURES), tl.float32)
    dx = tl.zeros((BLOCK, FEATURES), tl.float32)
    dy = tl.zeros((BLOCK, FEATURES), tl.float32)
    dz = tl.zeros((BLOCK, FEATURES), tl.float32)
    for corner in tl.static_range(8):
        row = _corner(i, j, k, resolution, entries, dense, corner).to(tl.int64) + offset
        value = tl.load(
            table_ptr + row[:, None] * FEATURES + f[None, :], mask=inside[:, None], other=0.0
        )
        a, b, c = _sides(u, v, w, corner)
        total += (a * b * c)[:, None] * value
        if JACOBIAN:
            dx += (scale if corner & 1 else -scale) * (b * c)[:, None] * value
            dy += (scale if (corner >> 1) & 1 else -scale) * (a * c)[:, None] * value
            dz += (scale if (corner >> 2) & 1 else -scale) * (a * b)[:, None] * value
    at = n[:, None] * width + level * FEATURES + f[None, :]
    tl.store(out_ptr + at, total, mask=inside[:, None])
    if JACOBIAN:
        tl.store(slopes_ptr + 3 * at, dx, mask=inside[:, None])
        tl.store(slopes_ptr + 3 * at + 1, dy, mask=inside[:, None])
        tl.store(slopes_ptr + 3 * at + 2, dz, mask=inside[:, None])


@triton.jit
def hash_backward(
    d_table_ptr, x_ptr, scales_ptr, shapes_ptr, d_out_ptr, d_slopes_ptr, count, width,
    FEATURES: tl.constexpr, JACOBIAN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add what a block of points wants of one level to the gradient of the table."""
    level = tl.program_id(1)
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = n < count
    scale = tl.load(scales_ptr + level)
    offset, entries, resolution, dense = _level(shapes_ptr, level)
    i, j, k, u, v, w = _cell(x_ptr, n, inside, scale)
    f = tl.arange(0, FEATURES)
    at = n[:, None] * width + level * FEATURES + f[None, :]
    d_out = tl.load(d_out_ptr + at, mask=inside[:, None], other=0.0)
    if JACOBIAN:
        d_dx = scale * tl.load(d_slopes_ptr + 3 * at, mask=inside[:, None], other=0.0)
        d_dy = scale * tl.load(d_slopes_ptr + 3 * at + 1, mask=inside[:, None], other=0.0)
        d_dz = scale * tl.load(d_slopes_ptr + 3 * at + 2, mask=inside[:, None], other=0.0)
    for corner in tl.static_range(8):
        row = _corner(i, j, k, resolution, entries, dense, corner).to(tl.int64) + offset
        a, b, c = _sides(u, v, w, corner)
        push = (a * b * c)[:, None] * d_out
        if JACOBIAN:
            push += (1.0 if corner & 1 else -1.0) * (b * c)[:, None] * d_dx
            push += (1.0 if (corner >> 1) & 1 else -1.0) * (a * c)[:, None] * d_dy
            push += (1.0 if (corner >> 2) & 1 else -1.0) * (a * b)[:, None] * d_dz
        tl.atomic_add(
            d_table_ptr + row[:, None] * FEATURES + f[None, :], push, mask=inside[:, None],
            sem="relaxed",
        )  # fmt: skip


@triton.jit
def _along(o, d, t, radius, scale, resolution):
    """Where a ray is along one axis: the index of the cell, and whether it is in the cube."""
    position = o + t * d
    index = ((position + radius) * scale).to(tl.int32)
    last = resolution - 1
    return tl.minimum(tl.maximum(index, 0), last), tl.abs(position) <= radius


@triton.jit
def march(
    origins_ptr, directions_ptr, near_ptr, far_ptr, jitter_ptr, occupied_ptr, offsets_ptr,
    counts_ptr, ray_ptr, start_ptr, end_ptr, count, steps, most, resolution, radius, scale, step,
    WRITE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """How many intervals each ray keeps, or, with WRITE, which.

    The arithmetic of the reference, operation by operation: called with enable_fp_fusion=False,
    both round alike and find the same cells.
    """
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = n < count
    ox = tl.load(origins_ptr + 3 * n, mask=inside, other=0.0)
    oy = tl.load(origins_ptr + 3 * n + 1, mask=inside, other=0.0)
    oz = tl.load(origins_ptr + 3 * n + 2, mask=inside, other=0.0)
    dx = tl.load(directions_ptr + 3 * n, mask=inside, other=0.0)
    dy = tl.load(directions_ptr + 3 * n + 1, mask=inside, other=0.0)
    dz = tl.load(directions_ptr + 3 * n + 2, mask=inside, other=0.0)
    near = tl.load(near_ptr + n, mask=inside, other=0.0)
    far = tl.load(far_ptr + n, mask=inside, other=-1.0)
    jitter = tl.load(jitter_ptr + n, mask=inside, other=0.0)
    first = tl.zeros((BLOCK,), tl.int64)
    if WRITE:
        first = tl.load(offsets_ptr + n, mask=inside, other=0)
    kept = tl.zeros((BLOCK,), tl.int32)
    number = tl.zeros((BLOCK,), tl.float32)  # of the interval
    for _ in range(0, steps):
        start = near + (number + jitter) * step
        number += 1.0
        end = near + (number + jitter) * step
        middle = (start + end) * 0.5
        i, in_x = _along(ox, dx, middle, radius, scale, resolution)
        j, in_y = _along(oy, dy, middle, radius, scale, resolution)
        m, in_z = _along(oz, dz, middle, radius, scale, resolution)
        keep = inside & (middle < far) & in_x & in_y & in_z & (kept < most)
        cell = (i.to(tl.int64) * resolution + j) * resolution + m
        keep = keep & (tl.load(occupied_ptr + cell, mask=keep, other=0) != 0)
        if WRITE:
            at = first + kept
            tl.store(ray_ptr + at, n, mask=keep)
            tl.store(start_ptr + at, start, mask=keep)
            tl.store(end_ptr + at, end, mask=keep)
        kept += keep.to(tl.int32)
    if not WRITE:
        tl.store(counts_ptr + n, kept.to(tl.int64), mask=inside)


@triton.jit
def ray_scan(
    value_ptr, out_ptr, offsets_ptr, rays, BACKWARD: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """What lies in front of each sample on its ray, or behind it: sums without the sample."""
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = n < rays
    first = tl.load(offsets_ptr + n, mask=inside, other=0)
    last = tl.load(offsets_ptr + n + 1, mask=inside, other=0)
    longest = tl.max(last - first, axis=0)
    total = tl.zeros((BLOCK,), tl.float32)
    for k in range(0, longest):
        at = last - 1 - k if BACKWARD else first + k
        here = (at >= first) & (at < last)
        value = tl.load(value_ptr + at, mask=here, other=0.0)
        tl.store(out_ptr + at, total, mask=here)
        total += value
