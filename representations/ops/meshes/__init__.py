# SPDX-License-Identifier: Apache-2.0
"""What triangles need: the first one that a ray meets, and where their outline is."""

from .cast import Caster, Hits
from .contours import Edges, blended, crossings, edges_of

__all__ = ["Caster", "Edges", "Hits", "blended", "crossings", "edges_of"]
