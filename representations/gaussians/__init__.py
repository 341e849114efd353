# SPDX-License-Identifier: Apache-2.0
"""3D Gaussians: parameters, where they come from, how they grow, how they are drawn."""

from ..cloud import SplatCloud
from .config import DensifyConfig, GaussianConfig, InitConfig, RatesConfig
from .initialise import initialise
from .renderer import GaussianRenderer

__all__ = [
    "DensifyConfig",
    "GaussianConfig",
    "GaussianRenderer",
    "InitConfig",
    "RatesConfig",
    "SplatCloud",
    "initialise",
]
