# SPDX-License-Identifier: Apache-2.0
"""How far the surface of a true object is, pixel by pixel: what a depth estimator learns from."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from representations.cameras import rays
from representations.interface import Cameras
from representations.ops.meshes import Caster

from .shapes import Solid


def depth_of(solid: Solid, cameras: Cameras) -> Tensor:
    """z-depth [B, 1, H, W] float32 at the middle of each pixel, world units; 0 where nothing is."""
    caster = Caster(solid.vertices, solid.faces)
    origins, directions = rays(cameras)
    count, height, width = len(cameras), cameras.height, cameras.width
    hits = caster.first(origins.reshape(-1, 3).numpy(), directions.reshape(-1, 3).numpy())
    distance = np.where(hits.face >= 0, hits.distance, 0.0).reshape(count, height, width)
    forward = cameras.world_to_cam[:, None, None, 2, :3]
    along = (directions * forward).sum(-1)  # of a unit of distance, how much is depth
    return (torch.from_numpy(distance).float() * along)[:, None]
