# SPDX-License-Identifier: Apache-2.0
"""What triangles need: the first one that a ray meets."""

from .cast import Caster, Hits

__all__ = ["Caster", "Hits"]
