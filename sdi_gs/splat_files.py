# SPDX-License-Identifier: Apache-2.0
"""A splat file as a shape that can be drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from representations.cameras import spherical_to_position
from representations.cloud import SplatCloud
from representations.framing import Frame, frame_of
from representations.interface import Renderer
from representations.reading import ENDINGS, Reading, SplatFileError, holds_splats, read_splats

from . import build
from .config import Config
from .errors import UserError
from .views import ViewPolicy

FOV_Y_DEG = 30.0
ELEVATION_DEG = 15.0
MARGIN = 1.5
"""A camera is this much farther away than where the ball of :class:`Frame` touches its edges."""

MESHES = (".glb", ".gltf", ".obj", ".stl", ".off", ".3mf", ".dae", ".fbx")
USD = (".usd", ".usda", ".usdc", ".usdz")


@dataclass(frozen=True)
class OpenedSplats:
    """Splats, and a camera that has nearly all of them in its picture."""

    cloud: SplatCloud
    config: Config  # the defaults, with which renderers are made
    notes: tuple[str, ...]  # what is worth saying about the file
    frame: Frame

    @property
    def splats(self) -> int:
        return len(self.cloud)

    @cached_property
    def renderer(self) -> Renderer:
        """The splats where the file has them."""
        return build.splat_renderer(self.cloud, self.config)

    @cached_property
    def shown(self) -> Renderer:
        """The same splats around the origin, in the size that cameras of ours look at."""
        return build.splat_renderer(self.frame.bring(self.cloud, radius_in_view()), self.config)

    @property
    def position(self) -> tuple[float, float, float]:
        """Of a camera in front, world units."""
        return _triple(self.frame.centre + self._away(self.frame.radius))

    @property
    def target(self) -> tuple[float, float, float]:
        """What it looks at."""
        return _triple(self.frame.centre)

    @property
    def fov_y_rad(self) -> float:
        return math.radians(FOV_Y_DEG)

    @property
    def position_shown(self) -> tuple[float, float, float]:
        """Of a camera in front of :attr:`shown`, which looks at the origin."""
        return _triple(self._away(radius_in_view()))

    def _away(self, radius: float) -> torch.Tensor:
        distance = MARGIN * radius / math.sin(math.radians(FOV_Y_DEG) / 2)
        front, elevation, away = (torch.tensor([x]) for x in (0.0, ELEVATION_DEG, distance))
        return spherical_to_position(front, elevation, away)[0].double()


def radius_in_view() -> float:
    """Of a ball that a turntable shows with a margin of a fifth, world units."""
    views = ViewPolicy()
    fov = math.radians(sum(views.fov_y_deg) / 2)
    return sum(views.distance) / 2 * math.sin(fov / 2) / 1.2


def open_splats(path: Path, how: Reading | None = None) -> OpenedSplats:
    """Read a file of splats in any format. UserError for any other file, and for one that is
    damaged, or holds rows that cannot be drawn."""
    if path.suffix.lower() in USD and path.exists():
        raise UserError(
            f"{path} is a USD file, which is written here and not read: give a file that ends in "
            f"{', '.join(ENDINGS)}"
        )
    if path.suffix.lower() in MESHES and path.exists() and not holds_splats(path):
        raise UserError(
            f"{path} is no splat file: give a file that ends in {', '.join(ENDINGS)}, or the "
            f"folder of a run; triangles ({path.suffix}) open in any mesh viewer"
        )
    try:
        found = read_splats(path, how)
    except SplatFileError as error:
        raise UserError(str(error)) from error
    return OpenedSplats(found.cloud, Config(), found.notes, frame_of(found.cloud))


def _triple(point: torch.Tensor) -> tuple[float, float, float]:
    x, y, z = point.tolist()
    return x, y, z
