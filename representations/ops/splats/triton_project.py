# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Projection of 3D Gaussians to the screen and its gradient in Triton, one splat per lane.

The formulas of :func:`representations.ops.splats.reference.project`. A row of the screen axes
S = J V R diag(scale) [2, 3] is written a, b; the covariance on the screen is S S^T + blur.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..constants import ALPHA_MIN, BLUR_PX2, EXTENT_SIGMAS, FRUSTUM_MARGIN, NEAR_PLANE
from ..triton_launch import SIZES

_ALPHA_MIN = tl.constexpr(ALPHA_MIN)
_BLUR = tl.constexpr(BLUR_PX2)
_SIGMAS = tl.constexpr(EXTENT_SIGMAS)
_MARGIN = tl.constexpr(FRUSTUM_MARGIN)
_NEAR = tl.constexpr(NEAR_PLANE)
_SHORTEST = tl.constexpr(1e-12)  # of a quaternion, as torch.nn.functional.normalize has it
_WIDEST = tl.constexpr(2.0**30)  # pixels: a radius is an int32


@triton.jit
def _three(ptr, n, inside):
    """Row n of an array [N, 3]."""
    x = tl.load(ptr + 3 * n, mask=inside, other=0.0)
    y = tl.load(ptr + 3 * n + 1, mask=inside, other=0.0)
    return x, y, tl.load(ptr + 3 * n + 2, mask=inside, other=0.0)


@triton.jit
def _store_three(ptr, n, inside, x, y, z):
    """Write row n of an array [N, 3]."""
    tl.store(ptr + 3 * n, x, mask=inside)
    tl.store(ptr + 3 * n + 1, y, mask=inside)
    tl.store(ptr + 3 * n + 2, z, mask=inside)


@triton.jit
def _kept(drawn, x, y, z):
    """A vector, or zeros where nothing is drawn, whatever it holds there."""
    return tl.where(drawn, x, 0.0), tl.where(drawn, y, 0.0), tl.where(drawn, z, 0.0)


@triton.jit
def _quaternion(quats_ptr, n, inside):
    """The unit quaternion and the length that it had."""
    w = tl.load(quats_ptr + 4 * n, mask=inside, other=1.0)
    x = tl.load(quats_ptr + 4 * n + 1, mask=inside, other=0.0)
    y = tl.load(quats_ptr + 4 * n + 2, mask=inside, other=0.0)
    z = tl.load(quats_ptr + 4 * n + 3, mask=inside, other=0.0)
    length = tl.maximum(tl.sqrt(w * w + x * x + y * y + z * z), _SHORTEST)
    return w / length, x / length, y / length, z / length, length


@triton.jit
def _turned(w, x, y, z, a, b, c):
    """Row (a, b, c) times the rotation matrix of a unit quaternion."""
    u = a * (1 - 2 * (y * y + z * z)) + b * 2 * (x * y + w * z) + c * 2 * (x * z - w * y)
    v = a * 2 * (x * y - w * z) + b * (1 - 2 * (x * x + z * z)) + c * 2 * (y * z + w * x)
    t = a * 2 * (x * z + w * y) + b * 2 * (y * z - w * x) + c * (1 - 2 * (x * x + y * y))
    return u, v, t


@triton.jit
def _row(view_ptr, i: tl.constexpr):
    """Row i of a camera's rotation, and its shift."""
    at = view_ptr + 4 * i
    return tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3)


@triton.jit
def _lens(lens_ptr, axis: tl.constexpr):
    """Focal length and centre along an axis, pixels."""
    return tl.load(lens_ptr + 4 * axis), tl.load(lens_ptr + 3 * axis + 2)


@triton.jit
def _slope(ratio, focal, centre, size):
    """Tangent of the direction, no further outside than the margin; whether it was left alone."""
    margin = 0.5 * size / focal * _MARGIN
    low = -(centre / focal + margin)
    high = (size - centre) / focal + margin
    return tl.minimum(tl.maximum(ratio, low), high), (ratio >= low) & (ratio <= high)


@triton.jit
def _finite(x):
    return tl.abs(x) < float("inf")


