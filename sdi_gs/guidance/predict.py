# SPDX-License-Identifier: Apache-2.0
"""Guided noise prediction: classifier-free guidance and Perp-Neg, written once."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ..diffusion.base import Condition, Denoiser
from .prompts import Conditions


def classifier_free(uncond: Tensor, cond: Tensor, cfg_scale: float) -> Tensor:
    """``uncond + s * (cond - uncond)`` (eq. 3): 0 is unconditional, 1 conditional.

    Scales published for ``cond + s * (cond - uncond)`` are ``s + 1`` here.
    """
    return uncond + cfg_scale * (cond - uncond)


def perpendicular(e: Tensor, p: Tensor) -> Tensor:
    """The part of ``e`` that is orthogonal to ``p``, per sample over all other dimensions."""
    dims = tuple(range(1, e.dim()))
    along = (e * p).sum(dim=dims, keepdim=True)
    squared = (p * p).sum(dim=dims, keepdim=True).clamp_min(1e-6)
    return e - along / squared * p


class Separate(NamedTuple):
    """Predictions that a rule combines by itself, [B, c, h, w] each."""

    empty: Tensor  # under no words at all
    negative: Tensor  # under the negative prompt; ``empty`` itself where it was not asked for
    toward: Tensor  # from empty to the prompt, Perp-Neg included: guidance of scale 1


class GuidedPredictor:
    """epsilon with guidance for one batch of views; counts the network samples it spends."""

    def __init__(self, denoiser: Denoiser, conditions: Conditions) -> None:
        self._denoiser = denoiser
        self._conditions = conditions
        self.evaluations = 0

    def __call__(self, x_t: Tensor, t: Tensor, cfg_scale: float) -> Tensor:
        """Args: x_t [B, c, h, w]; t [B] int64, here or on the CPU; cfg_scale in the convention of
        :func:`classifier_free`, any sign. Returns epsilon [B, c, h, w]."""
        c = self._conditions
        if self._has_perp_neg:
            return self._perp_neg(x_t, t, cfg_scale)
        if cfg_scale == 0.0:
            return self._predict(x_t, t, c.uncond)
        if cfg_scale == 1.0:
            return self._predict(x_t, t, c.positive)
        uncond, cond = self._predict(
            torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([c.uncond, c.positive])
        ).chunk(2)
        return classifier_free(uncond, cond, cfg_scale)

    @property
    def _has_perp_neg(self) -> bool:
        return any(len(views) for views in self._opposed)

    @cached_property
    def _opposed(self) -> list[Tensor]:
        """For each negative the views [n] in which it counts: one of weight zero is not asked."""
        c = self._conditions
        if c.negatives is None or c.weights is None:
            return []
        return [column.nonzero().flatten() for column in c.weights.cpu().T]

    @property
    def alpha_bar(self) -> Tensor:
        """The schedule [T] of the denoiser."""
        return self._denoiser.alpha_bar

    def separate(self, x_t: Tensor, t: Tensor, with_negative: bool) -> Separate:
        """The prediction without words, that under the negative prompt and the way from the first
        to the prompt, in one batched call. The negative prompt is asked only if it counts."""
        c = self._conditions
        if c.empty is None:
            raise ValueError("these conditions were made without the empty prompt")
        whole = [c.empty, c.positive, *([c.uncond] if with_negative else [])]
        (empty, positive, *rest), opposed = self._ask(x_t, t, whole)
        negative = rest[0] if with_negative else empty
        return Separate(empty, negative, self._with_perp_neg(positive - empty, empty, opposed))

    def _ask(
        self, x_t: Tensor, t: Tensor, whole: list[Condition]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Predictions of the whole batch under each of ``whole``, and of the views that count
        under each negative of Perp-Neg, in one call of the network.

        Rows are ordered condition by condition, so that a sample always meets its own negatives,
        whatever the batch size.
        """
        everyone = torch.arange(len(x_t))
        views = [*[everyone] * len(whole), *self._opposed]
        rows = torch.cat(views)
        negatives = self._conditions.negatives
        words = list(whole)
        for k, some in enumerate(self._opposed):
            assert negatives is not None
            words.append(negatives[some.to(negatives.device), k])
        asked = x_t[rows.to(x_t.device)], t[rows.to(t.device)], torch.cat(words)
        out = self._predict(*asked).split([len(v) for v in views])
        return list(out[: len(whole)]), list(out[len(whole) :])

    def _with_perp_neg(self, positive: Tensor, empty: Tensor, opposed: list[Tensor]) -> Tensor:
        """``e_pos + sum_i w_i * perp(e_i, e_pos)``; ``positive`` is relative to ``empty``,
        ``opposed`` are the predictions themselves, of the views in which they count."""
        weights, direction = self._conditions.weights, positive
        for k, (some, negative) in enumerate(zip(self._opposed, opposed, strict=True)):
            assert weights is not None
            views = some.to(positive.device)
            weight = weights[some.to(weights.device), k].to(positive).reshape(-1, 1, 1, 1)
            away = weight * perpendicular(negative - empty[views], positive[views])
            direction = direction.index_add(0, views, away)
        return direction

    def _predict(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        self.evaluations += len(x_t)
        return self._denoiser.predict_noise(x_t, t.to(x_t.device), condition)

    def _perp_neg(self, x_t: Tensor, t: Tensor, cfg_scale: float) -> Tensor:
        """``uncond + s * (e_pos + sum_i w_i * perp(e_i, e_pos))``."""
        c = self._conditions
        if cfg_scale == 0.0:
            return self._predict(x_t, t, c.uncond)
        (uncond, positive), opposed = self._ask(x_t, t, [c.uncond, c.positive])
        return uncond + cfg_scale * self._with_perp_neg(positive - uncond, uncond, opposed)
