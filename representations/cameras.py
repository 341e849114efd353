# SPDX-License-Identifier: Apache-2.0
"""Camera conventions, stated here and nowhere else.

World: right-handed, +z up; the front of an object faces +x. Azimuth 0 looks at the front, and
grows counter-clockwise seen from above (90 degrees: the camera stands on +y). Elevation is the
angle above the horizontal plane. Camera: OpenCV, +x right, +y down, +z into the scene.
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor

from .interface import Cameras

Angle = TypeVar("Angle", Tensor, float)


def rotation_matrices(quat_wxyz: Tensor) -> Tensor:
    """Rotation matrices [..., 3, 3] of quaternions [..., 4] of any non-zero length."""
    w, x, y, z = torch.nn.functional.normalize(quat_wxyz, dim=-1).unbind(-1)
    entries = torch.stack(
        [
            1 - 2 * (y * y + z * z),
            2 * (x * y - w * z),
            2 * (x * z + w * y),
            2 * (x * y + w * z),
            1 - 2 * (x * x + z * z),
            2 * (y * z - w * x),
            2 * (x * z - w * y),
            2 * (y * z + w * x),
            1 - 2 * (x * x + y * y),
        ],
        dim=-1,
    )
    return entries.reshape(*quat_wxyz.shape[:-1], 3, 3)


def spherical_to_position(azimuth_deg: Tensor, elevation_deg: Tensor, distance: Tensor) -> Tensor:
    """Points on a sphere around the origin: angles [B] in degrees, distance [B] -> [B, 3]."""
    azimuth, elevation = torch.deg2rad(azimuth_deg), torch.deg2rad(elevation_deg)
    return distance[:, None] * torch.stack(
        [
            elevation.cos() * azimuth.cos(),
            elevation.cos() * azimuth.sin(),
            elevation.sin(),
        ],
        dim=-1,
    )


def look_at(position: Tensor, target: Tensor, up: Tensor | None = None) -> Tensor:
    """World-to-camera matrices [B, 4, 4] for cameras at ``position`` [B, 3] facing ``target``.

    ``up`` [B, 3] defaults to +z; a view along ``up`` falls back to +x as the upper edge's
    opposite, so that straight-down cameras are defined.
    """
    if up is None:
        up = position.new_tensor([0.0, 0.0, 1.0]).expand_as(position)
    forward = torch.nn.functional.normalize(target - position, dim=-1)
    right = torch.linalg.cross(forward, up, dim=-1)
    degenerate = right.norm(dim=-1, keepdim=True) < 1e-6
    fallback = torch.linalg.cross(forward, forward.new_tensor([-1.0, 0.0, 0.0]).expand_as(forward))
    right = torch.nn.functional.normalize(torch.where(degenerate, fallback, right), dim=-1)
    down = torch.linalg.cross(forward, right, dim=-1)
    rotation = torch.stack([right, down, forward], dim=1)  # [B, 3, 3], rows are camera axes
    return posed(rotation.transpose(1, 2), position)


def posed(cam_to_world_rotation: Tensor, position: Tensor) -> Tensor:
    """World-to-camera matrices [B, 4, 4] of cameras whose axes in the world are the columns of
    ``cam_to_world_rotation`` [B, 3, 3] and that stand at ``position`` [B, 3]."""
    rotation = cam_to_world_rotation.transpose(1, 2)
    world_to_cam = torch.zeros(len(position), 4, 4, dtype=position.dtype, device=position.device)
    world_to_cam[:, :3, :3] = rotation
    world_to_cam[:, :3, 3] = -(rotation @ position[..., None])[..., 0]
    world_to_cam[:, 3, 3] = 1.0
    return world_to_cam


def camera_to_world(world_to_cam: Tensor) -> Tensor:
    """Poses [B, 4, 4] as networks were taught them, in the frame of OpenGL: the columns are right,
    up, backwards and the position. The inverse of ``world_to_cam`` [B, 4, 4], with the second and
    third axis of the camera turned around."""
    axes = world_to_cam[:, :3, :3].transpose(1, 2) * world_to_cam.new_tensor([1.0, -1.0, -1.0])
    pose = torch.zeros_like(world_to_cam)
    pose[:, :3, :3] = axes
    centre = world_to_cam[:, :3, :3].transpose(1, 2) @ world_to_cam[:, :3, 3, None]
    pose[:, :3, 3] = -centre[..., 0]
    pose[:, 3, 3] = 1.0
    return pose


def pinhole(fov_y_rad: Tensor, width: int, height: int) -> Tensor:
    """Intrinsics [B, 3, 3] of square pixels with the principal point in the middle."""
    focal_px = 0.5 * height / torch.tan(0.5 * fov_y_rad)
    intrinsics = torch.zeros(len(fov_y_rad), 3, 3, dtype=fov_y_rad.dtype, device=fov_y_rad.device)
    intrinsics[:, 0, 0] = focal_px
    intrinsics[:, 1, 1] = focal_px
    intrinsics[:, 0, 2] = 0.5 * width
    intrinsics[:, 1, 2] = 0.5 * height
    intrinsics[:, 2, 2] = 1.0
    return intrinsics


def orbit(
    azimuth_deg: Tensor,
    elevation_deg: Tensor,
    distance: Tensor,
    fov_y_deg: Tensor,
    size: tuple[int, int],
) -> Cameras:
    """Cameras on a sphere that look at the origin. Every argument is [B]; size is (H, W)."""
    position = spherical_to_position(azimuth_deg, elevation_deg, distance)
    height, width = size
    return Cameras(
        world_to_cam=look_at(position, torch.zeros_like(position)),
        intrinsics=pinhole(torch.deg2rad(fov_y_deg), width, height),
        width=width,
        height=height,
    )


def turntable(
    frames: int, elevation_deg: float, distance: float, fov_y_deg: float, size: tuple[int, int]
) -> Cameras:
    """``frames`` cameras at equal steps around the object; the last is not the first again."""
    if frames < 1:
        raise ValueError(f"a turntable needs at least 1 frame, got frames={frames}")
    azimuth = torch.arange(frames, dtype=torch.float32) * (360.0 / frames)
    ones = torch.ones(frames)
    return orbit(azimuth, elevation_deg * ones, distance * ones, fov_y_deg * ones, size)


def rays(cameras: Cameras) -> tuple[Tensor, Tensor]:
    """World-space ray origins and unit directions through pixel centres, each [B, H, W, 3]."""
    device, dtype = cameras.world_to_cam.device, cameras.world_to_cam.dtype
    y, x = torch.meshgrid(
        torch.arange(cameras.height, device=device, dtype=dtype) + 0.5,
        torch.arange(cameras.width, device=device, dtype=dtype) + 0.5,
        indexing="ij",
    )
    k = cameras.intrinsics
    x_cam = (x[None] - k[:, 0, 2, None, None]) / k[:, 0, 0, None, None]
    y_cam = (y[None] - k[:, 1, 2, None, None]) / k[:, 1, 1, None, None]
    directions_cam = torch.stack([x_cam, y_cam, torch.ones_like(x_cam)], dim=-1)
    rotation = cameras.world_to_cam[:, :3, :3]
    directions = torch.einsum("bhwc,bcd->bhwd", directions_cam, rotation)
    directions = directions / directions.norm(dim=-1, keepdim=True)
    origins = cameras.positions[:, None, None, :].expand_as(directions)
    return origins, directions


def azimuth_in_half_turn(azimuth_deg: Angle) -> Angle:
    """The same angle in [-180, 180)."""
    return (azimuth_deg + 180.0) % 360.0 - 180.0


def fov_from_focal(focal_px: float, size_px: int) -> float:
    """Field of view in degrees of an axis of ``size_px`` pixels."""
    return math.degrees(2.0 * math.atan(0.5 * size_px / focal_px))
