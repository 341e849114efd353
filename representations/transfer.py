# SPDX-License-Identifier: Apache-2.0
"""Between linear light and the values that a screen is sent (sRGB, IEC 61966-2-1)."""

from __future__ import annotations

import torch
from torch import Tensor

from .cloud import SplatCloud
from .ops.constants import SH_DC

KNEE, SLOPE = 0.0031308, 12.92


def display_of(linear: Tensor) -> Tensor:
    """sRGB values of linear light; below 0 and above 1 the curve goes on."""
    bent = 1.055 * linear.clamp(min=KNEE) ** (1 / 2.4) - 0.055
    return torch.where(linear <= KNEE, SLOPE * linear, bent)


def linear_of(display: Tensor) -> Tensor:
    """Undo :func:`display_of`."""
    bent = ((display.clamp(min=SLOPE * KNEE) + 0.055) / 1.055) ** 2.4
    return torch.where(display <= SLOPE * KNEE, display / SLOPE, bent)


def displayed(cloud: SplatCloud) -> SplatCloud:
    """Splats whose colours are linear light, with colours as all others have them.

    The colour of a splat from all sides is converted exactly, what depends on the side by the slope
    of the curve there: a curve of harmonics is not harmonics.
    """
    linear = 0.5 + SH_DC * cloud.sh_dc.double()
    slope = torch.where(
        linear <= KNEE, SLOPE, (1.055 / 2.4) * linear.clamp(min=KNEE) ** (1 / 2.4 - 1.0)
    )
    return cloud.replace(
        sh_dc=((display_of(linear) - 0.5) / SH_DC).to(cloud.sh_dc),
        sh_rest=(cloud.sh_rest * slope[:, None]).to(cloud.sh_rest),
    )
