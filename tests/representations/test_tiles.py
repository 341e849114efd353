# SPDX-License-Identifier: Apache-2.0
"""The lists of splats that tiles draw, against a look at every pair of splat and pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest

from representations.ops.constants import ALPHA_MIN
from representations.ops.splats.cpu_tiles import SLACK, TILE, bin_tiles

COUNT = 300


def scene(seed: int, size: tuple[int, int], aspect: float):
    """Random ellipses, some of them outside: order, drawn, means2d, conics, radii, opacity."""
    rng = np.random.default_rng(seed)
    width, height = size
    means = rng.uniform(-20, 20 + max(size), (1, COUNT, 2))
    angle, long = rng.uniform(0, math.pi, COUNT), rng.uniform(0.4, 12, COUNT)
    short = long / rng.uniform(1, aspect, COUNT)
    c, s = np.cos(angle), np.sin(angle)
    xx = c**2 * long**2 + s**2 * short**2 + 0.3
    yy = s**2 * long**2 + c**2 * short**2 + 0.3
    xy = c * s * (long**2 - short**2)
    determinant = xx * yy - xy**2
    conics = np.stack([yy, -xy, xx], -1) / determinant[:, None]
    opacity = rng.uniform(ALPHA_MIN, 1, COUNT)
    opacity[:5] = ALPHA_MIN * 1.001
    sigmas = np.sqrt(2 * np.log(opacity / ALPHA_MIN))
    radii = np.ceil(sigmas[:, None] * np.sqrt(np.stack([xx, yy], -1)))[None]
    seen = ((means + radii > 0) & (means - radii < np.array([width, height]))).all(-1)[0]
    order = np.concatenate([rng.permutation(np.flatnonzero(seen)), np.flatnonzero(~seen)])
    as_float = (means.astype(np.float32), conics[None].astype(np.float32))
    listed = (*as_float, radii.astype(np.int32), opacity.astype(np.float32))
    return order[None], np.array([seen.sum()]), listed


def sigma(means, conics, points):
    """[N, P] at points [P, 2], in float64."""
    d = points[None] - means[0].astype(np.float64)[:, None]
    xx, xy, yy = (conics[0].astype(np.float64)[:, i, None] for i in range(3))
    return 0.5 * (xx * d[..., 0] ** 2 + yy * d[..., 1] ** 2) + xy * d[..., 0] * d[..., 1]


def drawn_pixels(starts, ids, spans, size):
    """[N, H, W]: may the rasteriser draw this splat on this pixel?"""
    width, height = size
    tiles_x, tiles_y = -(-width // TILE), -(-height // TILE)
    may = np.zeros((COUNT, tiles_y * TILE, tiles_x * TILE), bool)
    for tile in range(tiles_x * tiles_y):
        x, y = tile % tiles_x * TILE, tile // tiles_x * TILE
        for k in range(starts[tile], starts[tile + 1]):
            first, last = (y + int(span) // TILE for span in spans[k])
            assert not may[ids[k], y : y + TILE, x : x + TILE].any(), "listed twice"
            may[ids[k], first:last, x : x + TILE] = True
    return may[:, :height, :width]


@pytest.mark.parametrize("aspect", [1.0, 3.0, 40.0, 1e4])
@pytest.mark.parametrize("size", [(64, 64), (50, 37), (8, 8), (3, 90)])
def test_every_pixel_that_a_splat_reaches_is_listed(size: tuple[int, int], aspect: float):
    arguments = scene(7, size, aspect)
    order, drawn, (means, conics, _, opacity) = arguments
    starts, ids, spans = bin_tiles(*arguments, size)
    may = drawn_pixels(starts, ids, spans, size)
    x, y = np.meshgrid(np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5)
    s = sigma(means, conics, np.stack([x.ravel(), y.ravel()], -1)).reshape(-1, *size[::-1])
    reached = opacity.astype(np.float64)[:, None, None] * np.exp(-s) >= ALPHA_MIN
    visible = np.zeros(COUNT, bool)
    visible[order[0, : drawn[0]]] = True
    assert reached[visible].sum() > 20
    assert not (reached & ~may)[visible].any()
    assert not may[~visible].any()
    # And nearest first.
    rank = np.empty(COUNT, np.int64)
    rank[order[0]] = np.arange(COUNT)
    for tile in range(len(starts) - 1):
        here = rank[ids[starts[tile] : starts[tile + 1]]]
        assert (np.diff(here) > 0).all()


def test_what_is_listed_is_close_to_what_is_reached():
    """A pair needs a point of the ellipse between the outermost pixel centres of its tile: found
    here by sampling 29 x 29 points of each."""
    size = (64, 64)
    arguments = scene(3, size, 6.0)
    means, conics, _, opacity = arguments[2]
    opacity = opacity.astype(np.float64)
    starts, ids, _ = bin_tiles(*arguments, size)
    offsets = np.stack(np.meshgrid(*[np.linspace(0.5, TILE - 0.5, 29)] * 2), -1).reshape(-1, 2)
    listed = needed = 0
    for tile in range(len(starts) - 1):
        corner = np.array([tile % 8 * TILE, tile // 8 * TILE])
        least = sigma(means, conics, corner + offsets).min(1)
        reach = least <= np.log(opacity / ALPHA_MIN) + SLACK
        here = ids[starts[tile] : starts[tile + 1]]
        listed, needed = listed + len(here), needed + int(reach.sum())
    # Those that pass between two rows of pixel centres only are left out too.
    assert 0.9 * needed <= listed <= 1.02 * needed
    assert listed > 500


def test_two_views_are_listed_like_two_single_ones():
    size = (40, 24)
    one, two = scene(1, size, 4.0), scene(2, size, 4.0)
    order, drawn = (np.concatenate(pair) for pair in zip(one[:2], two[:2], strict=True))
    means, conics, radii = (
        np.concatenate(pair) for pair in zip(one[2][:3], two[2][:3], strict=True)
    )
    opacity = one[2][3]
    starts, ids, spans = bin_tiles(order, drawn, (means, conics, radii, opacity), size)
    two = (*two[:2], (*two[2][:3], opacity))
    lists = [bin_tiles(*arguments, size) for arguments in (one, two)]
    assert np.array_equal(ids, np.concatenate([lists[0][1], lists[1][1]]))
    assert np.array_equal(spans, np.concatenate([lists[0][2], lists[1][2]]))
    assert np.array_equal(starts, np.concatenate([lists[0][0], lists[0][0][-1] + lists[1][0][1:]]))
