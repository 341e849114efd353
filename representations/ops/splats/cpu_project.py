# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs
"""Projection of 3D Gaussians to the screen and its gradient, in numba, one splat at a time.

The same formulas as :func:`representations.ops.splats.reference.project`. In the backward pass a
thread owns a splat and walks over the views, so sums over views have a fixed order.
"""

from __future__ import annotations

import math

import numpy as np

from ..constants import ALPHA_MIN, BLUR_PX2, EXTENT_SIGMAS, FRUSTUM_MARGIN, NEAR_PLANE
from ..cpu_jit import jit, spread

# Scalars below are float64 inside a splat: a few hundred flops, and no cancellation to fear.


@jit()
def _rotation(quat, out):
    """Fill out [3, 3]; returns the unit quaternion and the length."""
    length = math.sqrt(quat[0] ** 2 + quat[1] ** 2 + quat[2] ** 2 + quat[3] ** 2)
    length = max(length, 1e-12)
    w, x, y, z = quat[0] / length, quat[1] / length, quat[2] / length, quat[3] / length
    out[0, 0] = 1 - 2 * (y * y + z * z)
    out[0, 1] = 2 * (x * y - w * z)
    out[0, 2] = 2 * (x * z + w * y)
    out[1, 0] = 2 * (x * y + w * z)
    out[1, 1] = 1 - 2 * (x * x + z * z)
    out[1, 2] = 2 * (y * z - w * x)
    out[2, 0] = 2 * (x * z - w * y)
    out[2, 1] = 2 * (y * z + w * x)
    out[2, 2] = 1 - 2 * (x * x + y * y)
    return w, x, y, z, length


@jit()
def _rotation_gradient(w, x, y, z, length, g, out):
    """dL/dquat [4] from dL/drotation g [3, 3], through the normalisation."""
    gw = 2 * (x * (g[2, 1] - g[1, 2]) + y * (g[0, 2] - g[2, 0]) + z * (g[1, 0] - g[0, 1]))
    gx = 2 * (
        y * (g[0, 1] + g[1, 0])
        + z * (g[0, 2] + g[2, 0])
        + w * (g[2, 1] - g[1, 2])
        - 2 * x * (g[1, 1] + g[2, 2])
    )
    gy = 2 * (
        x * (g[0, 1] + g[1, 0])
        + z * (g[1, 2] + g[2, 1])
        + w * (g[0, 2] - g[2, 0])
        - 2 * y * (g[0, 0] + g[2, 2])
    )
    gz = 2 * (
        x * (g[0, 2] + g[2, 0])
        + y * (g[1, 2] + g[2, 1])
        + w * (g[1, 0] - g[0, 1])
        - 2 * z * (g[0, 0] + g[1, 1])
    )
    along = gw * w + gx * x + gy * y + gz * z
    out[0] += (gw - along * w) / length
    out[1] += (gx - along * x) / length
    out[2] += (gy - along * y) / length
    out[3] += (gz - along * z) / length


@jit()
def _to_camera(mean, view, point):
    for i in range(3):
        point[i] = view[i, 0] * mean[0] + view[i, 1] * mean[1] + view[i, 2] * mean[2] + view[i, 3]


@jit()
def _slope(ratio, focal, centre, size):
    """Clamped tangent of the view direction, and whether it was left alone."""
    margin = FRUSTUM_MARGIN * 0.5 * size / focal
    low = -(centre / focal + margin)
    high = (size - centre) / focal + margin
    return min(max(ratio, low), high), low <= ratio <= high


@jit()
def _screen_axes(point, view, k, axes, width, height, transform, out):
    """transform [2, 3] = jacobian @ view rotation; out [2, 3] = transform @ axes."""
    z = point[2]
    fx, fy = k[0, 0], k[1, 1]
    ux, free_x = _slope(point[0] / z, fx, k[0, 2], width)
    uy, free_y = _slope(point[1] / z, fy, k[1, 2], height)
    for j in range(3):
        transform[0, j] = fx / z * (view[0, j] - ux * view[2, j])
        transform[1, j] = fy / z * (view[1, j] - uy * view[2, j])
    for i in range(2):
        for j in range(3):
            out[i, j] = (
                transform[i, 0] * axes[0, j]
                + transform[i, 1] * axes[1, j]
                + transform[i, 2] * axes[2, j]
            )
    return ux, uy, free_x, free_y


