# SPDX-License-Identifier: Apache-2.0
"""The convexity loss on surfaces whose normals are known."""

from __future__ import annotations

import pytest
import torch

from representations.cameras import orbit
from representations.convexity import camera_normals, convexity, released_convexity


def sphere(concave: bool = False) -> torch.Tensor:
    """Camera-frame normals of a sphere over the 8 x 8 grid of +-0.65 radii."""
    axis = (torch.arange(8, dtype=torch.float64) + 0.5) / 8 * 1.3 - 0.65  # cell centres
    y, x = torch.meshgrid(-axis, axis, indexing="ij")  # rows go down, y goes up
    z = (1 - x**2 - y**2).sqrt()
    sign = -1.0 if concave else 1.0
    return torch.stack([sign * x, sign * y, z])[None]


def test_convex_concave_and_flat() -> None:
    convex = float(convexity(sphere(), grid=None))
    # neighbours are d = 1.3 / 8 apart: each sine is d (1 - y^2) / z, about d itself
    assert convex == pytest.approx(-0.322, abs=0.006)
    assert float(convexity(sphere(concave=True), grid=None)) == pytest.approx(-convex)
    flat = torch.tensor([0.2, 0.1, 0.97], dtype=torch.float64).reshape(1, 3, 1, 1)
    assert float(convexity(flat.expand(1, 3, 8, 8), grid=None)) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("elevation", [0.0, 30.0])
def test_the_value_does_not_depend_on_where_the_camera_stands(elevation: float) -> None:
    """The same sphere from eight azimuths: world normals differ, the loss must not."""
    seen = sphere().float() * torch.tensor([1.0, -1.0, -1.0]).reshape(1, 3, 1, 1)
    values = []
    for azimuth in range(0, 360, 45):
        camera = orbit(
            torch.tensor([float(azimuth)]), torch.tensor([elevation]), torch.tensor([2.0]),
            torch.tensor([40.0]), (8, 8),
        )  # fmt: skip
        rotation = camera.world_to_cam[:, :3, :3]
        world = torch.einsum("bji,bjhw->bihw", rotation, seen)
        values.append(float(convexity(camera_normals(world, camera.world_to_cam), grid=None)))
    assert max(values) - min(values) < 1e-5
    assert values[0] < -0.3


def test_an_empty_picture_is_finite_and_has_a_gradient() -> None:
    empty = torch.zeros(2, 3, 16, 16, requires_grad=True)
    loss = convexity(empty)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert empty.grad is not None
    assert bool(torch.isfinite(empty.grad).all())


def test_the_released_form_rewards_concavity_from_some_azimuths() -> None:
    """What facts about the published code say of it: the value of one convex sphere depends on
    the azimuth, changes its sign near 225 degrees, and concave is the exact negative at elevation
    0, where only the horizontal pairs count."""
    values = {}
    for azimuth in range(0, 360, 45):
        camera = orbit(
            torch.tensor([float(azimuth)]), torch.tensor([0.0]), torch.tensor([2.0]),
            torch.tensor([40.0]), (8, 8),
        )  # fmt: skip
        rotation = camera.world_to_cam[:, :3, :3]
        both = []
        for concave in (False, True):
            seen = sphere(concave).float() * torch.tensor([1.0, -1.0, -1.0]).reshape(1, 3, 1, 1)
            world = torch.einsum("bji,bjhw->bihw", rotation, seen)
            both.append(float(released_convexity(world, torch.ones(1, 1, 8, 8))))
        values[azimuth] = both[0]
        assert both[1] == pytest.approx(-both[0], abs=1e-5)
    assert values[45] == min(values.values()) < -0.05
    assert values[225] == max(values.values()) > 0.005
    assert values[0] == pytest.approx(values[90], abs=1e-5)
    assert values[180] == pytest.approx(0.0, abs=1e-3)  # the grid is finite
