# SPDX-License-Identifier: Apache-2.0
"""From where a picture was taken: all that guidance knows of a camera."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from representations.cameras import camera_to_world, look_at, rays, spherical_to_position
from representations.interface import Cameras, Render


@dataclass(frozen=True)
class Seen:
    """What cameras saw of a shape: where on a picture its surface is, detached but for what is
    said to have a gradient."""

    depth: Tensor  # [B, 1, H, W] z-depth, world units; 0 where there is nothing
    alpha: Tensor  # [B, 1, H, W] in [0, 1]
    cameras: Cameras  # the B that saw it, on the device of the pictures
    normal: Tensor  # [B, 3, H, W] world frame, unit length where it is opaque; 0 elsewhere
    # [B, c, H, W] with gradient, of a shape that is made of latents; None: of colours
    latents: Tensor | None = None
    # The depth with its gradient, for a loss that moves the surface; None: of no shape that moves
    live_depth: Tensor | None = None

    def __getitem__(self, index: slice) -> Seen:
        moving = (self.latents, self.live_depth)
        return Seen(
            self.depth[index],
            self.alpha[index],
            self.cameras[index],
            self.normal[index],
            *(None if each is None else each[index] for each in moving),
        )

    def points(self) -> Tensor:
        """World points [B, H, W, 3] of the surface; where there is none, the camera's own place."""
        origins, directions = rays(self.cameras)
        forward = self.cameras.world_to_cam[:, None, None, 2, :3]
        distance = self.depth[:, 0] / (directions * forward).sum(-1)
        return origins + directions * distance[..., None]


@dataclass(frozen=True)
class Viewpoints:
    """B points of view, on the CPU. The world is that of :mod:`representations.cameras`: z is up,
    the front of an object faces +x, and azimuth grows counter-clockwise seen from above."""

    azimuth_deg: Tensor  # [B]; 0 sees the front; any turn
    elevation_deg: Tensor  # [B] in [-90, 90], above the horizon
    distance: Tensor  # [B] world units from the origin
    camera_to_world: (
        Tensor  # [B, 4, 4] of the camera itself: columns right, up, backwards, position
    )
    seen: Seen | None = None  # None: nobody drew a shape from there

    def __len__(self) -> int:
        return len(self.azimuth_deg)

    def __getitem__(self, index: slice) -> Viewpoints:
        return Viewpoints(
            self.azimuth_deg[index],
            self.elevation_deg[index],
            self.distance[index],
            self.camera_to_world[index],
            None if self.seen is None else self.seen[index],
        )

    def seeing(self, render: Render, cameras: Cameras) -> Viewpoints:
        """The same, with what ``cameras`` saw from there, on the device of its pictures."""
        depth, alpha, normal = (x.detach() for x in (render.depth, render.alpha, render.normal))
        seen = Seen(depth, alpha, cameras, normal, render.latents, render.depth)
        return replace(self, seen=seen)

    @staticmethod
    def orbit(
        azimuth_deg: Tensor, elevation_deg: Tensor, distance: Tensor | None = None
    ) -> Viewpoints:
        """Cameras on a sphere that look at the origin, z up. Every argument is [B]; the distance
        is 1 world unit where none is given."""
        if distance is None:
            distance = torch.ones_like(azimuth_deg)
        position = spherical_to_position(azimuth_deg, elevation_deg, distance)
        pose = camera_to_world(look_at(position, torch.zeros_like(position)))
        return Viewpoints(azimuth_deg, elevation_deg, distance, pose)

    @staticmethod
    def front(count: int, together: int = 1) -> Viewpoints:
        """``count`` times the front, at the height of the horizon; for a model that sees
        ``together`` views of a shape, whole groups around it that begin in front. ValueError where
        ``count`` makes no whole groups."""
        if count % together:
            raise ValueError(
                f"{count} pictures: this model sees {together} views of a shape together, so give "
                f"a multiple of {together}"
            )
        turn = torch.arange(count) % together * (360.0 / together)
        return Viewpoints.orbit(turn, torch.zeros(count))

    @staticmethod
    def of(cameras: Cameras) -> Viewpoints:
        """Where ``cameras`` stand, as directions from the origin."""
        pose = camera_to_world(cameras.world_to_cam.cpu())
        x, y, z = pose[:, :3, 3].unbind(-1)
        distance = pose[:, :3, 3].norm(dim=-1)
        return Viewpoints(
            torch.atan2(y, x).rad2deg(),
            torch.atan2(z, torch.hypot(x, y)).rad2deg(),
            distance,
            pose,
        )
