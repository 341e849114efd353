# SPDX-License-Identifier: Apache-2.0
"""From view angles to conditions: view-dependent prompts, interpolation and Perp-Neg.

View words and thresholds are DreamFusion's (arXiv 2209.14988), Perp-Neg is arXiv 2304.04968 with
the constants that threestudio and stable-dreamfusion publish.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from representations.cameras import azimuth_in_half_turn

from ..diffusion.base import Condition, Denoiser

SIDE, FRONT, BACK, OVERHEAD = range(4)
VIEW_WORDS = ("side", "front", "back", "overhead")


class ViewAngles(NamedTuple):
    """Where a picture is taken from; all that guidance knows of a camera."""

    azimuth_deg: Tensor  # [B]; 0 sees the front
    elevation_deg: Tensor  # [B]


@dataclass(frozen=True)
class PromptConfig:
    """How a sentence becomes conditions."""

    view_dependent: bool = True  # append ", front view" and so on
    overhead_above_deg: float = 60.0  # elevation from which the overhead prompt is used
    front_within_deg: float = 45.0  # |azimuth| below which the front prompt is used
    back_beyond_deg: float = 135.0  # |azimuth| above which the back prompt is used
    perp_neg: Literal["none", "threestudio", "stable-dreamfusion"] = "none"


class Conditions(NamedTuple):
    """What one batch of views is denoised with."""

    uncond: Condition  # [B, ...] the (possibly empty) negative prompt
    positive: Condition  # [B, ...]
    negatives: Condition | None  # [B, K, ...]
    weights: Tensor | None  # [B, K], <= 0, on the device of the views
    empty: Condition | None = None  # [B, ...] no words at all


def view_index(views: ViewAngles, config: PromptConfig) -> Tensor:
    """Index into :data:`VIEW_WORDS` of each view, [B]."""
    azimuth = azimuth_in_half_turn(views.azimuth_deg).abs()  # type: ignore[union-attr]
    index = torch.full_like(azimuth, SIDE, dtype=torch.long)
    index[azimuth < config.front_within_deg] = FRONT
    index[azimuth > config.back_beyond_deg] = BACK
    index[views.elevation_deg > config.overhead_above_deg] = OVERHEAD
    return index


def _decay(r: Tensor, a: float, b: float, c: float) -> Tensor:
    return a * torch.exp(-b * r) + c


class PerpNegBlend(NamedTuple):
    """Interpolation between view prompts, and the negatives that go with it."""

    pair: Tensor  # [B, 2] indices into VIEW_WORDS: the positive is a blend of these
    share: Tensor  # [B] share of the first of the pair
    negative: Tensor  # [B, 2] indices into VIEW_WORDS
    weight: Tensor  # [B, 2], <= 0


def perp_neg_blend(views: ViewAngles, config: PromptConfig) -> PerpNegBlend:
    """Perp-Neg's positives and negatives for each view.

    Between front and side the positive is interpolated and both are negatives; between side and
    back likewise, with the front as the second negative. The weights decay with the share.
    """
    azimuth = azimuth_in_half_turn(views.azimuth_deg).abs()  # type: ignore[union-attr]
    facing = azimuth < 90.0
    r = torch.where(facing, 1.0 - azimuth / 90.0, 2.0 - azimuth / 90.0)  # 1 at the pair's first
    first = torch.where(facing, FRONT, SIDE)
    second = torch.where(facing, SIDE, BACK)
    negative = torch.stack(
        [torch.where(facing, FRONT, SIDE), torch.where(facing, SIDE, FRONT)], dim=1
    )
    if config.perp_neg == "stable-dreamfusion":
        zero = torch.zeros_like(r)
        front = torch.where(r > 0.8, zero, -2.0 * torch.exp(-2.0 * r))
        side = torch.where(r < 0.2, zero, -2.0 * torch.exp(-10.0 * (1.0 - r)))
        side_back = torch.where(r > 0.8, zero, -torch.exp(-10.0 * r))
        weight_facing = torch.stack([front, side], dim=1)
        weight_away = torch.stack([side_back, torch.full_like(r, -2.0)], dim=1)
    else:
        f_fs = (4.0, 0.5, -2.426)
        weight_facing = -torch.stack([_decay(r, *f_fs), _decay(1.0 - r, *f_fs)], dim=1)
        weight_away = -torch.stack([_decay(r, 1.0, 0.5, -0.606), _decay(r, 1.0, 0.5, 0.967)], dim=1)
    weight = torch.where(facing[:, None], weight_facing, weight_away)
    overhead = views.elevation_deg > config.overhead_above_deg
    pair = torch.stack([first, second], dim=1)
    return PerpNegBlend(
        pair=torch.where(overhead[:, None], torch.full_like(pair, OVERHEAD), pair),
        share=r,
        negative=negative,
        weight=torch.where(overhead[:, None], torch.zeros_like(weight), weight),
    )


class PromptSet:
    """One sentence, encoded once for every view word."""

    def __init__(
        self,
        denoiser: Denoiser,
        prompt: str,
        negative_prompt: str = "",
        config: PromptConfig | None = None,
    ) -> None:
        if not prompt.strip():
            raise ValueError('the prompt is empty; give a sentence, such as "a red mug"')
        self.config = config or PromptConfig()
        texts = [prompt] * len(VIEW_WORDS)
        if self.config.view_dependent:
            texts = [f"{prompt}, {word} view" for word in VIEW_WORDS]
        elif self.config.perp_neg != "none":
            raise ValueError(
                "perp_neg needs view-dependent prompts: set prompts.view_dependent=true "
                "or prompts.perp_neg=none"
            )
        self._views = denoiser.embed(texts)  # [4, ...]
        self._uncond = denoiser.embed([negative_prompt])  # [1, ...]
        self._empty = denoiser.embed([""]) if negative_prompt else self._uncond  # [1, ...]

    def conditions(self, views: ViewAngles) -> Conditions:
        batch = len(views.azimuth_deg)
        uncond = self._uncond.expand(batch, *self._uncond.shape[1:])
        empty = self._empty.expand(batch, *self._empty.shape[1:])
        if self.config.perp_neg == "none":
            index = view_index(views, self.config).to(self._views.device)
            return Conditions(uncond, self._views[index], None, None, empty)
        blend = perp_neg_blend(views, self.config)
        device = self._views.device
        pair = self._views[blend.pair.to(device)]  # [B, 2, ...]
        share = blend.share.to(device=device, dtype=pair.dtype)
        share = share.reshape(-1, *[1] * (pair.dim() - 2))
        positive = share * pair[:, 0] + (1.0 - share) * pair[:, 1]
        return Conditions(
            uncond,
            positive,
            self._views[blend.negative.to(device)],
            blend.weight,
            empty,
        )
