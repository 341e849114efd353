# SPDX-License-Identifier: Apache-2.0
"""The random cameras: each alone follows the stated law, together they spread."""

from __future__ import annotations

import math

import pytest
import torch

from representations.cameras import azimuth_in_half_turn, spherical_to_position
from sdi_gs.guidance import Viewpoints
from sdi_gs.views import ViewPolicy

CALM = {"position_jitter": 0.0, "target_jitter": 0.0, "up_jitter": 0.0}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def distance_to_uniform(share: torch.Tensor) -> float:
    """Kolmogorov-Smirnov statistic of values that should be uniform in [0, 1]."""
    ordered = share.sort().values
    steps = torch.arange(len(share) + 1) / len(share)
    return float(torch.maximum(ordered - steps[:-1], steps[1:] - ordered).max())


def distance_to_normal(values: torch.Tensor) -> float:
    """The same of values that should be standard normal."""
    return distance_to_uniform(torch.special.ndtr(values.double()))


@pytest.mark.parametrize("stratified", [True, False])
def test_every_single_view_is_uniform_in_azimuth(stratified: bool) -> None:
    """Stratification must not tie a place in the batch to a slice: the marginals stay uniform."""
    policy = ViewPolicy(stratified=stratified)
    generator = rng()
    drawn = torch.stack([policy.angles(4, generator)[0] for _ in range(3000)])
    for place in range(4):
        share = (drawn[:, place] + 180.0) / 360.0
        assert distance_to_uniform(share) < 1.95 / math.sqrt(3000)  # p = 0.001


def test_a_stratified_batch_has_one_view_per_slice() -> None:
    policy, generator = ViewPolicy(azimuth_deg=(-90.0, 90.0)), rng()
    for _ in range(50):
        slices = (policy.angles(6, generator)[0] + 90.0) // 30.0
        assert sorted(slices.tolist()) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_elevation_is_the_stated_blend_of_angle_and_sine(share: float) -> None:
    policy = ViewPolicy(elevation_deg=(-10.0, 80.0), elevation_sine_share=share, stratified=False)
    drawn = policy.angles(20_000, rng())[1]
    assert float(drawn.min()) >= -10.0
    assert float(drawn.max()) <= 80.0
    low, high = math.sin(math.radians(-10)), math.sin(math.radians(80))
    by_sine = (drawn.deg2rad().sin() - low) / (high - low)
    by_angle = (drawn + 10.0) / 90.0
    # Distribution function of the blend, evaluated at the samples, must be uniform.
    assert distance_to_uniform(share * by_sine + (1 - share) * by_angle) < 1.95 / math.sqrt(20_000)


def test_cameras_stand_where_the_angles_say() -> None:
    policy = ViewPolicy(distance=(2.0, 3.0), **CALM)
    cameras, views = policy.sample(64, 32, rng())
    x, y, z = cameras.positions.unbind(-1)
    distance = cameras.positions.norm(dim=-1)
    assert float(distance.min()) >= 2.0 - 1e-4
    assert float(distance.max()) <= 3.0 + 1e-4
    turn = (torch.atan2(y, x).rad2deg() - views.azimuth_deg + 180.0) % 360.0 - 180.0
    assert float(turn.abs().max()) < 1e-2
    assert torch.allclose((z / distance).asin().rad2deg(), views.elevation_deg, atol=1e-2)
    # Without jitter the origin is in the middle of every picture.
    origin = cameras.world_to_cam[:, :3, 3]
    pixel = cameras.intrinsics @ origin[..., None]
    assert torch.allclose(pixel[:, :2, 0] / pixel[:, 2:, 0], torch.full((64, 2), 16.0), atol=1e-3)


def test_field_of_view_and_jitter_stay_in_their_bounds() -> None:
    policy = ViewPolicy(fov_y_deg=(40.0, 70.0), distance=(2.0, 2.0), position_jitter=0.1)
    cameras, views = policy.sample(256, 100, rng())
    fov = 2 * torch.atan(50.0 / cameras.intrinsics[:, 1, 1]).rad2deg()
    assert 40.0 <= float(fov.min()) < 42.0
    assert 68.0 < float(fov.max()) <= 70.0
    moved = (cameras.positions.norm(dim=-1) - 2.0).abs()
    assert 0.02 < float(moved.max()) <= 0.1 * math.sqrt(3) + 1e-4
    assert len(views.azimuth_deg) == 256


def test_the_shell_is_filled_evenly() -> None:
    policy = ViewPolicy(distance=(1.0, 3.0), fov_y_deg=(30.0, 60.0), **CALM)
    cameras, views = policy.sample(4000, 100, rng(3))
    fov = 2 * torch.atan(50.0 / cameras.intrinsics[:, 1, 1]).rad2deg()
    for share in ((views.distance - 1.0) / 2.0, (fov - 30.0) / 30.0):
        assert distance_to_uniform(share) < 1.95 / math.sqrt(4000)  # p = 0.001


