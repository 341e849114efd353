# SPDX-License-Identifier: Apache-2.0
"""Gradients of neighbouring views that agree on the surface that both see: Geometry-aware Score
Distillation (GSD, arXiv 2406.16695).

Every view has its own gradient of score distillation. Where two views see the same piece of surface
their gradients should say the same; where they do not, the surface may lie elsewhere. The gradient
of a view is carried into its neighbour through the depth that was drawn, what either does not see
is left out, and what is left of the difference is a loss of the depth: the gradients themselves are
constants in it, so that pictures and latents get what they got before.

Only the publication's abstract and what its reviewers wrote could be read. That gradients are
warped by the geometry and that a loss of their dissimilarity moves the geometry is theirs; the
cosine, the test of visibility and the numbers are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from representations.checks import require
from representations.interface import Cameras

from ..stopwatch import Stopwatch
from .distillation import Beside, Guided, ScoreDistillation
from .draws import Rng
from .viewpoints import Seen, Viewpoints

NEAR = 1e-3
"""World units: what is nearer to a camera is not before it."""


@dataclass(frozen=True, kw_only=True)
class GradientConsistencyConfig:
    """Score distillation, and with this weight that the gradients of neighbouring views agree."""

    kind: Literal["gradient_consistency"] = "gradient_consistency"
    weight: float = 0.1  # of the mean dissimilarity, 0 to 2; 0: the rule alone
    # Share of its depth within which a point of one view is the point that the other sees there.
    tolerance: float = 0.02
    opaque: float = 0.5  # where this share of a pixel of the latents is covered there is surface

    def __post_init__(self) -> None:
        require(self.weight >= 0.0, "update.weight", self.weight, "0 or more", 0.1)
        require(self.tolerance > 0.0, "update.tolerance", self.tolerance, "above 0", 0.02)
        require(0.0 < self.opaque < 1.0, "update.opaque", self.opaque, "between 0 and 1", 0.5)


class Surface(NamedTuple):
    """What cameras see, in pixels of the latents."""

    depth: Tensor  # [B, 1, h, w] z-depth, world units, mean over what is covered
    cover: Tensor  # [B, 1, h, w] share of a pixel that is covered

    @staticmethod
    def of(seen: Seen, size: tuple[int, int]) -> Surface:
        """Of pictures of any size, for latents of ``size`` (h, w). The depth has a gradient where
        that of ``seen`` has."""
        depth = seen.depth if seen.live_depth is None else seen.live_depth
        cover = F.adaptive_avg_pool2d(seen.alpha, size)
        total = F.adaptive_avg_pool2d(seen.alpha * depth, size)
        return Surface(total / cover.clamp(min=1e-6), cover)

    def of_views(self, index: slice) -> Surface:
        return Surface(self.depth[index], self.cover[index])


def pixel_points(depth: Tensor, cameras: Cameras) -> Tensor:
    """World points [B, h, w, 3] at z-depth ``depth`` [B, 1, h, w] behind the middles of pixels that
    divide the pictures of ``cameras`` into h x w."""
    height, width = depth.shape[-2:]
    u = (torch.arange(width, device=depth.device) + 0.5) * (cameras.width / width)
    v = (torch.arange(height, device=depth.device) + 0.5) * (cameras.height / height)
    lens, z = cameras.intrinsics.to(depth)[:, None, None], depth[:, 0]
    x = (u.to(depth) - lens[..., 0, 2]) / lens[..., 0, 0] * z
    y = (v.to(depth)[:, None] - lens[..., 1, 2]) / lens[..., 1, 1] * z
    pose = cameras.world_to_cam.to(depth)
    away = torch.stack([x, y, z], -1) - pose[:, None, None, :3, 3]
    return away @ pose[:, None, :3, :3]  # rows times R are R transposed times columns


def project(points: Tensor, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Where ``points`` [B, h, w, 3] lie on pictures: [B, h, w, 2] in -1 to 1 from the left upper
    to the right lower corner, and their z-depths [B, 1, h, w]."""
    pose, lens = cameras.world_to_cam.to(points), cameras.intrinsics.to(points)[:, None, None]
    there = points @ pose[:, None, :3, :3].transpose(-1, -2) + pose[:, None, None, :3, 3]
    x, y, z = there.unbind(-1)
    before = z.clamp(min=NEAR)
    u = lens[..., 0, 0] * x / before + lens[..., 0, 2]
    v = lens[..., 1, 1] * y / before + lens[..., 1, 2]
    place = torch.stack([2.0 * u / cameras.width - 1.0, 2.0 * v / cameras.height - 1.0], -1)
    return place, z[:, None]


