# SPDX-License-Identifier: Apache-2.0
"""The conventions of cameras.py, each stated as something that must be seen."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from representations.cameras import (
    azimuth_in_half_turn,
    fov_from_focal,
    look_at,
    orbit,
    pinhole,
    rays,
    spherical_to_position,
    turntable,
)

from .helpers import cameras_around, seeded


def one(value: float) -> torch.Tensor:
    return torch.tensor([value])


def project(cameras, points):
    """Pixels [B, N, 2] and depth [B, N] of world points [N, 3], by the matrices alone."""
    homogeneous = torch.cat([points, torch.ones(len(points), 1)], dim=-1)
    cam = torch.einsum("bij,nj->bni", cameras.world_to_cam, homogeneous)[..., :3]
    pixel = torch.einsum("bij,bnj->bni", cameras.intrinsics, cam)
    return pixel[..., :2] / pixel[..., 2:], cam[..., 2]


def test_the_front_camera_sees_right_as_plus_y_and_up_as_plus_z():
    cameras = orbit(one(0.0), one(0.0), one(3.0), one(45.0), (64, 64))
    torch.testing.assert_close(cameras.positions, torch.tensor([[3.0, 0.0, 0.0]]))
    points = torch.tensor([[0.0, 0, 0], [0, 0.5, 0], [0, 0, 0.5]])
    pixel, depth = project(cameras, points)
    torch.testing.assert_close(pixel[0, 0], torch.tensor([32.0, 32.0]))
    assert pixel[0, 1, 0] > 33  # +y is to the right of somebody who stands on +x
    assert pixel[0, 2, 1] < 31  # +z is up, rows grow downwards
    torch.testing.assert_close(depth[0], torch.full((3,), 3.0))


def test_azimuth_grows_counter_clockwise_seen_from_above():
    position = spherical_to_position(one(90.0), one(0.0), one(2.0))
    torch.testing.assert_close(position, torch.tensor([[0.0, 2.0, 0.0]]), atol=1e-6, rtol=0)
    above = spherical_to_position(one(0.0), one(90.0), one(2.0))
    torch.testing.assert_close(above, torch.tensor([[0.0, 0.0, 2.0]]), atol=1e-6, rtol=0)


@given(azimuth=st.floats(-180, 179.9), elevation=st.floats(-89, 89), distance=st.floats(0.5, 20))
@settings(max_examples=50, deadline=None)
def test_orbit_round_trip(azimuth, elevation, distance):
    cameras = orbit(one(azimuth), one(elevation), one(distance), one(40.0), (8, 8))
    x, y, z = cameras.positions[0].double().tolist()
    assert math.dist((0, 0, 0), (x, y, z)) == pytest.approx(distance, rel=1e-4)
    assert math.degrees(math.asin(z / distance)) == pytest.approx(elevation, abs=0.05)
    turn = math.degrees(math.atan2(y, x)) - azimuth
    assert float(azimuth_in_half_turn(turn)) * math.cos(math.radians(elevation)) == pytest.approx(
        0.0, abs=0.01
    )
    rotation = cameras.world_to_cam[0, :3, :3]
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3), atol=1e-5, rtol=0)
    assert float(torch.det(rotation)) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("elevation", [90.0, -90.0])
def test_straight_down_and_straight_up_are_defined(elevation):
    cameras = orbit(one(30.0), one(elevation), one(2.0), one(40.0), (16, 16))
    assert torch.isfinite(cameras.world_to_cam).all()
    pixel, depth = project(cameras, torch.zeros(1, 3))
    torch.testing.assert_close(pixel[0, 0], torch.tensor([8.0, 8.0]), atol=1e-4, rtol=0)
    assert float(depth) == pytest.approx(2.0, abs=1e-5)


def test_rays_pass_through_the_points_they_show():
    cameras = cameras_around(3, (12, 20))
    origin, direction = rays(cameras)
    assert origin.shape == direction.shape == (3, 12, 20, 3)
    torch.testing.assert_close(direction.norm(dim=-1), torch.ones(3, 12, 20))
    for b in range(3):
        t = 1.0 + 3.0 * torch.rand(12, 20, 1, generator=seeded(b))
        points = (origin[b] + t * direction[b]).reshape(-1, 3)
        pixel, _ = project(cameras[b : b + 1], points)
        y, x = torch.meshgrid(torch.arange(12) + 0.5, torch.arange(20) + 0.5, indexing="ij")
        expected = torch.stack([x, y], dim=-1).reshape(-1, 2)
        torch.testing.assert_close(pixel[0], expected, atol=1e-3, rtol=0)


def test_look_at_puts_the_target_on_the_axis():
    position = torch.randn(6, 3, generator=seeded(0)) * 3
    target = torch.randn(6, 3, generator=seeded(1))
    matrix = look_at(position, target)
    cam = (matrix[:, :3, :3] @ target[..., None])[..., 0] + matrix[:, :3, 3]
    expected = torch.zeros(6, 3)
    expected[:, 2] = (target - position).norm(dim=-1)
    torch.testing.assert_close(cam, expected, atol=1e-5, rtol=1e-5)


def test_field_of_view_spans_the_height():
    intrinsics = pinhole(torch.tensor([math.radians(50.0)]), 80, 60)
    assert fov_from_focal(float(intrinsics[0, 1, 1]), 60) == pytest.approx(50.0, abs=1e-4)
    assert float(intrinsics[0, 0, 2]) == 40.0
    assert float(intrinsics[0, 1, 2]) == 30.0


def test_turntable_does_not_repeat_its_first_frame():
    cameras = turntable(4, 0.0, 2.0, 40.0, (8, 8))
    expected = torch.tensor([[2.0, 0, 0], [0, 2, 0], [-2, 0, 0], [0, -2, 0]])
    torch.testing.assert_close(cameras.positions, expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="at least 1 frame"):
        turntable(0, 0.0, 2.0, 40.0, (8, 8))