def test_a_camera_is_moved_evenly_along_each_axis() -> None:
    policy = ViewPolicy(**{**CALM, "position_jitter": 0.1})
    cameras, views = policy.sample(4000, 16, rng())
    ideal = spherical_to_position(views.azimuth_deg, views.elevation_deg, views.distance)
    moved = (cameras.positions - ideal) / 0.2 + 0.5
    for axis in moved.T:
        assert distance_to_uniform(axis) < 1.95 / math.sqrt(4000)


@pytest.mark.parametrize("deviation", [0.2, 0.05])
def test_the_point_looked_at_is_normally_distributed(deviation: float) -> None:
    """From far away, where the origin stands beside the line of sight is the target across it."""
    policy = ViewPolicy(distance=(1000.0, 1000.0), **{**CALM, "target_jitter": deviation})
    cameras, _ = policy.sample(20_000, 16, rng(1))
    beside = cameras.world_to_cam[:, :2, 3]  # the origin as the camera sees it
    for axis in beside.T:
        assert distance_to_normal(axis / deviation) < 1.95 / math.sqrt(20_000)


@pytest.mark.parametrize("deviation", [0.02, 0.1])
def test_the_up_vector_is_normally_distributed(deviation: float) -> None:
    """A camera on the horizon is rolled by the part of the up vector that is across its sight:
    tan(roll) = d / (1 + d')."""
    policy = ViewPolicy(elevation_deg=(0.0, 0.0), **{**CALM, "up_jitter": deviation})
    cameras, _ = policy.sample(20_000, 16, rng(2))
    right = cameras.world_to_cam[:, 0, :3]
    rolled = torch.tan(right[:, 2].double().asin())
    assert float(rolled.std()) == pytest.approx(deviation, rel=3 * deviation**2 + 0.02)
    assert float(rolled.mean().abs()) < 4.5 * deviation / math.sqrt(20_000)


def test_jitter_does_not_tie_one_axis_to_another() -> None:
    cameras, views = ViewPolicy(distance=(100.0, 100.0)).sample(5000, 16, rng(4))
    ideal = spherical_to_position(views.azimuth_deg, views.elevation_deg, views.distance)
    found = torch.cat([cameras.positions - ideal, cameras.world_to_cam[:, :2, 3]], dim=1)
    related = torch.corrcoef(found.T) - torch.eye(5)
    assert float(related.abs().max()) < 4.5 / math.sqrt(5000)


def test_viewpoints_say_where_the_cameras_would_stand_and_where_they_look_from() -> None:
    """Azimuth, elevation and distance without jitter; the pose is that of the camera itself."""
    cameras, views = ViewPolicy(**{**CALM, "target_jitter": 0.5}).sample(16, 32, rng(7))
    again = Viewpoints.of(cameras)
    torch.testing.assert_close(again.camera_to_world, views.camera_to_world)
    torch.testing.assert_close(again.distance, views.distance)
    torch.testing.assert_close(again.elevation_deg, views.elevation_deg, rtol=0, atol=1e-3)
    turned = azimuth_in_half_turn(again.azimuth_deg - views.azimuth_deg)
    assert float(turned.abs().max()) < 1e-3
    orbit = Viewpoints.orbit(views.azimuth_deg, views.elevation_deg, views.distance)
    assert float((orbit.camera_to_world - views.camera_to_world).abs().max()) > 0.1


def test_a_pose_has_the_axes_of_opengl() -> None:
    """From +x at the origin: right is +y, up is +z, backwards is +x."""
    pose = Viewpoints.orbit(torch.tensor([0.0]), torch.tensor([0.0]), torch.tensor([2.0]))
    expected = [[0, 0, 1, 2], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]
    torch.testing.assert_close(pose.camera_to_world[0], torch.tensor(expected).float())
    assert float(Viewpoints.orbit(torch.tensor([30.0]), torch.tensor([9.0])).distance) == 1.0


