# SPDX-License-Identifier: Apache-2.0
"""A splat file as a shape that can be drawn."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch

from representations.cameras import spherical_to_position
from representations.interface import Renderer

from . import build
from .config import Config
from .errors import UserError

ENDINGS = (".ply", ".splat")
FOV_Y_DEG = 30.0
ELEVATION_DEG = 15.0


class OpenedSplats(NamedTuple):
    """Splats, and a camera that has nearly all of them in its picture."""

    renderer: Renderer
    config: Config  # the defaults, with which it was made
    splats: int
    position: tuple[float, float, float]  # of the camera, world units
    target: tuple[float, float, float]  # what it looks at
    fov_y_rad: float


def open_splats(path: Path) -> OpenedSplats:
    """Read a ``.ply`` or ``.splat`` file. UserError for any other file, and for one that is
    truncated, compressed or not finite."""
    from representations.export import SplatFileError, read_ply, read_splat
    from representations.gaussians import GaussianConfig, GaussianRenderer

    if path.suffix.lower() not in ENDINGS:
        raise UserError(
            f"{path} is no splat file: give a file that ends in .ply or .splat, or the folder of a "
            "run; triangles (.glb, .obj) open in any mesh viewer"
        )
    try:
        cloud = (read_ply if path.suffix.lower() == ".ply" else read_splat)(path)
    except SplatFileError as error:
        raise UserError(f"{error}; a splat file or the folder of a run is needed") from error
    config = Config()
    with build.below("view"):
        settings = GaussianConfig(count=1, max_count=len(cloud), sh_degree=cloud.sh_degree)
        renderer = GaussianRenderer(settings, build.device(config.device), cloud)
    # Scanned scenes have stray splats far away: the outermost 5 % on each side do not count.
    rows = cloud.means.sort(dim=0).values
    edge = int(0.05 * (len(cloud) - 1))
    middle = (rows[edge] + rows[len(cloud) - 1 - edge]) / 2
    distance = (cloud.means - middle).norm(dim=-1).sort().values
    reach = max(1e-3, float(distance[len(cloud) - 1 - edge]))
    away = 1.5 * reach / math.sin(math.radians(FOV_Y_DEG) / 2)
    front, elevation, away_ = (torch.tensor([x]) for x in (0.0, ELEVATION_DEG, away))
    eye = middle + spherical_to_position(front, elevation, away_)[0]
    return OpenedSplats(
        renderer, config, len(cloud), _triple(eye), _triple(middle), math.radians(FOV_Y_DEG)
    )


def _triple(point: torch.Tensor) -> tuple[float, float, float]:
    x, y, z = point.tolist()
    return x, y, z
