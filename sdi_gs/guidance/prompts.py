# SPDX-License-Identifier: Apache-2.0
"""From view angles to conditions: view-dependent prompts, interpolation and Perp-Neg.

View words and thresholds are DreamFusion's (arXiv 2209.14988), Perp-Neg is arXiv 2304.04968 with
the constants that threestudio and stable-dreamfusion publish.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from representations.cameras import azimuth_in_half_turn
from representations.sending import send

from ..diffusion.base import Condition, Denoiser, ToldOfCameras
from .viewpoints import Viewpoints

SIDE, FRONT, BACK, OVERHEAD = range(4)
VIEW_WORDS = ("side", "front", "back", "overhead")


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

    uncond: Condition  # of B samples: the (possibly empty) negative prompt
    positive: Condition  # of B samples
    negatives: Sequence[Condition] = ()  # K, of B samples each: Perp-Neg's
    weights: Tensor | None = None  # [B, K], <= 0, on the device of the views; None: K = 0
    empty: Condition | None = None  # of B samples: no words at all


class Subject(Protocol):
    """What a shape is to become: a sentence, or whatever else a denoiser can be told."""

    def conditions(self, viewpoints: Viewpoints) -> Conditions:
        """What the pictures from ``viewpoints`` are denoised with."""
        ...


def view_index(views: Viewpoints, config: PromptConfig) -> Tensor:
    """Index into :data:`VIEW_WORDS` of each view, [B]."""
    azimuth = azimuth_in_half_turn(views.azimuth_deg).abs()
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


def perp_neg_blend(views: Viewpoints, config: PromptConfig) -> PerpNegBlend:
    """Perp-Neg's positives and negatives for each view.

    Between front and side the positive is interpolated and both are negatives; between side and
    back likewise, with the front as the second negative. The weights decay with the share.
    """
    azimuth = azimuth_in_half_turn(views.azimuth_deg).abs()
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


PLACE = "{prompt}"
"""Where a negative prompt repeats the prompt, and the words of the view with it: a description of
what the rendering is, beside what it is to become (SDS-Bridge, arXiv 2406.09417)."""


class PromptSet:
    """One sentence, encoded once for every view word: a :class:`Subject`."""

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
        self._describes = PLACE in negative_prompt
        others = [negative_prompt, ""] if negative_prompt else [""]
        if self._describes:
            others[:1] = [negative_prompt.replace(PLACE, text) for text in texts]
        # In one call: sentences of other lengths have as many words for the network then.
        whole = denoiser.embed([*texts, *others])
        first, last = len(texts), len(texts) + len(others) - 1
        self._views = whole.rows(torch.arange(first))  # one row per view word
        # One row, or one per view word.
        self._uncond = whole.rows(torch.arange(first, max(last, first + 1)))
        self._empty = whole.rows(torch.tensor([last]))  # one row
        self._seen_from = denoiser.seen_from if isinstance(denoiser, ToldOfCameras) else None

    def conditions(self, viewpoints: Viewpoints) -> Conditions:
        said = self._said(viewpoints)
        if self._seen_from is None:
            return said
        (pose,) = send([viewpoints.camera_to_world], next(iter(said.uncond.parts.values())).device)
        uncond, positive, *negatives = (
            self._seen_from(each, pose) for each in (said.uncond, said.positive, *said.negatives)
        )
        empty = None if said.empty is None else self._seen_from(said.empty, pose)
        return Conditions(uncond, positive, negatives, said.weights, empty)

    def _said(self, viewpoints: Viewpoints) -> Conditions:
        """The words alone."""
        one_each = torch.zeros(len(viewpoints), dtype=torch.long)
        seen = view_index(viewpoints, self.config) if self._describes else one_each
        uncond, empty = self._uncond.rows(seen), self._empty.rows(one_each)
        if self.config.perp_neg == "none":
            positive = self._views.rows(view_index(viewpoints, self.config))
            return Conditions(uncond, positive, empty=empty)
        blend = perp_neg_blend(viewpoints, self.config)
        first, second = (self._views.rows(index) for index in blend.pair.T)
        (share,) = send([blend.share], next(iter(first.parts.values())).device)
        return Conditions(
            uncond,
            first.blend(second, share),
            [self._views.rows(index) for index in blend.negative.T],
            blend.weight,
            empty,
        )
