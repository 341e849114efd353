# SPDX-License-Identifier: Apache-2.0
"""Where the next pictures are taken from: a random camera policy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from representations.cameras import (
    azimuth_in_half_turn,
    camera_to_world,
    look_at,
    orbit,
    pinhole,
    spherical_to_position,
    turntable,
)
from representations.checks import require
from representations.interface import Cameras

from .guidance.viewpoints import Viewpoints

Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class ViewPolicy:
    """Random cameras on a shell around the origin. The defaults are those of the SDI paper."""

    azimuth_deg: Range = (-180.0, 180.0)  # uniform
    elevation_deg: Range = (-10.0, 45.0)  # in degrees above the horizon
    elevation_sine_share: float = 0.5  # this share is uniform in sin(elevation), the rest in angle
    distance: Range = (1.5, 2.0)  # uniform, world units from the origin
    fov_y_deg: Range = (40.0, 70.0)  # uniform
    position_jitter: float = 0.1  # uniform in +-this, per axis, world units
    target_jitter: float = 0.2  # standard deviation of the point looked at, world units
    up_jitter: float = 0.02  # standard deviation added to the up vector
    stratified: bool = True  # one azimuth per equal slice of the range when a batch has several
    # Views in pairs that see opposite sides (MV-SDI, arXiv 2606.29964). azimuth: half a turn on, at
    # the same elevation; axis: through the middle, at the elevation's negative. An odd view of a
    # step stands alone.
    antithetic: Literal["none", "azimuth", "axis"] = "none"
    # Views in pairs of neighbours: the second stands up to so many degrees from the first, around
    # and up or down, as far away and with the same field of view. 0: no pairs.
    neighbour_deg: float = 0.0
    # Where the views of a group stand that the model sees together: azimuths from that of the
    # first, which is drawn. None: at equal steps.
    group_azimuth_deg: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("azimuth_deg", "elevation_deg", "distance", "fov_y_deg"):
            low, high = getattr(self, name)
            order = "the smaller number first"
            require(low <= high, f"views.{name}", [low, high], order, [high, low])
        low, high = self.elevation_deg
        within = -90.0 <= low <= high <= 90.0
        require(within, "views.elevation_deg", [low, high], "-90 to 90", [-10.0, 45.0])
        near = self.distance[0]
        require(near > 0.0, "views.distance", list(self.distance), "above 0", [1.5, 2.0])
        low, high = self.fov_y_deg
        within = 0.0 < low <= high < 180.0
        require(within, "views.fov_y_deg", [low, high], "above 0, below 180", [40.0, 70.0])
        share = self.elevation_sine_share
        require(0.0 <= share <= 1.0, "views.elevation_sine_share", share, "0 to 1", 0.5)
        if self.antithetic != "none":
            low, high = self.azimuth_deg
            whole = high - low >= 360.0
            turn = [-180.0, 180.0]
            require(whole, "views.azimuth_deg", [low, high], "a whole turn for pairs", turn)
        if self.antithetic == "axis":
            low, high = self.elevation_deg
            both = low < 0.0 < high
            sides = "below 0 to above 0 for views.antithetic=axis"
            require(both, "views.elevation_deg", [low, high], sides, [-10.0, 45.0])
        near = self.neighbour_deg
        require(0.0 <= near <= 90.0, "views.neighbour_deg", near, "0 to 90", 10.0)
        alone = near == 0.0 or self.antithetic == "none"
        require(alone, "views.neighbour_deg", near, "0 with views.antithetic", 0.0)
        given = self.group_azimuth_deg
        finite = given is None or all(math.isfinite(each) for each in given)
        require(finite, "views.group_azimuth_deg", given, "degrees", [0, 90, 180, 270])
        for name in ("position_jitter", "target_jitter", "up_jitter"):
            jitter = getattr(self, name)
            require(jitter >= 0.0, f"views.{name}", jitter, "0 or more", 0.0)

    def angles(self, count: int, rng: Generator) -> tuple[Tensor, Tensor]:
        """Azimuth and elevation [count], degrees, of random directions; each one alone is
        distributed like any other. Pairs of opposite ones follow one another."""
        if self.neighbour_deg > 0.0:
            return self._beside(count, rng)
        if self.antithetic == "none":
            return self._directions(count, self.elevation_deg, rng)
        span = self.elevation_deg
        if self.antithetic == "axis":
            most = min(-span[0], span[1])
            span = (-most, most)
        azimuth, elevation = self._directions((count + 1) // 2, span, rng)
        sign = 1.0 if self.antithetic == "azimuth" else -1.0
        opposite = azimuth_in_half_turn(azimuth + 180.0)
        both = torch.stack([azimuth, opposite], 1), torch.stack([elevation, sign * elevation], 1)
        return both[0].flatten()[:count], both[1].flatten()[:count]

    def _beside(self, count: int, rng: Generator) -> tuple[Tensor, Tensor]:
        """Azimuth and elevation [count] in pairs of neighbours. The second keeps to the range of
        elevations, not to that of azimuths."""
        azimuth, elevation = self._directions((count + 1) // 2, self.elevation_deg, rng)
        near = (-self.neighbour_deg, self.neighbour_deg)
        around, up = (_between(near, torch.rand(len(azimuth), generator=rng)) for _ in range(2))
        beside = azimuth_in_half_turn(azimuth + around)
        above = (elevation + up).clamp(*self.elevation_deg)
        both = torch.stack([azimuth, beside], 1), torch.stack([elevation, above], 1)
        return both[0].flatten()[:count], both[1].flatten()[:count]

    def _lens(self, count: int, rng: Generator) -> tuple[Tensor, Tensor]:
        """Distance and vertical field of view [count]; of neighbours, those of the first."""
        distance = _between(self.distance, torch.rand(count, generator=rng))
        fov_y_deg = _between(self.fov_y_deg, torch.rand(count, generator=rng))
        if self.neighbour_deg == 0.0:
            return distance, fov_y_deg
        first = torch.arange(count) // 2 * 2
        return distance[first], fov_y_deg[first]

    def _directions(self, count: int, span: Range, rng: Generator) -> tuple[Tensor, Tensor]:
        """Azimuth and elevation [count] of directions that know nothing of each other, but for
        their slices; elevation within ``span``."""
        low, high = self.azimuth_deg
        share = torch.rand(count, generator=rng)
        if self.stratified:
            # A shuffled slice for each view keeps every single view uniform over the whole range.
            share = (torch.randperm(count, generator=rng) + share) / count
        in_angle = _between(span, torch.rand(count, generator=rng))
        sines: Range = (
            math.sin(math.radians(span[0])),
            math.sin(math.radians(span[1])),
        )
        in_sine = _between(sines, torch.rand(count, generator=rng)).asin().rad2deg()
        by_sine = torch.rand(count, generator=rng) < self.elevation_sine_share
        return low + (high - low) * share, torch.where(by_sine, in_sine, in_angle)

    def check_groups(self, together: int) -> None:
        """ValueError where ``group_azimuth_deg`` has not one azimuth for each of the ``together``
        views that a model sees side by side."""
        given = self.group_azimuth_deg
        if given is None or len(given) == together > 1:
            return
        steps = [round(360.0 / together * k, 1) for k in range(together)]
        typed = f"[{', '.join(f'{step:g}' for step in steps)}]" if together > 1 else "null"
        raise ValueError(
            f"views.group_azimuth_deg has {len(given)} azimuths, and this model sees {together} "
            f"view{'s' * (together > 1)} of a shape at once: write views.group_azimuth_deg={typed}"
        )

    def sample(
        self, count: int, resolution: int, rng: Generator, together: int = 1
    ) -> tuple[Cameras, Viewpoints]:
        """Cameras, and where they stand; all on the CPU.

        ``together`` cameras in a row make a group around the shape, at equal steps of azimuth, or
        those of ``group_azimuth_deg``, and otherwise alike. ``azimuth_deg``, ``elevation_deg`` and
        ``distance`` of the viewpoints are those before jitter, which is small against a view's
        words; their poses are the cameras'.
        """
        if together > 1:
            return self._groups(count, resolution, rng, together)
        azimuth_deg, elevation_deg = self.angles(count, rng)
        distance, fov_y_deg = self._lens(count, rng)
        position = spherical_to_position(azimuth_deg, elevation_deg, distance)
        position = position + self.position_jitter * (2 * torch.rand(count, 3, generator=rng) - 1)
        target = self.target_jitter * torch.randn(count, 3, generator=rng)
        up = torch.tensor([0.0, 0.0, 1.0]) + self.up_jitter * torch.randn(count, 3, generator=rng)
        cameras = Cameras(
            world_to_cam=look_at(position, target, up),
            intrinsics=pinhole(torch.deg2rad(fov_y_deg), resolution, resolution),
            width=resolution,
            height=resolution,
        )
        pose = camera_to_world(cameras.world_to_cam)
        return cameras, Viewpoints(azimuth_deg, elevation_deg, distance, pose)

    def _groups(
        self, count: int, resolution: int, rng: Generator, together: int
    ) -> tuple[Cameras, Viewpoints]:
        """Whole groups of cameras on one circle each, without jitter: a model that sees several
        views together was taught them so."""
        if count % together:
            raise ValueError(f"{count} views do not make groups of {together}")
        groups = count // together
        first, elevation_deg = self.angles(groups, rng)
        distance, fov_y_deg = self._lens(groups, rng)
        self.check_groups(together)
        turn = torch.arange(together) * (360.0 / together)
        if self.group_azimuth_deg is not None:
            turn = torch.tensor(self.group_azimuth_deg)
        azimuth_deg = azimuth_in_half_turn((first[:, None] + turn).flatten())
        elevation_deg, distance, fov_y_deg = (
            each.repeat_interleave(together) for each in (elevation_deg, distance, fov_y_deg)
        )
        cameras = orbit(azimuth_deg, elevation_deg, distance, fov_y_deg, (resolution, resolution))
        pose = camera_to_world(cameras.world_to_cam)
        return cameras, Viewpoints(azimuth_deg, elevation_deg, distance, pose)

    def showcase(self, frames: int, size: int, elevation_deg: float) -> Cameras:
        """A turntable at the middle of the policy's distances and fields of view."""
        distance, fov_y_deg = sum(self.distance) / 2, sum(self.fov_y_deg) / 2
        return turntable(frames, elevation_deg, distance, fov_y_deg, (size, size))


def _between(bounds: Range, share: Tensor) -> Tensor:
    return bounds[0] + (bounds[1] - bounds[0]) * share
