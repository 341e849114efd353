# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Which splats a tile of pixels has to draw, in Triton, one splat of one view per lane.

A splat reaches the pixels where its fall-off exp(-sigma) times its opacity is at least ALPHA_MIN:
those inside of an ellipse, 2 sigma = xx u^2 + 2 xy u v + yy v^2 <= level, with (u, v) from its
centre. Row of tiles by row of tiles, the ellipse is cut to the row, and the tiles between its ends
get the splat; the bounding rectangle would bring a third more.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..constants import ALPHA_MIN
from ..triton_launch import SIZES

_ALPHA_MIN = tl.constexpr(ALPHA_MIN)
_SLACK = tl.constexpr(0.01)  # added to sigma: rounding must lose nothing that would be drawn
# Longer and thinner than this (1 - correlation^2): rounding decides, the rectangle is taken.
_SOUND = tl.constexpr(1e-3)


@triton.jit
def _extent(xx, xy, determinant, level, first, last):
    """Least and greatest u of the ellipse for v in [first, last]; (1, -1) if there is none."""
    reach = tl.sqrt(level * xx / determinant)  # of v
    # Where u is greatest, v is -tip; the outline is concave, so cutting v to the range is enough.
    tip = xy * tl.sqrt(level / (determinant * (determinant + xy * xy) / xx))
    v = tl.minimum(tl.maximum(-tip, first), last)
    high = (tl.sqrt(tl.maximum(level * xx - determinant * v * v, 0.0)) - xy * v) / xx
    v = tl.minimum(tl.maximum(tip, first), last)
    low = -(tl.sqrt(tl.maximum(level * xx - determinant * v * v, 0.0)) + xy * v) / xx
    missed = (first > reach) | (last < -reach)
    return tl.where(missed, 1.0, low), tl.where(missed, -1.0, high)


@triton.jit(do_not_specialize=SIZES)
def deal_out(
    means2d_ptr, conics_ptr, opacity_ptr, depths_ptr, radii_ptr, offsets_ptr, counts_ptr,
    keys_ptr, splats_ptr, count, pairs, width, height, tiles_x, tiles_y,
    WRITE: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """How many tiles each splat of each view reaches; or, with WRITE, which.

    A key is (view, tile, depth): the bits of a positive float32 grow with it. count = splats,
    pairs = views x splats.
    """
    m = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = m < pairs
    view, n = m // count, m % count
    x = tl.load(means2d_ptr + 2 * m, mask=inside, other=0.0)
    y = tl.load(means2d_ptr + 2 * m + 1, mask=inside, other=0.0)
    rx = tl.load(radii_ptr + 2 * m, mask=inside, other=0).to(tl.float32)
    ry = tl.load(radii_ptr + 2 * m + 1, mask=inside, other=0).to(tl.float32)
    inside = inside & (rx > 0)
    xx = tl.load(conics_ptr + 3 * m, mask=inside, other=1.0)
    xy = tl.load(conics_ptr + 3 * m + 1, mask=inside, other=0.0)
    yy = tl.load(conics_ptr + 3 * m + 2, mask=inside, other=1.0)
    opacity = tl.load(opacity_ptr + n, mask=inside, other=1.0)
    depth = tl.load(depths_ptr + m, mask=inside, other=1.0)
    determinant = xx * yy - xy * xy
    sound = determinant > xx * yy * _SOUND
    determinant = tl.where(sound, determinant, 1.0)
    level = 2.0 * (tl.log(opacity / _ALPHA_MIN) + _SLACK)
    # Cut to the picture before they become whole numbers: a splat may be larger than those hold.
    top = tl.floor(tl.maximum(y - ry, 0.0) / TILE).to(tl.int32)
    bottom = tl.floor(tl.minimum(y + ry, height - 0.5) / TILE).to(tl.int32) + 1
    bottom = tl.where(inside, bottom, top)
    at = tl.load(offsets_ptr + m, mask=inside, other=0) if WRITE else m
    kept = tl.zeros((BLOCK,), tl.int64)
    for step in range(0, tl.max(bottom - top, axis=0)):
        row = top + step
        first = row.to(tl.float32) * TILE + 0.5 - y
        low, high = _extent(xx, xy, determinant, level, first, first + (TILE - 1))
        low, high = tl.where(sound, low, -rx), tl.where(sound, high, rx)
        # Pixels whose centres lie between the ends, then their tiles.
        start = tl.ceil(tl.maximum(x + low - 0.5, 0.0))
        stop = tl.floor(tl.minimum(x + high - 0.5, width - 1.0))
        here = inside & (row < bottom) & (low <= high) & (start <= stop)
        left = (start / TILE).to(tl.int32)
        wide = tl.where(here, (stop / TILE).to(tl.int32) + 1 - left, 0)
        if WRITE:
            tile = (view * tiles_y + row) * tiles_x + left
            for along in range(0, tl.max(wide, axis=0)):
                more = along < wide
                key = ((tile + along) << 32) | depth.to(tl.int32, bitcast=True).to(tl.int64)
                tl.store(keys_ptr + at, key, mask=more)
                tl.store(splats_ptr + at, n.to(tl.int32), mask=more)
                at += more.to(tl.int64)
        kept += wide.to(tl.int64)
    if not WRITE:
        tl.store(counts_ptr + m, kept, mask=m < pairs)
