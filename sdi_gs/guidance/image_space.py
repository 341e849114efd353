# SPDX-License-Identifier: Apache-2.0
"""Score distillation that also compares pictures.

Beside the latents, the rendering itself is pulled. A decoder knows what no latent says (fine
texture, saturated colour), at the price of decoding in each step. HiFA (arXiv 2305.18766) pulls it
towards the decoded target, denoised in one step, as threestudio runs it, or in several, as the
paper does. Guided Consistency Sampling (arXiv 2407.13584) moves it by the difference of two decoded
samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from representations.checks import require

from ..diffusion.schedule import alpha_bar_at, per_sample
from ..stopwatch import Stopwatch
from .distillation import Beside, Guided, ScoreDistillation
from .draws import Rng
from .paths import CleanPair, GuidedConsistency
from .update import UpdateInput
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


class ImageSpace(Beside):
    """``inner`` and the pixels' loss; a :class:`~.distillation.Guidance`.

    The pixels' gradient is ``weight * sqrt(a (1 - a)) * (rgb - decoded target)``, averaged like
    that of the latents; pictures are compared at the decoder's size.
    """

    def __init__(self, inner: ScoreDistillation, config: ImageSpaceConfig) -> None:
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
        guided = self.inner(rgb, viewpoints, step, rng, watch)
        denoiser = self.inner.denoiser
        with torch.no_grad():
            wanted = denoiser.decode(guided.target).clamp(0.0, 1.0).to(rgb.dtype)
            level = alpha_bar_at(denoiser.alpha_bar.to(rgb), guided.t)
            strength = per_sample((level * (1.0 - level)).sqrt())
        error = strength * (_sized(rgb, wanted) - wanted).square()
        loss = self.inner.config.reduced(error)
        scale = 0.5 * self.config.weight * self.inner.config.scale
        return guided._replace(loss=guided.loss + scale * loss)


class Remembered:
    """The rule of Guided Consistency Sampling, which keeps the clean samples of its last step."""

    def __init__(self, rule: GuidedConsistency) -> None:
        self.rule = rule
        self.pair: CleanPair | None = None

    def __call__(self, given: UpdateInput) -> Tensor:
        target, self.pair = self.rule.move(given)
        return target


class PixelConsistency(Beside):
    """``inner`` and the third term of Guided Consistency Sampling (arXiv 2407.13584), in pixels; a
    :class:`~.distillation.Guidance`.

    With D the decoder, cut to what can be displayed, the published code has the squared distance
    between the rendering and ``rgb + D(guided) - D(silent)``, in which only the first is moved: a
    gradient on the pixels of ``2 pixels (D(silent) - D(guided))``, reduced like that of the
    latents. Pictures are compared at the decoder's size.
    """

    def __init__(self, inner: ScoreDistillation, rule: Remembered) -> None:
        """``inner`` was made with ``rule`` as its update."""
        super().__init__(inner)
        self.rule = rule

    def __call__(
        self,
        rgb: Tensor,
        viewpoints: Viewpoints,
        step: int,
        rng: Rng | None = None,
        watch: Stopwatch | None = None,
    ) -> Guided:
        guided = self.inner(rgb, viewpoints, step, rng, watch)
        pair, self.rule.pair = self.rule.pair, None
        assert pair is not None  # a rule with pixels has always made one
        with torch.no_grad():
            decode = self.inner.denoiser.decode
            wanted, shown = (decode(each).clamp(0.0, 1.0).to(rgb.dtype) for each in pair)
        moving = _sized(rgb, wanted)
        error = (moving - moving.detach() - (wanted - shown)).square()
        scale = self.rule.rule.pixels * self.inner.config.scale
        return guided._replace(loss=guided.loss + scale * self.inner.config.reduced(error))


def _sized(rgb: Tensor, like: Tensor) -> Tensor:
    """``rgb`` [B, 3, H, W] at the size of ``like``."""
    if rgb.shape[-2:] == like.shape[-2:]:
        return rgb
    return F.interpolate(rgb, like.shape[-2:], mode="bilinear", antialias=True)