@jit(nogil=True)
def _forward(first, last, shape, opacity, seen):
    """Splats first to last; see :func:`forward`, which made what is in ``seen``."""
    means, quats, scales, views, intrinsics, width, height = shape
    means2d, conics, depths, radii = seen
    axes, point = np.empty((3, 3)), np.empty(3)
    transform, screen = np.empty((2, 3)), np.empty((2, 3))
    for n in range(first, last):
        o = float(opacity[n])
        if not (o >= ALPHA_MIN):
            continue
        sigmas = min(EXTENT_SIGMAS, math.sqrt(2.0 * math.log(max(1.0, o / ALPHA_MIN))))
        _rotation(quats[n], axes)
        for i in range(3):
            for j in range(3):
                axes[i, j] *= scales[n, j]
        for b in range(len(views)):
            view, k = views[b], intrinsics[b]
            _to_camera(means[n], view, point)
            z = point[2]
            if not (z > NEAR_PLANE and math.isfinite(point[0] + point[1] + z)):
                continue
            _screen_axes(point, view, k, axes, width, height, transform, screen)
            xx = screen[0, 0] ** 2 + screen[0, 1] ** 2 + screen[0, 2] ** 2 + BLUR_PX2
            yy = screen[1, 0] ** 2 + screen[1, 1] ** 2 + screen[1, 2] ** 2 + BLUR_PX2
            xy = (
                screen[0, 0] * screen[1, 0]
                + screen[0, 1] * screen[1, 1]
                + screen[0, 2] * screen[1, 2]
            )
            determinant = xx * yy - xy * xy
            if not (determinant > 0.0 and math.isfinite(determinant)):
                continue
            x = k[0, 0] * point[0] / z + k[0, 2]
            y = k[1, 1] * point[1] / z + k[1, 2]
            rx = min(math.ceil(sigmas * math.sqrt(xx)), 2.0**30)
            ry = min(math.ceil(sigmas * math.sqrt(yy)), 2.0**30)
            if not (x + rx > 0 and x - rx < width and y + ry > 0 and y - ry < height):
                continue
            means2d[b, n, 0], means2d[b, n, 1] = x, y
            conics[b, n, 0] = yy / determinant
            conics[b, n, 1] = -xy / determinant
            conics[b, n, 2] = xx / determinant
            depths[b, n] = z
            radii[b, n, 0], radii[b, n, 1] = rx, ry


def forward(shape, opacity):
    """means2d [B, N, 2], conics [B, N, 3], depths [B, N], radii [B, N, 2]; zeros = not drawn.

    ``shape``: means, quats, scales, views, intrinsics, width, height.
    """
    means, views = shape[0], shape[3]
    every = (len(views), len(means))
    seen = (
        np.zeros((*every, 2), np.float32),
        np.zeros((*every, 3), np.float32),
        np.zeros(every, np.float32),
        np.zeros((*every, 2), np.int32),
    )
    spread(_forward, len(means), shape, opacity, seen)
    return seen


@jit()
def _conic_gradient(conic, g, screen, out):
    """dL/dscreen axes out [2, 3] from dL/dconic g [3]; conic = inverse(screen screen^T + blur)."""
    a, b, c = conic[0], conic[1], conic[2]
    # dL/dcov = -conic @ G @ conic with G symmetric, off-diagonal shared by two entries.
    ga, gb, gc = g[0], 0.5 * g[1], g[2]
    p00, p01 = a * ga + b * gb, a * gb + b * gc
    p10, p11 = b * ga + c * gb, b * gb + c * gc
    d00 = -(p00 * a + p01 * b)
    d01 = -(p00 * b + p01 * c)  # equals the other off-diagonal entry
    d11 = -(p10 * b + p11 * c)
    for j in range(3):
        out[0, j] = 2 * (d00 * screen[0, j] + d01 * screen[1, j])
        out[1, j] = 2 * (d01 * screen[0, j] + d11 * screen[1, j])


