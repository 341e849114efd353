# SPDX-License-Identifier: Apache-2.0
"""A surface laid flat: charts in a square picture, and the texels that they cover."""

from .texels import Texels, filled, texels_of
from .unwrap import Unwrapped, unwrap

__all__ = ["Texels", "Unwrapped", "filled", "texels_of", "unwrap"]
