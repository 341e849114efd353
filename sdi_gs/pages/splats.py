# SPDX-License-Identifier: Apache-2.0
"""Splats as text that goes into a page, where the program of viewer.js.j2 draws them.

A splat takes 17 bytes, each quantity in an array of its own, in this order: the position in 3 x 16
bits between the corners of a box, the logarithms of the standard deviations in 3 x 8 bits, the
rotation as the three smaller parts of its quaternion in 3 x 10 bits and the number of the largest
in 2, the colour from all sides (harmonics of degree 0) in 3 x 8 bits and the opacity in 8.
"""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass

import numpy as np
import torch

from representations.cloud import SplatCloud
from representations.cutting import importance
from representations.ops.constants import (
    ALPHA_MAX,
    ALPHA_MIN,
    BLUR_PX2,
    EXTENT_SIGMAS,
    FRUSTUM_MARGIN,
    NEAR_PLANE,
    SH_DC,
)

BYTES = 17
"""Of a splat; base64 makes four thirds of it."""

THINNEST = 1e-4
"""Standard deviations below this share of the largest extent are drawn as large as that: in a
picture of a thousand pixels they are far below the half pixel that every splat is blurred by."""

RULES = {
    "near": NEAR_PLANE, "margin": FRUSTUM_MARGIN, "blur": BLUR_PX2, "most": ALPHA_MAX,
    "least": ALPHA_MIN, "sigmas": EXTENT_SIGMAS,
}  # fmt: skip
"""What every rasteriser of splats shares, see :mod:`representations.ops.constants`."""

TEN = math.sqrt(0.5)  # the largest that a part of a unit quaternion is which is not the largest


@dataclass(frozen=True)
class View:
    """Where the page's camera stands at first, and what is behind the splats. It looks at the
    origin."""

    distance: float  # world units
    elevation_deg: float
    fov_y_deg: float
    background: tuple[float, float, float]  # as displayed, in [0, 1]


@dataclass(frozen=True)
class Packed:
    """Splats for a page."""

    kept: int
    of: int  # what the file holds
    values: dict[str, object]  # plain data for the program on the page
    flat: bool  # colours that change with the side were left out


def fitting(size: int) -> int:
    """How many splats go into ``size`` bytes of a page."""
    return max(0, size) * 3 // (4 * BYTES)


def packed(cloud: SplatCloud, most: int, view: View) -> Packed:
    """The ``most`` important splats of a cloud that is not empty, ``most`` being 1 or more."""
    order = importance(cloud).argsort(descending=True, stable=True)[:most]
    kept = cloud.map(lambda tensor: tensor.detach().cpu()[order])
    low, high = kept.means.double().amin(0), kept.means.double().amax(0)
    span = (high - low).clamp(min=1e-9)
    floor = math.log(THINNEST * float(span.max()))
    log_scale = kept.log_scale.double().clamp(min=floor)
    thin, thick = float(log_scale.min()), float(log_scale.max())
    arrays = (
        _steps((kept.means.double() - low) / span, 2**16 - 1).astype("<u2"),
        _steps((log_scale - thin) / max(thick - thin, 1e-9), 255).astype(np.uint8),
        _rotations(kept.quat_wxyz).astype("<u4"),
        _steps(0.5 + SH_DC * kept.sh_dc.double(), 255).astype(np.uint8),
        _steps(kept.opacity_logit.double().sigmoid(), 255).astype(np.uint8),
    )
    data = base64.b64encode(b"".join(array.tobytes() for array in arrays)).decode("ascii")
    values = {
        "count": len(kept), "low": low.tolist(), "span": span.tolist(),
        "thin": thin, "thick": thick, "distance": view.distance,
        "elevation": view.elevation_deg, "fov": view.fov_y_deg,
        "background": list(view.background), "rules": RULES, "data": data,
    }  # fmt: skip
    return Packed(len(kept), len(cloud), values, bool((cloud.sh_rest != 0).any()))


def _steps(share: torch.Tensor, steps: int) -> np.ndarray:
    """[0, 1] as the nearest of 0 to ``steps``. Colours outside of it are cut as the rasteriser cuts
    them."""
    array: np.ndarray = (share.clamp(0.0, 1.0) * steps).round().numpy()
    return array


def _rotations(quat_wxyz: torch.Tensor) -> np.ndarray:
    """Quaternions [N, 4] of any length in 32 bits each: the number of the largest part, which is
    made positive, in the highest two, and the others in order, 10 bits each."""
    unit = torch.nn.functional.normalize(quat_wxyz.double(), dim=-1)
    largest = unit.abs().argmax(-1, keepdim=True)
    unit = torch.where(unit.gather(-1, largest) < 0, -unit, unit)
    others = (torch.arange(3) + (torch.arange(3) >= largest)).long()
    steps = _steps(unit.gather(-1, others) / TEN / 2 + 0.5, 1023).astype(np.uint32)
    first: np.ndarray = largest[:, 0].numpy().astype(np.uint32)
    joined: np.ndarray = first << 30 | steps[:, 0] << 20 | steps[:, 1] << 10 | steps[:, 2]
    return joined