@jit()
def _point_gradient(point, view, k, transform_grad, slopes, g_mean, g_depth, out):
    """dL/d(point in camera) from the screen position, the Jacobian and the depth."""
    ux, uy, free_x, free_y = slopes
    z = point[2]
    gx = gy = 0.0
    gz = g_depth
    for axis in range(2):
        f = k[axis, axis]
        u, free = (ux, free_x) if axis == 0 else (uy, free_y)
        # Jacobian entries f / z (on the axis) and -f u / z (on depth), times the view rotation.
        g_axis = g_z = 0.0
        for j in range(3):
            g_axis += transform_grad[axis, j] * view[axis, j]
            g_z += transform_grad[axis, j] * view[2, j]
        gz += f / (z * z) * (u * g_z - g_axis)
        g_u = -f / z * g_z
        g_ratio = f * g_mean[axis] + (g_u if free else 0.0)
        if axis == 0:
            gx = g_ratio / z
        else:
            gy = g_ratio / z
        gz -= g_ratio * point[axis] / (z * z)
    for j in range(3):
        out[j] += view[0, j] * gx + view[1, j] * gy + view[2, j] * gz


@jit(nogil=True)
def _backward(first, last, shape, seen, pull, out):
    """Splats first to last; see :func:`backward`, which made what is in ``out``."""
    means, quats, scales, views, intrinsics, width, height = shape
    conics, radii = seen
    g_mean2d, g_conic, g_depth = pull
    g_means, g_quats, g_scales = out
    rotation, axes, point = np.empty((3, 3)), np.empty((3, 3)), np.empty(3)
    transform, screen = np.empty((2, 3)), np.empty((2, 3))
    g_screen, g_transform = np.empty((2, 3)), np.empty((2, 3))
    g_axes, g_mean, g_quat, g_scale = np.empty((3, 3)), np.empty(3), np.empty(4), np.empty(3)
    for n in range(first, last):
        g_axes[:], g_mean[:], g_quat[:], g_scale[:] = 0.0, 0.0, 0.0, 0.0
        w, x, y, z, length = _rotation(quats[n], rotation)
        for i in range(3):
            for j in range(3):
                axes[i, j] = rotation[i, j] * scales[n, j]
        for b in range(len(views)):
            if radii[b, n, 0] == 0:
                continue
            view, k = views[b], intrinsics[b]
            _to_camera(means[n], view, point)
            slopes = _screen_axes(point, view, k, axes, width, height, transform, screen)
            _conic_gradient(conics[b, n], g_conic[b, n], screen, g_screen)
            for i in range(2):
                for j in range(3):
                    g_transform[i, j] = (
                        g_screen[i, 0] * axes[j, 0]
                        + g_screen[i, 1] * axes[j, 1]
                        + g_screen[i, 2] * axes[j, 2]
                    )
            for i in range(3):
                for j in range(3):
                    g_axes[i, j] += (
                        transform[0, i] * g_screen[0, j] + transform[1, i] * g_screen[1, j]
                    )
            _point_gradient(
                point, view, k, g_transform, slopes, g_mean2d[b, n], g_depth[b, n], g_mean
            )
        for i in range(3):
            for j in range(3):
                g_scale[j] += rotation[i, j] * g_axes[i, j]
                g_axes[i, j] *= scales[n, j]
        _rotation_gradient(w, x, y, z, length, g_axes, g_quat)
        for i in range(3):
            g_means[n, i] = g_mean[i]
            g_scales[n, i] = g_scale[i]
        for i in range(4):
            g_quats[n, i] = g_quat[i]


def backward(shape, seen, pull):
    """Gradients of means [N, 3], quats [N, 4] and scales [N, 3], summed over the views.

    ``shape`` as in :func:`forward`; ``seen``: conics and radii of it; ``pull``: the gradients of
    means2d, conics and depths.
    """
    out = tuple(np.zeros(array.shape, np.float32) for array in shape[:3])
    spread(_backward, len(shape[0]), shape, seen, pull, out)
    return out
