# SPDX-License-Identifier: Apache-2.0
"""A radiance field on a multiresolution hash grid (Mueller et al. 2022)."""

from .config import (
    DensityConfig,
    FieldRates,
    GridConfig,
    InstantNGPConfig,
    MarchConfig,
    MaterialConfig,
)
from .renderer import InstantNGPRenderer

__all__ = [
    "DensityConfig",
    "FieldRates",
    "GridConfig",
    "InstantNGPConfig",
    "InstantNGPRenderer",
    "MarchConfig",
    "MaterialConfig",
]
