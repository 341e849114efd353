# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs
"""Tile rasteriser in numba: alpha compositing of depth-sorted splats and its gradient.

Shape of the computation: splats are sorted by depth once per view and dealt out to tiles of
TILE x TILE pixels in that order, so no tile sorts again. A tile walks its splats (outer loop) and
updates its pixels (inner loop over contiguous memory, written without branches so that the
compiler can use vector instructions). The backward pass walks the same list from the back and
writes one gradient row per (splat, tile) pair; the rows are then added up in a fixed order. No
two threads ever write the same number, so the result does not depend on how many there are.

Arrays: P = 6 + C columns per splat: x, y, conic xx, xy, yy, opacity, then C features.
"""

from __future__ import annotations

import numpy as np

from ..constants import ALPHA_MAX, ALPHA_MIN, TRANSMITTANCE_MIN
from ..cpu_jit import jit, spread
from .cpu_tiles import TILE

AREA = TILE * TILE
GEOMETRY = 6  # columns before the features
CHECK_EVERY = 8  # splats between two looks at whether the whole tile is finished

_ALPHA_MAX = np.float32(ALPHA_MAX)
_ALPHA_MIN = np.float32(ALPHA_MIN)
_T_MIN = np.float32(TRANSMITTANCE_MIN)
_ZERO, _ONE, _HALF = np.float32(0.0), np.float32(1.0), np.float32(0.5)
_SIGMA_MAX = np.float32(6.0)  # above ln(255) = 5.54: alpha is below ALPHA_MIN for any opacity
_EIGHTH = np.float32(-0.125)
# Taylor coefficients of exp up to x^7 / 7!; |x| <= 0.75 leaves a relative error below 3e-6.
_E2, _E3, _E4 = np.float32(1 / 2), np.float32(1 / 6), np.float32(1 / 24)
_E5, _E6, _E7 = np.float32(1 / 120), np.float32(1 / 720), np.float32(1 / 5040)


@jit(fastmath={"contract"}, inline="never")
def _falloff(weight, px, py, x, y, xx, xy, yy, lo, hi):
    """weight[i] = exp(-sigma_i), or 0 outside of the splat's reach. Pixels lo..hi of the tile.

    exp(-s) = exp(-s / 8)^8 with a short polynomial: unlike a call to libm it vectorises.
    """
    for i in range(np.uint64(lo), np.uint64(hi)):
        dx = px[i] - x
        dy = py[i] - y
        sigma = _HALF * (xx * dx * dx + yy * dy * dy) + xy * dx * dy
        inside = (sigma >= _ZERO) & (sigma < _SIGMA_MAX)
        u = _EIGHTH * (sigma if inside else _ZERO)
        e = _ONE + u * (_ONE + u * (_E2 + u * (_E3 + u * (_E4 + u * (_E5 + u * (_E6 + u * _E7))))))
        e = e * e
        e = e * e
        e = e * e
        weight[i] = e if inside else _ZERO


@jit(inline="never")
def _blend(weight, light, live, last, opacity, index, lo, hi):
    """Turn fall-off into weight = alpha * light before, and dim the light. No branches."""
    for i in range(np.uint64(lo), np.uint64(hi)):
        alpha = min(opacity * weight[i], _ALPHA_MAX)
        alpha = alpha if alpha >= _ALPHA_MIN else _ZERO
        alpha = alpha * live[i]
        after = light[i] * (_ONE - alpha)
        stop = after <= _T_MIN
        weight[i] = _ZERO if stop else alpha * light[i]
        light[i] = light[i] if stop else after
        live[i] = _ZERO if stop else live[i]
        last[i] = index if weight[i] > _ZERO else last[i]


@jit(fastmath={"contract"}, inline="never")
def _add_scaled(out, weight, value, offset, lo, hi):
    for i in range(np.uint64(lo), np.uint64(hi)):
        out[np.uint64(offset) + i] += value * weight[i]


@jit(inline="never")
def _pixel_centres(px, py, x0, y0):
    for i in range(AREA):
        px[i] = x0 + i % TILE + 0.5
        py[i] = y0 + i // TILE + 0.5


