# SPDX-License-Identifier: Apache-2.0
"""Several shapes of splats beside one another on one floor: a scene of a sentence each.

The world is ours: z up, a shape's front at +x, so that whoever looks at the fronts has +y at their
right hand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .axes import turn_about_z
from .cloud import SplatCloud
from .framing import SIGMAS, Frame

STRAY = 0.005
"""This share of a shape's splats on each side does not count where it ends."""


class Placed(NamedTuple):
    """A shape of a scene, as it is to stand there."""

    cloud: SplatCloud
    turn_deg: float = 0.0  # about the vertical, counter-clockwise seen from above
    scale: float = 1.0  # of every length, above 0


class Box(NamedTuple):
    """Where a shape ends along the axes, world units."""

    low: Tensor  # [3] float64
    high: Tensor  # [3] float64


@torch.no_grad()
def box_of(cloud: SplatCloud) -> Box:
    """The box of the splats, each of which reaches two of its standard deviations along each axis,
    without the outermost :data:`STRAY` of them."""
    means = cloud.means.detach().double().cpu()
    w, x, y, z = torch.nn.functional.normalize(cloud.quat_wxyz.detach().double().cpu()).unbind(-1)
    rotation = torch.stack(
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
         2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
         2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], dim=-1
    ).reshape(-1, 3, 3)  # fmt: skip
    variance = (rotation * cloud.log_scale.detach().double().cpu().exp()[:, None]).square().sum(-1)
    reach = SIGMAS * variance.sqrt()
    stray = int(STRAY * len(cloud))
    low = (means - reach).kthvalue(stray + 1, dim=0).values
    high = (means + reach).kthvalue(len(cloud) - stray, dim=0).values
    return Box(low, high)


def side_by_side(shapes: Sequence[Placed], gap: float) -> SplatCloud:
    """All shapes in one cloud: in a row, the first at the left of whoever looks at the fronts, on
    one floor, ``gap`` world units of air between the boxes of neighbours (below 0 they overlap),
    the whole around the origin. Harmonics are as many as the shape with the most has.

    Raises ValueError for no shape, for a scale that is not above 0, and for numbers that are not
    finite.
    """
    if not shapes:
        raise ValueError("no shapes: a scene has at least one")
    degree = max(shape.cloud.sh_degree for shape in shapes)
    placed, left = [], 0.0
    for shape in shapes:
        if not (math.isfinite(shape.turn_deg) and 0.0 < shape.scale < math.inf):
            raise ValueError(
                f"turn={shape.turn_deg:g}, scale={shape.scale:g}: any number of degrees, and a "
                "scale above 0, are allowed"
            )
        cloud = turn_about_z(shape.cloud, shape.turn_deg)
        cloud = Frame(torch.zeros(3, dtype=torch.float64), 1.0).bring(cloud, shape.scale)
        box = box_of(cloud)
        middle = (box.low + box.high) / 2
        corner = torch.stack([middle[0], box.low[1] - left, box.low[2]])
        placed.append(Frame(corner, 1.0).bring(cloud, 1.0).with_sh_degree(degree))
        left += float(box.high[1] - box.low[1]) + gap
    whole = _joined(placed)
    box = box_of(whole)
    return Frame((box.low + box.high) / 2, 1.0).bring(whole, 1.0)


def _joined(clouds: Sequence[SplatCloud]) -> SplatCloud:
    named = [dict(cloud.items()) for cloud in clouds]
    return SplatCloud(**{name: torch.cat([one[name].cpu() for one in named]) for name in named[0]})
