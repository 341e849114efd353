# SPDX-License-Identifier: Apache-2.0
"""Splats that are left out on purpose: those outside of a place, floaters, the least important.

Importance is opacity times area: what a splat covers of a picture, seen from a side drawn at
random, when nothing stands in front of it. The area of an ellipsoid from all sides is near the mean
of the products of two of its scales.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .cloud import SplatCloud
from .framing import frame_of
from .interface import Say

NEIGHBOURS = 8
TOUCH = 3.0
"""Two splats touch where their centres are closer than this many standard deviations of both."""

FLOATER = 0.01
"""Splats that touch one another and nothing else float if their importance is less than this share
of the whole."""

LOG_LARGEST = 80.0  # of a scale whose square float64 holds with ease


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What is kept of some splats; in the order of its fields."""

    crop: tuple[float, ...] | None = None
    """A radius around the middle of the splats; x, y, z and a radius; or the two corners of a box:
    1, 4 or 6 numbers, world units."""

    floaters: bool = True  # whether floaters are kept
    max_splats: int | None = None  # the most important ones, 1 or more

    def __post_init__(self) -> None:
        if self.max_splats is not None and self.max_splats < 1:
            raise ValueError(
                f"max_splats={self.max_splats}: allowed is 1 or more; leave it out to keep all"
            )
        if self.crop is None:
            return
        fits = len(self.crop) in (1, 4, 6) and all(map(math.isfinite, self.crop))
        fits = fits and (len(self.crop) == 6 or self.crop[-1] > 0.0)
        if len(self.crop) == 6 and fits:
            fits = all(a < b for a, b in zip(self.crop[:3], self.crop[3:], strict=True))
        if not fits:
            raise ValueError(
                f"crop={','.join(f'{x:g}' for x in self.crop)}: allowed are a radius around the "
                "middle (crop=0.5), a point and a radius (crop=0,0,1,0.5), and two corners of a "
                "box, the lower one first (crop=-1,-1,0,1,1,2)"
            )

    def apply(self, cloud: SplatCloud, say: Say) -> SplatCloud:
        """The splats that are kept, in the order that they have; ``say`` is told how many are not.
        ValueError when none is left."""
        if self == WHOLE:
            return cloud
        if self.crop is not None:
            cloud = _kept(cloud, _inside(cloud, self.crop), "outside of the crop", say)
        if not self.floaters:
            cloud = _kept(cloud, ~floating(cloud), "floaters, which touch nothing large", say)
        if self.max_splats is not None and len(cloud) > self.max_splats:
            order = importance(cloud).argsort(descending=True, stable=True)
            keep = torch.zeros(len(cloud), dtype=torch.bool)
            keep[order[: self.max_splats]] = True
            cloud = _kept(cloud, keep, "the least important, by opacity times area", say)
        return cloud


def _kept(cloud: SplatCloud, keep: Tensor, what: str, say: Say) -> SplatCloud:
    gone = int((~keep).sum())
    if gone == len(cloud):
        raise ValueError(f"all {gone:,} splats are {what}: nothing is left; leave fewer out")
    if gone == 0:
        return cloud
    say(f"{gone:,} of {len(cloud):,} splats are left out: {what}")
    return cloud.map(lambda tensor: tensor[keep.to(tensor.device)])


def _inside(cloud: SplatCloud, crop: tuple[float, ...]) -> Tensor:
    """Bool [N]: the centre lies in the ball or box."""
    means = cloud.means.detach().cpu().double()
    if len(crop) == 6:
        low, high = torch.tensor(crop[:3]).double(), torch.tensor(crop[3:]).double()
        return ((means >= low) & (means <= high)).all(-1)
    centre = torch.tensor(crop[:3]).double() if len(crop) == 4 else frame_of(cloud).centre
    near: Tensor = (means - centre).norm(dim=-1) <= crop[-1]
    return near


def importance(cloud: SplatCloud) -> Tensor:
    """[N] float64, at least 0: opacity times the mean area of three sides, world units squared."""
    scale = cloud.log_scale.detach().cpu().double().clamp(max=LOG_LARGEST).exp()
    a, b, c = scale.unbind(-1)
    return cloud.opacity_logit.detach().cpu().double().sigmoid() * (a * b + a * c + b * c) / 3.0


def floating(cloud: SplatCloud) -> Tensor:
    """Bool [N]: belongs to no group of splats that touch and hold FLOATER of the importance."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    count = len(cloud)
    if count < 2:
        return torch.zeros(count, dtype=torch.bool)
    means = cloud.means.detach().cpu().double()
    size = cloud.log_scale.detach().cpu().double().amax(-1).clamp(max=LOG_LARGEST).exp()
    distance, near = cKDTree(means.numpy()).query(means.numpy(), k=min(NEIGHBOURS, count - 1) + 1)
    other = torch.from_numpy(near)
    touch = torch.from_numpy(distance) <= TOUCH * (size[:, None] + size[other])
    row = torch.arange(count)[:, None].expand_as(other)[touch].numpy()
    graph = coo_array((touch[touch].numpy(), (row, other[touch].numpy())), (count, count))
    groups, label = connected_components(graph, directed=False)
    group = torch.from_numpy(label).long()
    weight = importance(cloud)
    mass = torch.zeros(groups, dtype=torch.float64).index_add_(0, group, weight)
    return (mass < FLOATER * weight.sum())[group]


WHOLE = Cut()