@triton.jit(do_not_specialize=SIZES)
def project_forward(
    means_ptr, quats_ptr, scales_ptr, opacity_ptr, views_ptr, lenses_ptr,
    means2d_ptr, conics_ptr, depths_ptr, radii_ptr, count, width, height, BLOCK: tl.constexpr,
):  # fmt: skip
    """means2d [B, N, 2], conics [B, N, 3], depths [B, N], radii [B, N, 2]; zeros = not drawn.

    views [B, 3, 4] world to camera, lenses [B, 3, 3]. Programs: blocks of splats x views.
    """
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    view = tl.program_id(1).to(tl.int64)
    inside = n < count
    views_ptr += 12 * view
    lenses_ptr += 9 * view
    opacity = tl.load(opacity_ptr + n, mask=inside, other=0.0)
    mx, my, mz = _three(means_ptr, n, inside)
    sx, sy, sz = _three(scales_ptr, n, inside)
    w, x, y, z, _ = _quaternion(quats_ptr, n, inside)
    ax, ay, az, a_shift = _row(views_ptr, 0)
    bx, by, bz, b_shift = _row(views_ptr, 1)
    cx, cy, cz, c_shift = _row(views_ptr, 2)
    px = ax * mx + ay * my + az * mz + a_shift
    py = bx * mx + by * my + bz * mz + b_shift
    depth = cx * mx + cy * my + cz * mz + c_shift
    drawn = inside & (depth > _NEAR) & _finite(px) & _finite(py) & _finite(depth)
    depth = tl.where(drawn, depth, 1.0)
    fx, centre_x = _lens(lenses_ptr, 0)
    fy, centre_y = _lens(lenses_ptr, 1)
    ux, _ = _slope(px / depth, fx, centre_x, width)
    uy, _ = _slope(py / depth, fy, centre_y, height)
    _, _, _, ax, ay, az = _screen_axis(
        w, x, y, z, sx, sy, sz, fx / depth, ax, ay, az, ux, cx, cy, cz
    )
    _, _, _, bx, by, bz = _screen_axis(
        w, x, y, z, sx, sy, sz, fy / depth, bx, by, bz, uy, cx, cy, cz
    )
    xx = ax * ax + ay * ay + az * az
    yy = bx * bx + by * by + bz * bz
    xy = ax * bx + ay * by + az * bz
    # |a x b|^2 = xx yy - xy^2 without the cancellation, which float32 cannot afford.
    i, j, k = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
    determinant = i * i + j * j + k * k + (xx + yy + _BLUR) * _BLUR
    xx += _BLUR
    yy += _BLUR
    u, v = fx * px / depth + centre_x, fy * py / depth + centre_y
    sigmas = tl.sqrt(2.0 * tl.log(tl.maximum(opacity / _ALPHA_MIN, 1.0)))
    sigmas = tl.minimum(sigmas, _SIGMAS)
    rx, ry = tl.ceil(sigmas * tl.sqrt(xx)), tl.ceil(sigmas * tl.sqrt(yy))
    drawn = drawn & (u + rx > 0) & (u - rx < width) & (v + ry > 0) & (v - ry < height)
    drawn = drawn & (determinant > 0) & _finite(determinant) & (opacity >= _ALPHA_MIN)
    at = view * count + n
    zero = tl.zeros((BLOCK,), tl.float32)
    tl.store(means2d_ptr + 2 * at, tl.where(drawn, u, zero), mask=inside)
    tl.store(means2d_ptr + 2 * at + 1, tl.where(drawn, v, zero), mask=inside)
    xx, xy, yy = _kept(drawn, xx / determinant, xy / determinant, yy / determinant)
    _store_three(conics_ptr, at, inside, yy, -xy, xx)
    tl.store(depths_ptr + at, tl.where(drawn, depth, zero), mask=inside)
    rx = tl.where(drawn, tl.minimum(rx, _WIDEST), zero)
    ry = tl.where(drawn, tl.minimum(ry, _WIDEST), zero)
    tl.store(radii_ptr + 2 * at, rx.to(tl.int32), mask=inside)
    tl.store(radii_ptr + 2 * at + 1, ry.to(tl.int32), mask=inside)


@triton.jit
def _conic_gradient(conics_ptr, d_conics_ptr, at, drawn):
    """dL/dcovariance xx, xy, yy of the entries of the matrix: -C G C, with C the conic and G its
    gradient, whose off-diagonal is shared by two entries."""
    a, b, c = _three(conics_ptr, at, drawn)
    ga, gb, gc = _three(d_conics_ptr, at, drawn)
    gb *= 0.5
    p00, p01 = a * ga + b * gb, a * gb + b * gc
    p10, p11 = b * ga + c * gb, b * gb + c * gc
    return -(p00 * a + p01 * b), -(p00 * b + p01 * c), -(p10 * b + p11 * c)


