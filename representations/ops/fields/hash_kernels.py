# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs
"""Numba kernels of the hash encoding. float32 only.

What costs time is memory: a table is larger than the caches and its rows are met in random order.
Hence level after level, since one of them nearly fits; while one is worked on the next is called
into the cache in one sweep, and rows one tile of points before they are needed.

Look-ups run in parallel over blocks of points, gradients of the table over levels: rows of two
levels are different memory, and the points of a level are added in their order. So no two threads
write the same number and the result is the same bit for bit for any number of threads.
"""

from __future__ import annotations

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

from ..cpu_jit import jit
from .hash_grid import PRIMES

BLOCK = 32768
"""Points that look one level up before the next. Fewer would bring each level into the cache more
often; of more, the features found so far would take its place."""

TILE = 128
"""Points whose rows and weights are computed at once, in loops short enough for the compiler to
turn into vector instructions. The scratch of two tiles, 28 kB, stays in the fastest cache."""

CACHED = 1 << 17
"""Numbers of a level that stay in the second cache, so that no row has to be called: 512 kB."""

LINE = 16  # numbers that memory moves at once

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


# Two features of the two vertices that differ along x, as one vector: a quarter of the
# instructions. The compiler does not find this alone. The two rows are never the same one.
_PAIR = ir.VectorType(ir.FloatType(), 2)


def _int(value):
    return ir.Constant(ir.IntType(32), value)


def _vector(builder, values):
    vector = ir.Constant(ir.VectorType(ir.FloatType(), len(values)), ir.Undefined)
    for place, value in enumerate(values):
        vector = builder.insert_element(vector, value, _int(place))
    return vector


def _shuffle(builder, one, two, *places):
    mask = ir.Constant(ir.VectorType(ir.IntType(32), len(places)), [_int(v) for v in places])
    return builder.shuffle_vector(one, two, mask)


def _pointers(target, builder, kind, array, indices):
    """Where the pairs of array begin."""
    data = target.make_array(kind)(target, builder, array).data
    return [builder.bitcast(builder.gep(data, [i]), _PAIR.as_pointer()) for i in indices]


def _both(builder, pointers):
    low, high = (builder.load(pointer, align=4) for pointer in pointers)
    return _shuffle(builder, low, high, 0, 1, 2, 3)


@intrinsic
def _plus_pairs(context, four, weight, array, low, high):
    """four + weight * (array[low], array[low + 1], array[high], array[high + 1])"""

    def generate(target, builder, signature, arguments):
        four, weight, array, *indices = arguments
        pointers = _pointers(target, builder, signature.args[2], array, indices)
        product = builder.fmul(_both(builder, pointers), _vector(builder, [weight] * 4))
        parts = [builder.extract_value(four, i) for i in range(4)]
        total = builder.fadd(_vector(builder, parts), product)
        parts = [builder.extract_element(total, _int(i)) for i in range(4)]
        return target.make_tuple(builder, signature.return_type, parts)

    quadruple = numba.types.UniTuple(numba.types.float32, 4)
    return quadruple(four, weight, array, low, high), generate


@intrinsic
def _add_to_pairs(context, array, low, high, weight, four):
    """Adds weight * four to what ``_plus_pairs`` reads."""

    def generate(target, builder, signature, arguments):
        array, *indices, weight, four = arguments
        pointers = _pointers(target, builder, signature.args[0], array, indices)
        parts = [builder.extract_value(four, i) for i in range(4)]
        product = builder.fmul(_vector(builder, parts), _vector(builder, [weight] * 4))
        total = builder.fadd(_both(builder, pointers), product)
        for pointer, places in zip(pointers, ((0, 1), (2, 3)), strict=True):
            builder.store(_shuffle(builder, total, total, *places), pointer, align=4)
        return target.get_dummy_value()

    return numba.types.void(array, low, high, weight, four), generate


