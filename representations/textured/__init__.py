# SPDX-License-Identifier: Apache-2.0
"""A surface with a texture that is trained, and with corners that may be."""

from .config import MeshInit, ShapeMoves, TexturedConfig, TextureRates
from .reading import SkinnedSurface, placeholder, read_surface
from .renderer import TexturedRenderer
from .round import ball, first_surface

__all__ = [
    "MeshInit",
    "ShapeMoves",
    "SkinnedSurface",
    "TextureRates",
    "TexturedConfig",
    "TexturedRenderer",
    "ball",
    "first_surface",
    "placeholder",
    "read_surface",
]
