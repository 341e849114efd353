# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Alpha compositing of depth-sorted splats and its gradient in Triton, one tile per program.

A program takes the splats of its tile in groups of SPLATS: numbers about a splat at a pixel are
blocks [SPLATS, TILE * TILE], one or two pixels per thread and all splats of the group in its
registers, so products along the splats cross no thread. Features come in groups of CHANNELS, one
program each; what a splat receives is linear in the gradient of the picture, so the groups add up.

    after_k = prod_{j <= k} (1 - alpha_j),  weight_k = alpha_k after_{k - 1}

The light only shrinks: "stop at the first that leaves too little" is the same as "drop all that
leave too little", and a tile is finished when no pixel has more.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..constants import ALPHA_MAX, ALPHA_MIN, TRANSMITTANCE_MIN
from ..triton_launch import SIZES

_ALPHA_MAX = tl.constexpr(ALPHA_MAX)
_ALPHA_MIN = tl.constexpr(ALPHA_MIN)
_LIGHT_MIN = tl.constexpr(TRANSMITTANCE_MIN)
RECORD = 8
"""Numbers about a splat in a view: x, y, conic xx, xy, yy, opacity, and two that fill it up."""
_RECORD = tl.constexpr(RECORD)


@triton.jit
def _pixels(tile, tiles_x, width, height, TILE: tl.constexpr):
    """Column and row of each pixel of a tile, and whether the picture has it."""
    p = tl.arange(0, TILE * TILE)
    j = (tile % tiles_x) * TILE + p % TILE
    i = (tile // tiles_x) * TILE + p // TILE
    return i, j, (i < height) & (j < width)


@triton.jit
def _column(record, column: tl.constexpr):
    """One column [K] of records [K, RECORD] that are in registers. The choice is made when the
    kernel is compiled, and adding whole zeros, unlike zeros of floats, costs nothing."""
    bits = record.to(tl.int32, bitcast=True)
    here = tl.arange(0, _RECORD)[None, :] == column
    return tl.sum(tl.where(here, bits, 0), axis=1).to(tl.float32, bitcast=True)


@triton.jit
def _splats(records_ptr, n, i, j):
    """From the centres of some splats to pixel centres [K, P], and the rest of their records."""
    at = records_ptr + n * _RECORD
    dx = (j + 0.5)[None, :] - tl.load(at)[:, None]
    dy = (i + 0.5)[None, :] - tl.load(at + 1)[:, None]
    return dx, dy, tl.load(at + 2), tl.load(at + 3), tl.load(at + 4), tl.load(at + 5)


@triton.jit
def _alpha(dx, dy, xx, xy, yy, opacity):
    """Opacity of splats at pixels, 0 where it is too little; and before it was cut."""
    sigma = 0.5 * (xx[:, None] * dx * dx + yy[:, None] * dy * dy) + xy[:, None] * dx * dy
    raw = opacity[:, None] * tl.exp(-sigma)
    alpha = tl.minimum(raw, _ALPHA_MAX)
    return tl.where((sigma >= 0.0) & (alpha >= _ALPHA_MIN), alpha, 0.0), raw


@triton.jit(do_not_specialize=SIZES)
def raster_forward(
    starts_ptr, ids_ptr, records_ptr, features_ptr, picture_ptr, light_ptr, latest_ptr,
    count, views, channels, width, height, tiles_x, tiles,
    CHANNELS: tl.constexpr, SPLATS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """picture [B, C, H, W], light [B, H, W] left behind the last splat, latest [B, H, W] the place
    of the last contributor in the list of its tile, -1 = none.

    records [B, N, RECORD] x, y, conic xx, xy, yy, opacity; features [groups, B, N, CHANNELS].
    Programs: tiles of all views x groups of channels.
    """
    job = tl.program_id(0)
    view = (job // tiles).to(tl.int64)
    i, j, inside = _pixels(job % tiles, tiles_x, width, height, TILE)
    first, last = tl.load(starts_ptr + job), tl.load(starts_ptr + job + 1)
    length = (last - first).to(tl.int32)
    ids_ptr += first
    records_ptr += view * count * _RECORD
    features_ptr += (tl.program_id(1) * views + view) * count * CHANNELS
    through = tl.where(inside, 1.0, 0.0)  # the product over all, also over those left out
    light = tl.where(inside, 1.0, 0.0)
    latest = tl.full((TILE * TILE,), -1, tl.int32)
    total = tl.zeros((CHANNELS, TILE * TILE), tl.float32)
    k, c = tl.arange(0, SPLATS), tl.arange(0, CHANNELS)
    brightest = 1.0
    at = 0
    while (at < length) & (brightest > _LIGHT_MIN):
        place = at + k
        # Past the end the last splat again, fully transparent: no load needs a mask.
        n = tl.load(ids_ptr + tl.minimum(place, length - 1)).to(tl.int64)
        features = tl.load(features_ptr + n[:, None] * CHANNELS + c[None, :])
        dx, dy, xx, xy, yy, opacity = _splats(records_ptr, n, i, j)
        alpha, _ = _alpha(dx, dy, xx, xy, yy, tl.where(place < length, opacity, 0.0))
        after = through[None, :] * tl.cumprod(1.0 - alpha, axis=0)
        reached = after > _LIGHT_MIN
        weight = tl.where(reached, alpha * (after / (1.0 - alpha)), 0.0)
        total += tl.sum(features[:, :, None] * weight[:, None, :], axis=0)
        latest = tl.maximum(latest, tl.max(tl.where(weight > 0.0, place[:, None], -1), axis=0))
        light = tl.minimum(light, tl.min(tl.where(reached, after, 1.0), axis=0))
        through = tl.min(after, axis=0)
        brightest = tl.max(through, axis=0)
        at += SPLATS
    c += tl.program_id(1) * CHANNELS
    pixel = i.to(tl.int64) * width + j
    area = height * width
    tl.store(
        picture_ptr + (view * channels + c)[:, None] * area + pixel[None, :], total,
        mask=(c < channels)[:, None] & inside[None, :],
    )  # fmt: skip
    if tl.program_id(1) == 0:
        tl.store(light_ptr + view * area + pixel, light, mask=inside)
        tl.store(latest_ptr + view * area + pixel, latest, mask=inside)


@triton.jit
def _record_gradient(slope, dx, dy, xx, xy, yy, opacity):
    """dL/drecord [K, RECORD] from slope = -dL/dsigma [K, P]; all sums over pixels at once."""
    column = tl.arange(0, _RECORD)[None, :, None]
    each = tl.where(column == 0, dx[:, None, :], dy[:, None, :])
    each = tl.where(column == 2, (dx * dx)[:, None, :], each)
    each = tl.where(column == 3, (dx * dy)[:, None, :], each)
    each = tl.where(column == 4, (dy * dy)[:, None, :], each)
    each = tl.where(column == 5, 1.0, each)
    sums = tl.sum(each * slope[:, None, :], axis=2)
    sx, sy = _column(sums, 0), _column(sums, 1)
    column = tl.arange(0, _RECORD)[None, :]
    out = tl.where(column == 3, -sums, -0.5 * sums)  # columns 2 to 4 are a conic's
    out = tl.where(column == 0, (xx * sx + xy * sy)[:, None], out)
    out = tl.where(column == 1, (xy * sx + yy * sy)[:, None], out)
    return tl.where(column == 5, sums / opacity[:, None], out)


@triton.jit(do_not_specialize=SIZES)
def raster_backward(
    starts_ptr, ids_ptr, records_ptr, features_ptr, light_ptr, latest_ptr, d_picture_ptr,
    d_alpha_ptr, d_records_ptr, d_features_ptr,
    count, views, channels, width, height, tiles_x, tiles,
    CHANNELS: tl.constexpr, SPLATS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Adds to the gradients of the records [B, N, RECORD] and features [groups, B, N, CHANNELS],
    from the last contributor of a tile to its first splat, once per splat and tile."""
    job = tl.program_id(0)
    view = (job // tiles).to(tl.int64)
    i, j, inside = _pixels(job % tiles, tiles_x, width, height, TILE)
    k, column, c = tl.arange(0, SPLATS), tl.arange(0, _RECORD), tl.arange(0, CHANNELS)
    channel = tl.program_id(1) * CHANNELS + c
    pixel = i.to(tl.int64) * width + j
    area = height * width
    light = tl.load(light_ptr + view * area + pixel, mask=inside, other=1.0)
    latest = tl.load(latest_ptr + view * area + pixel, mask=inside, other=-1)
    pull = tl.load(
        d_picture_ptr + (view * channels + channel)[:, None] * area + pixel[None, :],
        mask=(channel < channels)[:, None] & inside[None, :], other=0.0,
    )  # fmt: skip
    # alpha = 1 - light, so dL/dlight = -d_alpha: it acts like one more splat behind the others.
    behind = -light * tl.load(d_alpha_ptr + view * area + pixel, mask=inside, other=0.0)
    behind = tl.where(tl.program_id(1) == 0, behind, 0.0)  # once, not per group of channels
    ids_ptr += tl.load(starts_ptr + job)
    row = view * count * _RECORD
    records_ptr += row
    d_records_ptr += row
    row = (tl.program_id(1) * views + view) * count * CHANNELS
    features_ptr += row
    d_features_ptr += row
    at = tl.max(latest, axis=0)
    while at >= 0:
        place = at - k  # from the back
        n = tl.load(ids_ptr + tl.maximum(place, 0)).to(tl.int64)
        at_record = n[:, None] * _RECORD + column[None, :]
        at_feature = n[:, None] * CHANNELS + c[None, :]
        features = tl.load(features_ptr + at_feature)
        # Past the front the first splat again, which comes after all others and is not written.
        dx, dy, xx, xy, yy, opacity = _splats(records_ptr, n, i, j)
        alpha, raw = _alpha(dx, dy, xx, xy, yy, opacity)
        alpha = tl.where(place[:, None] <= latest[None, :], alpha, 0.0)
        left = 1.0 - alpha
        before = light[None, :] / tl.cumprod(left, axis=0)
        weight = alpha * before
        dot = tl.sum(features[:, :, None] * pull[None, :, :], axis=1)
        push = weight * dot
        further = behind[None, :] + tl.cumsum(push, axis=0) - push
        slope = alpha * (before * dot - further / left)
        slope = tl.where(raw <= _ALPHA_MAX, slope, 0.0)
        d_features = tl.sum(weight[:, None, :] * pull[None, :, :], axis=2)
        d_record = _record_gradient(slope, dx, dy, xx, xy, yy, opacity)
        there = (place >= 0)[:, None]
        wanted = there & (c < CHANNELS)[None, :]
        tl.atomic_add(d_features_ptr + at_feature, d_features, mask=wanted, sem="relaxed")
        wanted = there & (column < 6)[None, :]
        tl.atomic_add(d_records_ptr + at_record, d_record, mask=wanted, sem="relaxed")
        light = tl.max(before, axis=0)
        behind += tl.sum(push, axis=0)
        at -= SPLATS