@jit()
def _scratch():
    """terms [axis, side, t], sides [axis, side, t], rows [corner, t]; weights [side of y and z, t]
    are those of the four edges along x."""
    return (
        np.empty((3, 2, TILE), np.uint32),
        np.empty((3, 2, TILE), np.float32),
        np.empty((8, TILE), np.uint32),
        np.empty((4, TILE), np.float32),
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
        if i == 0:
            for t in range(size):
                weights[corner >> 1, t] = sides[1, j, t] * sides[2, k, t]
        if len(part) > CACHED:
            for t in range(size):
                _prefetch(part, np.uint64(rows[corner, t]))


@jit()
def _gather(part, features, scratch, out):
    """out [T, F] = weighted sums over the vertices, two features at a time."""
    _, sides, rows, weights = scratch
    for t in range(len(out)):
        low, high = sides[0, 0, t], sides[0, 1, t]
        for feature in range(0, features - 1, 2):
            f = np.uint64(feature)
            four = _ZERO, _ZERO, _ZERO, _ZERO
            for side in range(4):
                one, two = rows[2 * side, t] + f, rows[2 * side + 1, t] + f
                four = _plus_pairs(four, weights[side, t], part, one, two)
            out[t, feature] = low * four[0] + high * four[2]
            out[t, feature + 1] = low * four[1] + high * four[3]
        if features == 1:
            one = _ZERO
            for side in range(4):
                ends = low * part[rows[2 * side, t]] + high * part[rows[2 * side + 1, t]]
                one += weights[side, t] * ends
            out[t, 0] = one


@jit()
def _scatter(part, features, scratch, d_out):
    """Adjoint of ``_gather``: adds to part."""
    _, sides, rows, weights = scratch
    for t in range(len(d_out)):
        low, high = sides[0, 0, t], sides[0, 1, t]
        for feature in range(0, features - 1, 2):
            f = np.uint64(feature)
            one, two = d_out[t, feature], d_out[t, feature + 1]
            four = low * one, low * two, high * one, high * two
            for side in range(4):
                here, there = rows[2 * side, t] + f, rows[2 * side + 1, t] + f
                _add_to_pairs(part, here, there, weights[side, t], four)
        if features == 1:
            one, two = low * d_out[t, 0], high * d_out[t, 0]
            for side in range(4):
                part[rows[2 * side, t]] += weights[side, t] * one
                part[rows[2 * side + 1, t]] += weights[side, t] * two


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


@jit()
def _stream(part, block, blocks, begin, end, size):
    """Ask for the next level while this one is worked on."""
    lines = len(part) // LINE
    if 8 * size * blocks < lines:
        return
    a, b = block * lines // blocks, (block + 1) * lines // blocks
    for line in range(a + begin * (b - a) // size, a + end * (b - a) // size):
        _prefetch(part, np.uint64(LINE * line))


@jit(nogil=True)
def forward(first_block, last_block, table, x, grid, blocks, found, slopes):
    """Fills found [L, N, F] for the levels in use, and their columns of slopes [N, >= L * F, 3]
    unless it is empty."""
    scales, shapes, features = grid
    used, count = len(scales), x.shape[1]
    for block in range(first_block, last_block):
        first, last = block * count // blocks, (block + 1) * count // blocks
        now, later = _scratch(), _scratch()
        for index in range(used):
            level, part = _level(scales, shapes, index), _part(table, shapes, index, features)
            low, high = index * features, (index + 1) * features
            _look_up(x, first, min(first + TILE, last), level, part, features, now)
            for t in range(first, last, TILE):
                end = min(t + TILE, last)
                _look_up(x, end, min(end + TILE, last), level, part, features, later)
                if index + 1 < used:
                    ahead = _part(table, shapes, index + 1, features)
                    _stream(ahead, block, blocks, t - first, end - first, last - first)
                here = found[index, t:end]
                if len(slopes) > 0:
                    _gather_slopes(part, features, now, level[0], here, slopes[t:end, low:high])
                else:
                    _gather(part, features, now, here)
                now, later = later, now


@jit(nogil=True)
def by_point(first_block, last_block, levels, blocks, out):
    """levels [L, N, W] -> out [N, >= L * W]. A level would write a small part of each row only."""
    used, count, width = levels.shape
    for block in range(first_block, last_block):
        for n in range(block * count // blocks, (block + 1) * count // blocks):
            if width == 1:
                for index in range(used):
                    out[n, index] = levels[index, n, 0]
            else:
                for index in range(used):
                    for w in range(width):
                        out[n, index * width + w] = levels[index, n, w]


@jit(nogil=True)
def by_level(first_block, last_block, points, blocks, out):
    """points [N, >= L * W] -> out [L, N, W], so that each level reads its own numbers only."""
    used, count, width = out.shape
    for block in range(first_block, last_block):
        begin, end = block * count // blocks, (block + 1) * count // blocks
        for first in range(begin, end, TILE):
            last = min(first + TILE, end)
            for index in range(used):
                if width == 1:
                    for n in range(first, last):
                        out[index, n, 0] = points[n, index]
                else:
                    for n in range(first, last):
                        for w in range(width):
                            out[index, n, w] = points[n, index * width + w]


@jit()
def _clear(part):
    for i in range(len(part)):
        part[i] = _ZERO


@jit(nogil=True)
def backward(first_worker, last_worker, x, grid, workers, d_out, d_slopes, d_table):
    """Fills the rows of d_table that belong to the levels in use. d_out is [L, N, F]; d_slopes is
    [N, >= L * F, 3] or empty."""
    scales, shapes, features = grid
    used, count = len(scales), x.shape[1]
    for worker in range(first_worker, last_worker):
        # Neighbouring levels go to different workers: the coarse ones are cheap.
        now, later = _scratch(), _scratch()
        for index in range(worker, used, workers):
            level, part = _level(scales, shapes, index), _part(d_table, shapes, index, features)
            low, high = index * features, (index + 1) * features
            _clear(part)
            _look_up(x, 0, min(TILE, count), level, part, features, now)
            for t in range(0, count, TILE):
                end = min(t + TILE, count)
                _look_up(x, end, min(end + TILE, count), level, part, features, later)
                if index + workers < used:
                    ahead = _part(d_table, shapes, index + workers, features)
                    _stream(ahead, 0, 1, t, end, count)
                here = d_out[index, t:end]
                if len(d_slopes) > 0:
                    _scatter_slopes(part, features, now, level[0], here, d_slopes[t:end, low:high])
                else:
                    _scatter(part, features, now, here)
                now, later = later, now
