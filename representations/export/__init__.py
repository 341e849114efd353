# SPDX-License-Identifier: Apache-2.0
"""Files for other programs."""

from .layout import Layout
from .ply import SplatFileError, read_ply, write_ply
from .splat import read_splat, write_splat

__all__ = ["Layout", "SplatFileError", "read_ply", "read_splat", "write_ply", "write_splat"]