@jit(nogil=True)
def _forward(begin, end, pairs, splats, out):
    """Tiles begin to end; see :func:`forward`, which made what is in ``out``."""
    starts, ids, spans = pairs
    means2d, conics, opacity, features = splats
    picture, light_out, last_out = out
    channels, height, width = picture.shape[1:]
    tiles_x, tiles_y = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    tiles = tiles_x * tiles_y
    for job in range(begin, end):
        b, tile = job // tiles, job % tiles
        x0, y0 = (tile % tiles_x) * TILE, (tile // tiles_x) * TILE
        px, py = np.empty(AREA, np.float32), np.empty(AREA, np.float32)
        _pixel_centres(px, py, x0, y0)
        light, live = np.ones(AREA, np.float32), np.ones(AREA, np.float32)
        weight = np.empty(AREA, np.float32)
        last = np.full(AREA, -1, np.int32)
        colour = np.zeros(channels * AREA, np.float32)
        for k in range(starts[job], starts[job + 1]):
            n = ids[k]
            x, y = means2d[b, n, 0], means2d[b, n, 1]
            lo, hi = spans[k, 0], spans[k, 1]
            _falloff(
                weight, px, py, x, y, conics[b, n, 0], conics[b, n, 1], conics[b, n, 2], lo, hi
            )
            _blend(weight, light, live, last, opacity[n], np.int32(k), lo, hi)
            for c in range(channels):
                _add_scaled(colour, weight, features[b, n, c], c * AREA, lo, hi)
            if k % CHECK_EVERY == 0 and live.max() == _ZERO:
                break
        for i in range(min(TILE, height - y0)):
            for j in range(min(TILE, width - x0)):
                p = i * TILE + j
                light_out[b, y0 + i, x0 + j] = light[p]
                last_out[b, y0 + i, x0 + j] = last[p]
                for c in range(channels):
                    picture[b, c, y0 + i, x0 + j] = colour[c * AREA + p]


def forward(pairs, splats, width, height):
    """Composite all views. Returns picture [B, C, H, W], light [B, H, W] what is left behind the
    last splat, and last [B, H, W] the index into ids of the last contributor, -1 = none.

    ``pairs``: starts, ids and spans of :func:`~.cpu_tiles.bin_tiles`; ``splats``: means2d, conics,
    opacity and features [B, N, C].
    """
    features = splats[3]
    views, channels = features.shape[0], features.shape[2]
    out = (
        np.empty((views, channels, height, width), np.float32),
        np.empty((views, height, width), np.float32),
        np.empty((views, height, width), np.int32),
    )
    spread(_forward, len(pairs[0]) - 1, pairs, splats, out)
    return out


@jit(fastmath={"contract"}, inline="never")
def _dot_features(dot, grad, value, offset, lo, hi):
    for i in range(np.uint64(lo), np.uint64(hi)):
        dot[i] += value * grad[np.uint64(offset) + i]


@jit(inline="never")
def _unblend(weight, slope, dot, light, behind, last, opacity, index, lo, hi):
    """Undo one splat: light goes back to what it was before it.

    In: weight = fall-off, dot = feature . dL/dpicture. Out: weight = alpha * light before,
    slope = -dL/dsigma. ``behind`` holds sum over later splats of weight * dot, plus the term of
    the light that is left.
    """
    for i in range(np.uint64(lo), np.uint64(hi)):
        raw = opacity * weight[i]
        alpha = min(raw, _ALPHA_MAX)
        used = (alpha >= _ALPHA_MIN) & (index <= last[i])
        alpha = alpha if used else _ZERO
        inverse = _ONE / (_ONE - alpha)
        before = light[i] * inverse
        weight[i] = alpha * before
        d_alpha = before * dot[i] - behind[i] * inverse
        slope[i] = d_alpha * alpha if raw < _ALPHA_MAX else _ZERO
        light[i] = before
        behind[i] += weight[i] * dot[i]


@jit(fastmath={"contract", "reassoc", "nsz"}, inline="never")
def _moments(slope, px, py, x, y, lo, hi):
    """Sums over pixels of slope times 1, dx, dy, dx^2, dx dy, dy^2."""
    s = sx = sy = sxx = sxy = syy = _ZERO
    for i in range(np.uint64(lo), np.uint64(hi)):
        dx = px[i] - x
        dy = py[i] - y
        v = slope[i]
        vx = v * dx
        vy = v * dy
        s += v
        sx += vx
        sy += vy
        sxx += vx * dx
        sxy += vx * dy
        syy += vy * dy
    return s, sx, sy, sxx, sxy, syy


@jit(fastmath={"contract", "reassoc", "nsz"}, inline="never")
def _dot(a, b, offset, lo, hi):
    s = _ZERO
    for i in range(np.uint64(lo), np.uint64(hi)):
        s += a[i] * b[np.uint64(offset) + i]
    return s


@jit(nogil=True)
def _backward(begin, end, pairs, splats, left, pull, rows):
    """Tiles begin to end; see :func:`backward`, which made ``rows``."""
    starts, ids, spans = pairs
    means2d, conics, opacity, features = splats
    light_in, last_in = left
    d_picture, d_alpha = pull
    channels, height, width = d_picture.shape[1:]
    tiles_x, tiles_y = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    tiles = tiles_x * tiles_y
    for job in range(begin, end):
        b, tile = job // tiles, job % tiles
        x0, y0 = (tile % tiles_x) * TILE, (tile // tiles_x) * TILE
        px, py = np.empty(AREA, np.float32), np.empty(AREA, np.float32)
        _pixel_centres(px, py, x0, y0)
        light, behind = np.ones(AREA, np.float32), np.zeros(AREA, np.float32)
        last = np.full(AREA, -1, np.int32)
        grad = np.zeros(channels * AREA, np.float32)
        weight, slope = np.empty(AREA, np.float32), np.empty(AREA, np.float32)
        dot = np.empty(AREA, np.float32)
        final = -1
        for i in range(min(TILE, height - y0)):
            for j in range(min(TILE, width - x0)):
                p = i * TILE + j
                light[p] = light_in[b, y0 + i, x0 + j]
                last[p] = last_in[b, y0 + i, x0 + j]
                final = max(final, last[p])
                # alpha = 1 - light, so dL/dlight = -d_alpha; it acts like one more splat behind.
                behind[p] = -d_alpha[b, y0 + i, x0 + j] * light[p]
                for c in range(channels):
                    grad[c * AREA + p] = d_picture[b, c, y0 + i, x0 + j]
        for k in range(final, starts[job] - 1, -1):
            n = ids[k]
            x, y = means2d[b, n, 0], means2d[b, n, 1]
            xx, xy, yy = conics[b, n, 0], conics[b, n, 1], conics[b, n, 2]
            lo, hi = spans[k, 0], spans[k, 1]
            _falloff(weight, px, py, x, y, xx, xy, yy, lo, hi)
            dot[:] = _ZERO
            for c in range(channels):
                _dot_features(dot, grad, features[b, n, c], c * AREA, lo, hi)
            _unblend(weight, slope, dot, light, behind, last, opacity[n], k, lo, hi)
            s, sx, sy, sxx, sxy, syy = _moments(slope, px, py, x, y, lo, hi)
            rows[k, 0] = xx * sx + xy * sy
            rows[k, 1] = xy * sx + yy * sy
            rows[k, 2] = -_HALF * sxx
            rows[k, 3] = -sxy
            rows[k, 4] = -_HALF * syy
            rows[k, 5] = s / opacity[n]
            for c in range(channels):
                rows[k, GEOMETRY + c] = _dot(weight, grad, c * AREA, lo, hi)


def backward(pairs, splats, left, pull):
    """Gradient rows [P, 6 + C], one per (splat, tile) pair; see :func:`reduce_rows`.

    ``pairs`` and ``splats`` as in :func:`forward`; ``left``: light and last of it; ``pull``: the
    gradients of the picture and of alpha.
    """
    rows = np.zeros((len(pairs[1]), GEOMETRY + splats[3].shape[2]), np.float32)
    spread(_backward, len(pairs[0]) - 1, pairs, splats, left, pull, rows)
    return rows


@jit(nogil=True)
def _reduce(first, last, starts, ids, rows, out):
    tiles = (len(starts) - 1) // len(out)
    for b in range(first, last):
        for k in range(starts[b * tiles], starts[(b + 1) * tiles]):
            for c in range(rows.shape[1]):
                out[b, ids[k], c] += rows[k, c]


def reduce_rows(starts, ids, rows, views, splats):
    """Add up gradient rows per view and splat, in the fixed order of the tiles: [B, N, 6 + C]."""
    out = np.zeros((views, splats, rows.shape[1]), np.float32)
    spread(_reduce, views, starts, ids, rows, out)
    return out
