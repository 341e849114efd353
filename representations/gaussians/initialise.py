# SPDX-License-Identifier: Apache-2.0
"""The first splats: a ball, the surface of a mesh, a point cloud, or a file of splats."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..cloud import SH_COUNTS, SplatCloud
from ..ops.constants import SH_DC
from ..points import file_points, neighbour_distance
from .config import GaussianConfig


def logit(probability: float) -> float:
    return math.log(probability / (1.0 - probability))


def from_points(
    points: Tensor,
    colours: Tensor,
    *,
    opacity: float,
    scale_factor: float,
    sh_degree: int,
    generator: torch.Generator,
) -> SplatCloud:
    """Round splats of random orientation at ``points`` [N, 3] with ``colours`` [N, 3] in [0, 1]."""
    n = len(points)
    log_scale = (neighbour_distance(points) * scale_factor).log()
    quat = torch.randn(n, 4, generator=generator)
    return SplatCloud(
        means=points.float(),
        log_scale=log_scale.float()[:, None].repeat(1, 3),
        quat_wxyz=torch.nn.functional.normalize(quat, dim=-1),
        opacity_logit=torch.full((n,), logit(opacity)),
        sh_dc=((colours - 0.5) / SH_DC).float(),
        sh_rest=torch.zeros(n, SH_COUNTS[sh_degree] - 1, 3),
    ).check()


def ball_points(count: int, radius: float, generator: torch.Generator) -> Tensor:
    """Points [count, 3] uniform in the volume of a ball around the origin."""
    direction = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    return direction * radius * torch.rand(count, 1, generator=generator).pow(1.0 / 3.0)


def initialise(config: GaussianConfig, seed: int = 0) -> SplatCloud:
    """The splats that ``config`` describes, on the CPU; the same for the same ``seed``."""
    init = config.init
    generator = torch.Generator().manual_seed(seed)
    if init.kind == "splats":
        raise ValueError("init.kind=splats: read the file and give its splats as ``cloud``")
    if init.kind == "points":
        points, colours = file_points(
            init.path, config.count, init.radius, init.colour, generator, init.up
        )
    else:
        points = ball_points(config.count, init.radius, generator)
        jitter = init.colour_jitter * torch.randn(config.count, 3, generator=generator)
        colours = (init.colour + jitter).clamp(0.0, 1.0)
    return from_points(
        points,
        colours,
        opacity=init.opacity,
        scale_factor=init.scale_factor,
        sh_degree=config.sh_degree,
        generator=generator,
    )
