# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs
"""The hash encoding in numba. float32 only.

What costs time is memory: a table is larger than the caches and its rows are met in random order.
Hence level after level, since one of them nearly fits, and hence rows are called into the cache
one tile of points before they are needed.

Look-ups run in parallel over blocks of points, gradients of the table over levels: rows of two
levels are different memory, and the points of a level are added in their order. So no two threads
write the same number and the result is the same bit for bit for any number of threads.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import prange
from numba.extending import intrinsic
from torch import Tensor
from torch.autograd.function import once_differentiable

from .cpu_jit import array, jit, threads
from .hash_grid import PRIMES, Encoded, HashGridSpec
from .types import require_float32

BLOCK = 32768
"""Points that look one level up before the next. Fewer would bring each level into the cache more
often; of more, the features found so far would take its place."""

TILE = 128
"""Points whose rows and weights are computed at once, in loops short enough for the compiler to
turn into vector instructions. The scratch of two tiles, 28 kB, stays in the fastest cache."""

_ZERO, _HALF, _ONE = np.float32(0.0), np.float32(0.5), np.float32(1.0)
_PRIMES = tuple(np.uint32(prime) for prime in PRIMES)


@intrinsic
def _prefetch(context, array, index):
    """Ask for ``array[index]`` to be brought into the cache, without waiting for it."""

    def generate(target, builder, signature, arguments):
        values = target.make_array(signature.args[0])(target, builder, arguments[0])
        byte, word = ir.PointerType(ir.IntType(8)), ir.IntType(32)
        address = builder.bitcast(builder.gep(values.data, [arguments[1]]), byte)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        builder.call(function, [address, word(0), word(3), word(1)])  # read, all levels, data
        return target.get_dummy_value()

    return numba.types.void(array, index), generate


@jit()
def _scratch():
    """terms [axis, side, t], sides [axis, side, t], rows [corner, t], weights [corner, t]."""
    return (
        np.empty((3, 2, TILE), np.uint32),
        np.empty((3, 2, TILE), np.float32),
        np.empty((8, TILE), np.uint32),
        np.empty((8, TILE), np.float32),
    )


@jit()
def _level(scales, shapes, index):
    """scale, resolution, entries and dense of a level."""
    shape = shapes[index]
    return scales[index], np.uint32(shape[2]), np.uint32(shape[1]), shape[3] == 1


@jit()
def _part(table, shapes, index, features):
    """The numbers of a flat table that belong to a level."""
    first = shapes[index, 0] * features
    return table[first : first + shapes[index, 1] * features]


@jit()
def _axes(x, first, size, level, scratch):
    """What the lower and the upper vertex along each axis add to the row, and their weights."""
    terms, sides = scratch[0], scratch[1]
    scale, resolution, _, dense = level
    step = np.uint32(1)
    for axis in range(3):
        factor = step if dense else _PRIMES[axis]
        step = np.uint32(step * resolution)
        for t in range(size):
            position = x[axis, first + t] * scale + _HALF
            cell = np.int32(position)  # x >= 0, so cutting is floor
            upper = position - np.float32(cell)
            lower = np.uint32(np.uint32(cell) * factor)
            terms[axis, 0, t], terms[axis, 1, t] = lower, np.uint32(lower + factor)
            sides[axis, 0, t], sides[axis, 1, t] = _ONE - upper, upper


@jit()
def _look_up(x, first, last, level, part, features, scratch):
    """Rows and weights of the eight vertices around x [3, first:last], x fastest.

    A row is given by the place of its first feature, which is already on its way to the cache.
    """
    terms, sides, rows, weights = scratch
    _, _, entries, dense = level
    size, width = last - first, np.uint32(features)
    _axes(x, first, size, level, scratch)
    mask = np.uint32(entries - np.uint32(1))  # a hashed level has 2^log2_size entries
    for corner in range(8):
        i, j, k = corner & 1, (corner >> 1) & 1, corner >> 2
        if dense:
            for t in range(size):
                row = np.uint32(terms[0, i, t] + terms[1, j, t] + terms[2, k, t])
                # Vertices past the far faces are less than one grid too far.
                row = np.uint32(row - entries) if row >= entries else row
                rows[corner, t] = np.uint32(row * width)
        else:
            for t in range(size):
                row = np.uint32((terms[0, i, t] ^ terms[1, j, t] ^ terms[2, k, t]) & mask)
                rows[corner, t] = np.uint32(row * width)
        for t in range(size):
            weights[corner, t] = sides[0, i, t] * sides[1, j, t] * sides[2, k, t]
        for t in range(size):
            _prefetch(part, np.uint64(rows[corner, t]))


@jit()
def _gather(part, features, scratch, out):
    """out [T, F] = weighted sums over the vertices, two features at a time."""
    rows, weights = scratch[2], scratch[3]
    for t in range(len(out)):
        for f in range(0, features - 1, 2):
            one = two = _ZERO
            for corner in range(8):
                row = np.uint64(rows[corner, t]) + np.uint64(f)
                one += weights[corner, t] * part[row]
                two += weights[corner, t] * part[row + np.uint64(1)]
            out[t, f], out[t, f + 1] = one, two
        if features == 1:
            one = _ZERO
            for corner in range(8):
                one += weights[corner, t] * part[rows[corner, t]]
            out[t, 0] = one


@jit()
def _scatter(part, features, scratch, d_out):
    """Adjoint of ``_gather``: adds to part."""
    rows, weights = scratch[2], scratch[3]
    for t in range(len(d_out)):
        for f in range(0, features - 1, 2):
            one, two = d_out[t, f], d_out[t, f + 1]
            for corner in range(8):
                row = np.uint64(rows[corner, t]) + np.uint64(f)
                part[row] += weights[corner, t] * one
                part[row + np.uint64(1)] += weights[corner, t] * two
        if features == 1:
            for corner in range(8):
                part[rows[corner, t]] += weights[corner, t] * d_out[t, 0]


@jit()
def _mix(low, high, weight):
    return low + weight * (high - low)


@jit()
def _gather_slopes(part, features, scratch, scale, out, slopes):
    """out [T, F] and its derivatives by x, y and z, slopes [T, F, 3]."""
    sides, rows = scratch[1], scratch[2]
    for t in range(len(out)):
        u, v, w = sides[0, 1, t], sides[1, 1, t], sides[2, 1, t]
        for feature in range(features):
            f = np.uint64(feature)
            a, b = part[rows[0, t] + f], part[rows[2, t] + f]
            c, d = part[rows[4, t] + f], part[rows[6, t] + f]
            da, db = part[rows[1, t] + f] - a, part[rows[3, t] + f] - b
            dc, dd = part[rows[5, t] + f] - c, part[rows[7, t] + f] - d
            a, b, c, d = a + u * da, b + u * db, c + u * dc, d + u * dd
            low, high = _mix(a, b, v), _mix(c, d, v)
            out[t, feature] = _mix(low, high, w)
            slopes[t, feature, 0] = scale * _mix(_mix(da, db, v), _mix(dc, dd, v), w)
            slopes[t, feature, 1] = scale * _mix(b - a, d - c, w)
            slopes[t, feature, 2] = scale * (high - low)


@jit()
def _scatter_slopes(part, features, scratch, scale, d_out, d_slopes):
    """Adjoint of ``_gather_slopes``. Along each axis the upper side gets weight * value + slope
    and the lower side the rest; the slopes by the axes still to come are divided like values."""
    sides, rows = scratch[1], scratch[2]
    for t in range(len(d_out)):
        u, v, w = sides[0, 1, t], sides[1, 1, t], sides[2, 1, t]
        for feature in range(features):
            f = np.uint64(feature)
            value, by_x = d_out[t, feature], scale * d_slopes[t, feature, 0]
            by_y, by_z = scale * d_slopes[t, feature, 1], scale * d_slopes[t, feature, 2]
            high = w * value + by_z
            low = value - high
            y_high, x_high = w * by_y, w * by_x
            y_low, x_low = by_y - y_high, by_x - x_high
            b, d = v * low + y_low, v * high + y_high
            a, c = low - b, high - d
            xb, xd = v * x_low, v * x_high
            aa, cc = u * a + (x_low - xb), u * c + (x_high - xd)
            bb, dd = u * b + xb, u * d + xd
            part[rows[0, t] + f] += a - aa
            part[rows[1, t] + f] += aa
            part[rows[2, t] + f] += b - bb
            part[rows[3, t] + f] += bb
            part[rows[4, t] + f] += c - cc
            part[rows[5, t] + f] += cc
            part[rows[6, t] + f] += d - dd
            part[rows[7, t] + f] += dd


@jit(parallel=True)
def _forward(table, x, scales, shapes, features, blocks, out, slopes):
    """Fills the columns of out [N, >= L * F] that belong to levels in use, and those of slopes
    [N, >= L * F, 3] unless it is empty."""
    used, count = len(scales), x.shape[1]
    for block in prange(blocks):
        first, last = block * count // blocks, (block + 1) * count // blocks
        now, later = _scratch(), _scratch()
        found = np.empty((used, last - first, features), np.float32)
        for index in range(used):
            level, part = _level(scales, shapes, index), _part(table, shapes, index, features)
            low, high = index * features, (index + 1) * features
            _look_up(x, first, min(first + TILE, last), level, part, features, now)
            for t in range(first, last, TILE):
                end = min(t + TILE, last)
                _look_up(x, end, min(end + TILE, last), level, part, features, later)
                here = found[index, t - first : end - first]
                if len(slopes) > 0:
                    _gather_slopes(part, features, now, level[0], here, slopes[t:end, low:high])
                else:
                    _gather(part, features, now, here)
                now, later = later, now
        # Point by point only now: a level writes a small part of each row of out.
        for n in range(first, last):
            for index in range(used):
                for f in range(features):
                    out[n, index * features + f] = found[index, n - first, f]


@jit(parallel=True)
def _by_level(d_out, used, features, blocks):
    """[N, >= L * F] -> [L, N, F], so that each level reads its own numbers only."""
    out = np.empty((used, len(d_out), features), np.float32)
    for block in prange(blocks):
        for n in range(block * len(d_out) // blocks, (block + 1) * len(d_out) // blocks):
            for index in range(used):
                for f in range(features):
                    out[index, n, f] = d_out[n, index * features + f]
    return out


@jit(parallel=True)
def _backward(x, scales, shapes, features, order, d_out, d_slopes, d_table):
    """Fills the rows of d_table that belong to the levels in ``order``. d_out is [L, N, F];
    d_slopes is [N, >= L * F, 3] or empty."""
    count = x.shape[1]
    for place in prange(len(order)):
        index = order[place]
        now, later = _scratch(), _scratch()
        level, part = _level(scales, shapes, index), _part(d_table, shapes, index, features)
        low, high = index * features, (index + 1) * features
        part[:] = _ZERO  # here, because it also brings the part into the cache
        _look_up(x, 0, min(TILE, count), level, part, features, now)
        for t in range(0, count, TILE):
            end = min(t + TILE, count)
            _look_up(x, end, min(end + TILE, count), level, part, features, later)
            here = d_out[index, t:end]
            if len(d_slopes) > 0:
                _scatter_slopes(part, features, now, level[0], here, d_slopes[t:end, low:high])
            else:
                _scatter(part, features, now, here)
            now, later = later, now


@lru_cache(maxsize=64)
def _grid(spec: HashGridSpec, used: int) -> tuple[np.ndarray, np.ndarray, int]:
    """scale [L]; offset, entries, resolution and dense [L, 4] of the levels in use; features."""
    layout = spec.layout[:used]
    scales = np.array([level.scale for level in layout], np.float32)
    shapes = np.array([(v.offset, v.entries, v.resolution, v.dense) for v in layout], np.int64)
    return scales, shapes, spec.features


def _blocks(count: int) -> int:
    """In how many parts to cut the points: the same number for each thread."""
    workers: int = numba.get_num_threads()
    return workers * max(1, -(-count // (workers * BLOCK)))


def _order(used: int) -> np.ndarray:
    """Levels dealt out to the threads, which take neighbours: the coarse ones are cheap."""
    workers: int = numba.get_num_threads()
    return np.concatenate([np.arange(first, used, workers) for first in range(min(workers, used))])


class _Encode(torch.autograd.Function):
    """table, x -> features, jacobian; the latter without rows unless it is wanted."""

    @staticmethod
    def forward(
        ctx: Any, table: Tensor, x: Tensor, spec: HashGridSpec, used: int, jacobian: bool
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(table, x)
        ctx.spec, ctx.used = spec, used
        return _run_forward(table, x, spec, used, jacobian)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor, d_slopes: Tensor) -> Any:
        table, x = ctx.saved_tensors
        spec, used = ctx.spec, ctx.used
        d_table = d_x = None
        if ctx.needs_input_grad[0]:
            # Where no kernel will write it has to be zero already.
            make = np.empty if used == spec.levels else np.zeros
            flat = make(spec.parameters, np.float32)
            with threads():
                pull = _by_level(array(d_out), used, spec.features, _blocks(len(x)))
                _backward(array(x.T), *_grid(spec, used), _order(used), pull, array(d_slopes), flat)
            d_table = torch.from_numpy(flat).view(table.shape)
        if ctx.needs_input_grad[1]:
            _, slopes = _run_forward(table, x, spec, used, True)
            d_x = (d_out[:, :, None] * slopes).sum(1)
        return d_table, d_x, None, None, None


def _run_forward(
    table: Tensor, x: Tensor, spec: HashGridSpec, used: int, jacobian: bool
) -> tuple[Tensor, Tensor]:
    out = np.empty((len(x), spec.width), np.float32)
    slopes = np.empty((len(x) if jacobian else 0, spec.width, 3), np.float32)
    for result in (out, slopes):
        result[:, used * spec.features :] = 0.0
    with threads():
        flat = array(table).reshape(-1)
        _forward(flat, array(x.T), *_grid(spec, used), _blocks(len(x)), out, slopes)
    return torch.from_numpy(out), torch.from_numpy(slopes)


def _check(table: Tensor, x: Tensor, spec: HashGridSpec, active: int | None) -> int:
    require_float32("cpu", table=table, x=x)
    return spec.check(table, x, active)


def encode(table: Tensor, x: Tensor, spec: HashGridSpec, active: int | None = None) -> Tensor:
    """Look points up; see :class:`~representations.ops.hash_grid.Encode`."""
    out: Tensor = _Encode.apply(table, x, spec, _check(table, x, spec, active), False)[0]
    return out


def encode_jacobian(
    table: Tensor, x: Tensor, spec: HashGridSpec, active: int | None = None
) -> Encoded:
    """Look points up; see :class:`~representations.ops.hash_grid.EncodeJacobian`."""
    used = _check(table, x, spec, active)
    return Encoded(*_Encode.apply(table, x.detach(), spec, used, True))
