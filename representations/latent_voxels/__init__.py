# SPDX-License-Identifier: Apache-2.0
"""A grid of voxels whose pictures are latents: no encoder stands between it and the prior."""

from .config import LatentVoxelConfig, VoxelRates
from .renderer import LatentVoxelRenderer

__all__ = ["LatentVoxelConfig", "LatentVoxelRenderer", "VoxelRates"]
