# SPDX-License-Identifier: Apache-2.0
"""A surface that stays as it is, and a texture on it that is trained."""

from .config import MeshInit, TexturedConfig, TextureRates
from .reading import SkinnedSurface, placeholder, read_surface
from .renderer import TexturedRenderer

__all__ = [
    "MeshInit",
    "SkinnedSurface",
    "TextureRates",
    "TexturedConfig",
    "TexturedRenderer",
    "placeholder",
    "read_surface",
]
