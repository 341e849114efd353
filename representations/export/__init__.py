# SPDX-License-Identifier: Apache-2.0
"""Files for other programs."""

from ..reading import SplatFileError, read_ply, read_splat
from .layout import Layout
from .ply import write_ply
from .splat import write_splat

__all__ = ["Layout", "SplatFileError", "read_ply", "read_splat", "write_ply", "write_splat"]