@triton.jit
def _axis_gradient(
    ratio, depth, focal, slope, free, g_mean, gx, gy, gz, vx, vy, vz, cx, cy, cz
):  # fmt: skip
    """What the coordinate along an axis and the depth receive from the gradient (gx, gy, gz) of
    the row T = focal / z (v - slope c) of the projection and from that of the screen position."""
    along = gx * vx + gy * vy + gz * vz
    across = gx * cx + gy * cy + gz * cz
    g_depth = focal / (depth * depth) * (slope * across - along)
    g_ratio = focal * g_mean + tl.where(free, -focal / depth * across, 0.0)
    return g_ratio / depth, g_depth - g_ratio * ratio / depth


@triton.jit
def _rotation_gradient(w, x, y, z, length, a, b, c, d, e, f, g, h, i):
    """dL/dquaternion, before it had length one, from dL/drotation ((a b c) (d e f) (g h i))."""
    gw = 2 * (x * (h - f) + y * (c - g) + z * (d - b))
    gx = 2 * (y * (b + d) + z * (c + g) + w * (h - f) - 2 * x * (e + i))
    gy = 2 * (x * (b + d) + z * (f + h) + w * (c - g) - 2 * y * (a + i))
    gz = 2 * (x * (c + g) + y * (f + h) + w * (d - b) - 2 * z * (a + e))
    along = gw * w + gx * x + gy * y + gz * z
    return (
        (gw - along * w) / length, (gx - along * x) / length,
        (gy - along * y) / length, (gz - along * z) / length,
    )  # fmt: skip


@triton.jit
def _combined(s, ax, ay, az, t, bx, by, bz):
    """s a + t b of two vectors."""
    return s * ax + t * bx, s * ay + t * by, s * az + t * bz


@triton.jit
def _screen_axis(w, x, y, z, sx, sy, sz, scale, vx, vy, vz, slope, cx, cy, cz):
    """A row T = scale (v - slope c) of the projection, and T R diag(s)."""
    tx, ty, tz = _combined(scale, vx, vy, vz, -scale * slope, cx, cy, cz)
    ax, ay, az = _turned(w, x, y, z, tx, ty, tz)
    return tx, ty, tz, ax * sx, ay * sy, az * sz


@triton.jit
def _view_gradient(
    views_ptr, lenses_ptr, conics_ptr, d_means2d_ptr, d_conics_ptr, d_depths_ptr, at, drawn,
    width, height, mx, my, mz, sx, sy, sz, w, x, y, z,
):  # fmt: skip
    """What one view adds to dL/dmean [3] and, row by row, to dL/d(R diag(s)) [9].

    The stand-ins where nothing is drawn are harmless: zero times what is not finite is not zero.
    """
    ax, ay, az, a_shift = _row(views_ptr, 0)
    bx, by, bz, b_shift = _row(views_ptr, 1)
    cx, cy, cz, c_shift = _row(views_ptr, 2)
    fx, centre_x = _lens(lenses_ptr, 0)
    fy, centre_y = _lens(lenses_ptr, 1)
    depth = tl.where(drawn, cx * mx + cy * my + cz * mz + c_shift, 1.0)
    ratio_x = tl.where(drawn, ax * mx + ay * my + az * mz + a_shift, 0.0) / depth
    ratio_y = tl.where(drawn, bx * mx + by * my + bz * mz + b_shift, 0.0) / depth
    slope_x, free_x = _slope(ratio_x, fx, centre_x, width)
    slope_y, free_y = _slope(ratio_y, fy, centre_y, height)
    tx, ty, tz, px, py, pz = _screen_axis(
        w, x, y, z, sx, sy, sz, fx / depth, ax, ay, az, slope_x, cx, cy, cz
    )
    ux, uy, uz, qx, qy, qz = _screen_axis(
        w, x, y, z, sx, sy, sz, fy / depth, bx, by, bz, slope_y, cx, cy, cz
    )
    # The covariance is S S^T with the rows p, q of S: dL/dS = 2 dL/dcovariance S.
    xx, xy, yy = _conic_gradient(conics_ptr, d_conics_ptr, at, drawn)
    gpx, gpy, gpz = _combined(2.0 * xx, px, py, pz, 2.0 * xy, qx, qy, qz)
    gqx, gqy, gqz = _combined(2.0 * xy, px, py, pz, 2.0 * yy, qx, qy, qz)
    gpx, gpy, gpz = _kept(drawn, gpx, gpy, gpz)
    gqx, gqy, gqz = _kept(drawn, gqx, gqy, gqz)
    r0, r1, r2 = _combined(tx, gpx, gpy, gpz, ux, gqx, gqy, gqz)
    r3, r4, r5 = _combined(ty, gpx, gpy, gpz, uy, gqx, gqy, gqz)
    r6, r7, r8 = _combined(tz, gpx, gpy, gpz, uz, gqx, gqy, gqz)
    # dL/dT = R diag(s) dL/dS: a rotation the other way round.
    tx, ty, tz = _turned(w, -x, -y, -z, sx * gpx, sy * gpy, sz * gpz)
    ux, uy, uz = _turned(w, -x, -y, -z, sx * gqx, sy * gqy, sz * gqz)
    g_u = tl.load(d_means2d_ptr + 2 * at, mask=drawn, other=0.0)
    g_v = tl.load(d_means2d_ptr + 2 * at + 1, mask=drawn, other=0.0)
    g_a, near_a = _axis_gradient(
        ratio_x, depth, fx, slope_x, free_x, g_u, tx, ty, tz, ax, ay, az, cx, cy, cz
    )
    g_b, near_b = _axis_gradient(
        ratio_y, depth, fy, slope_y, free_y, g_v, ux, uy, uz, bx, by, bz, cx, cy, cz
    )
    g_c = near_a + near_b + tl.load(d_depths_ptr + at, mask=drawn, other=0.0)
    gx, gy, gz = _combined(g_a, ax, ay, az, g_b, bx, by, bz)
    return gx + g_c * cx, gy + g_c * cy, gz + g_c * cz, r0, r1, r2, r3, r4, r5, r6, r7, r8


