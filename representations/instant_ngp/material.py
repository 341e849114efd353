# SPDX-License-Identifier: Apache-2.0
"""A point light on a matte surface: what keeps a painter of flat pictures from hiding shape.

Some views show the albedo alone, some the shading alone on white clay, some both (DreamFusion,
arXiv 2209.14988, sec. 3.2). Pictures for people always show the albedo.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..sending import send
from .config import MaterialConfig

ALBEDO, TEXTURELESS, DIFFUSE = range(3)


class Light(NamedTuple):
    """How each of B views is lit."""

    kind: Tensor  # [B] int64: ALBEDO, TEXTURELESS or DIFFUSE
    lamp: Tensor  # [B, 3] position, world units
    shaded: bool  # whether any view needs normals for its colour


def no_light(views: int, device: torch.device) -> Light:
    return Light(torch.zeros(views, dtype=torch.long, device=device),
                 torch.zeros(views, 3, device=device), False)  # fmt: skip


class Lots(NamedTuple):
    """What is random about the light of B views."""

    kind: Tensor  # [B] as in Light
    aside: Tensor  # [B, 3] normal deviates
    share: Tensor  # [B, 1] in [0, 1)


def draw_lots(config: MaterialConfig, generators: Sequence[torch.Generator]) -> Lots:
    """On the CPU, one generator for each view."""
    choice = torch.cat([torch.rand(1, generator=rng) for rng in generators])
    aside = torch.stack([torch.randn(3, generator=rng) for rng in generators])
    share = torch.stack([torch.rand(1, generator=rng) for rng in generators])
    textureless = choice < config.albedo_share + config.textureless_share
    kind = torch.where(textureless, TEXTURELESS, DIFFUSE)
    kind = torch.where(choice < config.albedo_share, ALBEDO, kind)
    return Lots(kind, aside, share)


def place_lamps(config: MaterialConfig, positions: Tensor, lots: Lots, shaded: bool) -> Light:
    """Light for cameras at ``positions`` [B, 3], where ``lots`` are too.

    The lamp stands near the camera: the camera's position plus a normal deviate, pushed to a
    distance drawn from ``lamp_distance``.
    """
    towards = positions + config.lamp_spread * lots.aside.to(positions)
    low, high = config.lamp_distance
    distance = low + (high - low) * lots.share.to(positions)
    lamp = torch.nn.functional.normalize(towards, dim=-1) * distance
    return Light(lots.kind, lamp, shaded)


def draw_light(
    config: MaterialConfig, step: int, positions: Tensor, generators: Sequence[torch.Generator]
) -> Light:
    """Light for cameras at ``positions`` [B, 3] in training step ``step``, one generator each."""
    if step < config.albedo_steps:
        return no_light(len(positions), positions.device)
    lots = draw_lots(config, generators)
    there = Lots(*send(lots, positions.device))
    return place_lamps(config, positions, there, bool((lots.kind != ALBEDO).any()))


def colour(
    config: MaterialConfig, light: Light, view: Tensor, position: Tensor, albedo: Tensor,
    normal: Tensor,
) -> Tensor:  # fmt: skip
    """Colours [M, 3] in [0, 1] of points that belong to views ``view`` [M]."""
    towards = torch.nn.functional.normalize(light.lamp[view] - position, dim=-1)
    facing = (normal * towards).sum(-1, keepdim=True).clamp(min=0.0)
    shade = config.ambient + config.diffuse * facing  # [M, 1]
    kind = light.kind[view][:, None]
    surface = torch.where(kind == TEXTURELESS, torch.ones_like(albedo), albedo)
    return torch.where(kind == ALBEDO, albedo, (surface * shade).clamp(max=1.0))
