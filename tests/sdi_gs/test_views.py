# SPDX-License-Identifier: Apache-2.0
"""The random cameras: each alone follows the stated law, together they spread."""

from __future__ import annotations

import math

import pytest
import torch

from sdi_gs.views import ViewPolicy

CALM = {"position_jitter": 0.0, "target_jitter": 0.0, "up_jitter": 0.0}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def distance_to_uniform(share: torch.Tensor) -> float:
    """Kolmogorov-Smirnov statistic of values that should be uniform in [0, 1]."""
    ordered = share.sort().values
    steps = torch.arange(len(share) + 1) / len(share)
    return float(torch.maximum(ordered - steps[:-1], steps[1:] - ordered).max())


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