@triton.jit(do_not_specialize=SIZES)
def project_backward(
    means_ptr, quats_ptr, scales_ptr, views_ptr, lenses_ptr, conics_ptr, radii_ptr,
    d_means2d_ptr, d_conics_ptr, d_depths_ptr, d_means_ptr, d_quats_ptr, d_scales_ptr,
    count, views, width, height, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of means [N, 3], quats [N, 4] and scales [N, 3], summed over the views in order."""
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = n < count
    mx, my, mz = _three(means_ptr, n, inside)
    sx, sy, sz = _three(scales_ptr, n, inside)
    w, x, y, z, length = _quaternion(quats_ptr, n, inside)
    zero = tl.zeros((BLOCK,), tl.float32)
    gx, gy, gz = zero, zero, zero  # of the mean
    r0, r1, r2 = zero, zero, zero  # of the axes R diag(s), row by row
    r3, r4, r5 = zero, zero, zero
    r6, r7, r8 = zero, zero, zero
    at, seen = n, n < 0  # where in arrays [B, N]; drawn in any view
    for _ in range(0, views):
        drawn = inside & (tl.load(radii_ptr + 2 * at, mask=inside, other=0) > 0)
        hx, hy, hz, q0, q1, q2, q3, q4, q5, q6, q7, q8 = _view_gradient(
            views_ptr, lenses_ptr, conics_ptr, d_means2d_ptr, d_conics_ptr, d_depths_ptr, at,
            drawn, width, height, mx, my, mz, sx, sy, sz, w, x, y, z,
        )  # fmt: skip
        gx, gy, gz = gx + hx, gy + hy, gz + hz
        r0, r1, r2 = r0 + q0, r1 + q1, r2 + q2
        r3, r4, r5 = r3 + q3, r4 + q4, r5 + q5
        r6, r7, r8 = r6 + q6, r7 + q7, r8 + q8
        seen = seen | drawn
        at += count
        views_ptr += 12
        lenses_ptr += 9
    gx, gy, gz = _kept(seen, gx, gy, gz)
    _store_three(d_means_ptr, n, inside, gx, gy, gz)
    # Columns of dL/d(R diag(s)) against those of R, which are the rows of R turned back.
    one = zero + 1.0
    ux, uy, uz = _turned(w, -x, -y, -z, one, zero, zero)
    vx, vy, vz = _turned(w, -x, -y, -z, zero, one, zero)
    tx, ty, tz = _turned(w, -x, -y, -z, zero, zero, one)
    gx, gy, gz = _kept(
        seen, ux * r0 + uy * r3 + uz * r6, vx * r1 + vy * r4 + vz * r7, tx * r2 + ty * r5 + tz * r8
    )
    _store_three(d_scales_ptr, n, inside, gx, gy, gz)
    gw, gx, gy, gz = _rotation_gradient(
        w, x, y, z, length, r0 * sx, r1 * sy, r2 * sz, r3 * sx, r4 * sy, r5 * sz,
        r6 * sx, r7 * sy, r8 * sz,
    )  # fmt: skip
    gx, gy, gz = _kept(seen, gx, gy, gz)
    tl.store(d_quats_ptr + 4 * n, tl.where(seen, gw, 0.0), mask=inside)
    _store_three(d_quats_ptr + n + 1, n, inside, gx, gy, gz)  # columns 1 to 3 of four