def look_up(pictures: Tensor, place: Tensor, mode: str = "bilinear") -> Tensor:
    """``pictures`` [B, c, h, w] at ``place`` [B, h', w', 2] in -1 to 1: [B, c, h', w']. Beyond
    their edge they go on as at it."""
    return F.grid_sample(pictures, place, mode, padding_mode="border", align_corners=False)


class Warp(NamedTuple):
    """Which place of another view a pixel of the latents is."""

    place: Tensor  # [B, h, w, 2] in -1 to 1; moves with the depth
    both: Tensor  # [B, 1, h, w] 1 where both views see the point, else 0

    @staticmethod
    def between(
        here: Surface, cameras: Cameras, there: Surface, others: Cameras, tolerance: float,
        opaque: float,
    ) -> Warp:  # fmt: skip
        """From the pixels of ``here`` into the pictures ``there``. A point that the other view sees
        something else before, or behind, by more than ``tolerance`` of its depth is hidden."""
        place, z = project(pixel_points(here.depth, cameras), others)
        found = place.detach()
        behind = look_up(there.depth.detach(), found, "nearest")
        cover = look_up(there.cover, found, "nearest")
        z = z.detach()
        inside = (found.abs() <= 1.0).all(-1)[:, None] & (z > NEAR)
        same = (z - behind).abs() <= tolerance * z
        solid = (here.cover >= opaque) & (cover >= opaque)
        return Warp(place, (inside & same & solid).to(z))


def dissimilarity(ours: Tensor, theirs: Tensor) -> Tensor:
    """1 - cosine between vectors over channels: [B, c, h, w] twice -> [B, 1, h, w] in [0, 2]; 1
    where one of them is nothing."""
    lengths = (ours.square().sum(1), theirs.square().sum(1))
    product = (lengths[0] * lengths[1]).clamp(min=1e-24).sqrt()
    return (1.0 - (ours * theirs).sum(1) / product)[:, None]


def neighbours(count: int, together: int) -> list[tuple[slice, slice]]:
    """Pairs of runs of views that are neighbours, view by view: each view with the next, each group
    of ``together`` with the next group. A last one that has none is left out."""
    starts = range(0, count - 2 * together + 1, 2 * together)
    return [(slice(k, k + together), slice(k + together, k + 2 * together)) for k in starts]


def disagreement(
    gradient: Tensor, seen: Seen, config: GradientConsistencyConfig, together: int = 1
) -> Tensor:
    """Mean :func:`dissimilarity` of gradients [B, c, h, w] of neighbours over all pixels of the
    latents whose point both see, in both directions: a scalar in [0, 2], 0 where they see nothing
    in common. Its gradient is that of the depth."""
    fixed = gradient.detach()
    surface = Surface.of(seen, (fixed.shape[-2], fixed.shape[-1]))
    surface = Surface(surface.depth.to(fixed), surface.cover.to(fixed))
    total, number = fixed.new_zeros(()), fixed.new_zeros(())
    for first, second in neighbours(len(fixed), together):
        for here, there in ((first, second), (second, first)):
            warp = Warp.between(
                surface.of_views(here), seen.cameras[here],
                surface.of_views(there), seen.cameras[there], config.tolerance, config.opaque,
            )  # fmt: skip
            apart = dissimilarity(fixed[here], look_up(fixed[there], warp.place))
            total = total + (warp.both * apart).sum()
            number = number + warp.both.sum()
    return total / number.clamp(min=1.0)


class GradientConsistency(Beside):
    """``inner`` and the loss of :func:`disagreement`; a :class:`~.distillation.Guidance`.

    Lengths of the gradients do not count, so neither does the weight of their times.
    """

    def __init__(self, inner: ScoreDistillation, config: GradientConsistencyConfig) -> None:
        super().__init__(inner)
        self.config = config

    def __call__(
        self,
        rgb: Tensor,
        viewpoints: Viewpoints,
        step: int,
        rng: Rng | None = None,
        watch: Stopwatch | None = None,
    ) -> Guided:
        """ValueError for pictures of no shape."""
        guided = self.inner(rgb, viewpoints, step, rng, watch)
        if self.config.weight == 0.0:
            return guided
        if viewpoints.seen is None:
            raise ValueError(
                "update.kind=gradient_consistency compares views of a shape, and these pictures "
                "show none; write update.kind=residual"
            )
        together = self.inner.denoiser.views_together
        gradient = guided.latents - guided.target
        apart = disagreement(gradient, viewpoints.seen, self.config, together)
        scale = self.config.weight * self.inner.config.scale
        return guided._replace(loss=guided.loss + scale * apart.to(guided.loss))
