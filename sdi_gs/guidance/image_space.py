# SPDX-License-Identifier: Apache-2.0
"""Score distillation that also compares pictures: HiFA (arXiv 2305.18766).

Beside the latents, the rendering itself is pulled towards the decoded target. A decoder knows what
no latent says (fine texture, saturated colour), at the price of one decoding per step. The target
is denoised in one step, as threestudio runs it, or in several, as the paper does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from representations.checks import require

from ..diffusion.schedule import alpha_bar_at, per_sample
from ..stopwatch import Stopwatch
from .distillation import Guided, ScoreDistillation
from .draws import Rng
from .viewpoints import Viewpoints


@dataclass(frozen=True, kw_only=True)
class ImageSpaceConfig:
    """SDS in latents and, with this weight, in pixels."""

    kind: Literal["image_space"] = "image_space"
    weight: float = 0.01  # of the pixels' loss
    steps: int = 1  # in which the target is denoised; see Residual

    def __post_init__(self) -> None:
        require(self.steps >= 1, "update.steps", self.steps, "1 or more", 1)
        require(self.weight >= 0.0, "update.weight", self.weight, "0 or more", 0.01)


class ImageSpace:
    """``inner`` and the pixels' loss; a :class:`~.distillation.Guidance`.

    The pixels' gradient is ``weight * sqrt(a (1 - a)) * (rgb - decoded target)``, averaged like
    that of the latents; pictures are compared at the decoder's size.
    """

    def __init__(self, inner: ScoreDistillation, config: ImageSpaceConfig) -> None:
        self.inner = inner
        self.config = config

    def __call__(
        self,
        rgb: Tensor,
        viewpoints: Viewpoints,
        step: int,
        rng: Rng | None = None,
        watch: Stopwatch | None = None,
    ) -> Guided:
        guided = self.inner(rgb, viewpoints, step, rng, watch)
        denoiser = self.inner.denoiser
        with torch.no_grad():
            wanted = denoiser.decode(guided.target).clamp(0.0, 1.0).to(rgb.dtype)
            level = alpha_bar_at(denoiser.alpha_bar.to(rgb), guided.t)
            strength = per_sample((level * (1.0 - level)).sqrt())
        shown = rgb
        if rgb.shape[-2:] != wanted.shape[-2:]:
            shown = F.interpolate(rgb, wanted.shape[-2:], mode="bilinear", antialias=True)
        error = strength * (shown - wanted).square()
        summed = self.inner.config.reduction == "sum"
        loss = error.sum() / len(rgb) if summed else error.mean()
        scale = 0.5 * self.config.weight * self.inner.config.scale
        return guided._replace(loss=guided.loss + scale * loss)

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state)