@pytest.mark.parametrize("together", [1, 2, 4])
def test_a_group_stands_around_the_shape(together: int) -> None:
    policy = ViewPolicy(azimuth_deg=(-90.0, 90.0), distance=(1.0, 3.0))
    cameras, views = policy.sample(8, 16, rng(1), together)
    assert len(views) == len(cameras) == 8
    if together == 1:
        return
    for first in range(0, 8, together):
        group = views[first : first + together]
        turn = (group.azimuth_deg - group.azimuth_deg[0]) % 360.0
        expected = [360.0 / together * k for k in range(together)]
        assert turn.tolist() == pytest.approx(expected, abs=1e-3)
        assert float(group.azimuth_deg.abs().max()) <= 180.0
        for alike in (group.elevation_deg, group.distance,
                      cameras.intrinsics[first : first + together, 1, 1]):  # fmt: skip
            assert len(set(alike.tolist())) == 1
        assert -90.0 <= float(group.azimuth_deg[0]) <= 90.0
    assert len(set(views.distance.tolist())) == 8 // together  # groups differ
    # Without jitter: every camera stands where its viewpoint says and looks at the origin.
    orbit = Viewpoints.orbit(views.azimuth_deg, views.elevation_deg, views.distance)
    torch.testing.assert_close(views.camera_to_world, orbit.camera_to_world, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=rf"7 views do not make groups of {together}"):
        policy.sample(7, 16, rng(1), together)


def test_a_group_stands_where_its_model_was_taught() -> None:
    """The six views of MV-Adapter, from a first one near the front; the random numbers are those
    of equal steps."""
    taught = (0.0, 45.0, 90.0, 180.0, 270.0, 315.0)
    near = {"azimuth_deg": (-10.0, 10.0), "elevation_deg": (0.0, 0.0)}
    policy = ViewPolicy(**near, group_azimuth_deg=taught)  # type: ignore[arg-type]
    _, views = policy.sample(12, 16, rng(1), 6)
    _, others = ViewPolicy(**near).sample(12, 16, rng(1), 6)  # type: ignore[arg-type]
    for first in (0, 6):
        turn = (views.azimuth_deg[first : first + 6] - views.azimuth_deg[first]) % 360.0
        assert turn.tolist() == pytest.approx(taught, abs=1e-4)
        assert views.azimuth_deg[first] == others.azimuth_deg[first]
    assert torch.equal(views.distance, others.distance)
    assert float(views.elevation_deg.abs().max()) == 0.0
    with pytest.raises(ValueError, match=r"has 6 azimuths, and this model sees 4 views.*write "
                       r"views\.group_azimuth_deg=\[0, 90, 180, 270\]$"):  # fmt: skip
        policy.sample(8, 16, rng(1), 4)
    with pytest.raises(ValueError, match=r"sees 1 view of .* write .*=null$"):
        policy.check_groups(1)
    with pytest.raises(ValueError, match="group_azimuth_deg"):
        ViewPolicy(group_azimuth_deg=(0.0, float("nan")))


def test_a_turntable_is_in_the_middle_of_the_policy() -> None:
    policy = ViewPolicy(distance=(1.0, 3.0), fov_y_deg=(40.0, 60.0))
    cameras = policy.showcase(4, 64, 15.0)
    assert (cameras.width, cameras.height, len(cameras)) == (64, 64, 4)
    seen = Viewpoints.of(cameras)
    torch.testing.assert_close(seen.distance, torch.full((4,), 2.0))
    torch.testing.assert_close(seen.elevation_deg, torch.full((4,), 15.0))
    assert float(cameras.intrinsics[0, 1, 1]) == pytest.approx(32 / math.tan(math.radians(25)))


def test_one_seed_one_sequence() -> None:
    policy = ViewPolicy()
    first, second = policy.sample(3, 16, rng(5)), policy.sample(3, 16, rng(5))
    other = policy.sample(3, 16, rng(6))
    assert torch.equal(first[0].world_to_cam, second[0].world_to_cam)
    assert not torch.equal(first[0].world_to_cam, other[0].world_to_cam)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"azimuth_deg": (10.0, -10.0)}, "azimuth_deg"),
        ({"elevation_deg": (0.0, 91.0)}, "elevation_deg"),
        ({"distance": (0.0, 1.0)}, "distance"),
        ({"fov_y_deg": (30.0, 180.0)}, "fov_y_deg"),
        ({"elevation_sine_share": 1.5}, "elevation_sine_share"),
        ({"up_jitter": -0.1}, "up_jitter"),
    ],
)
def test_impossible_policies_are_refused(given: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ViewPolicy(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({"elevation_deg": (-90.0, 90.0)}, True),
        ({"elevation_deg": (-90.5, 0.0)}, False),
        ({"elevation_deg": (0.0, 90.5)}, False),
        ({"fov_y_deg": (0.5, 179.5)}, True),
        ({"fov_y_deg": (0.0, 40.0)}, False),
        ({"fov_y_deg": (40.0, 180.0)}, False),
        ({"distance": (0.5, 0.5)}, True),
        ({"distance": (0.0, 1.0)}, False),
    ],
)
def test_the_ends_of_a_range(settings: dict[str, tuple[float, float]], allowed: bool) -> None:
    if allowed:
        ViewPolicy(**settings)  # type: ignore[arg-type]
    else:
        with pytest.raises(ValueError, match=next(iter(settings))):
            ViewPolicy(**settings)  # type: ignore[arg-type]
