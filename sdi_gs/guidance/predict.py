# SPDX-License-Identifier: Apache-2.0
"""Guided noise prediction: classifier-free guidance and Perp-Neg, written once."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from representations.sending import send

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
    """epsilon with guidance for one batch of views; counts the network samples it spends.

    Every method takes ``x_t`` [B, c, h, w] and ``t`` [B] int64 on the device of ``x_t``.
    """

    def __init__(self, denoiser: Denoiser, conditions: Conditions) -> None:
        self._denoiser = denoiser
        self._conditions = conditions
        self.evaluations = 0  # network samples so far
        self._brought: list[tuple[Tensor, Tensor]] | None = None

    @property
    def alpha_bar(self) -> Tensor:
        """The schedule [T] of the denoiser."""
        return self._denoiser.alpha_bar

    @property
    def views_together(self) -> int:
        """Rows that the network must see side by side."""
        return self._denoiser.views_together

    def __call__(self, x_t: Tensor, t: Tensor, cfg_scale: float) -> Tensor:
        """epsilon [B, c, h, w] under guidance; ``cfg_scale`` in the convention of
        :func:`classifier_free`, any sign. At scale 0 the negative prompt alone is asked."""
        c = self._conditions
        if cfg_scale == 0.0:
            return self._predict(x_t, t, c.uncond)
        if self._has_perp_neg:
            (uncond, positive), opposed = self._ask(x_t, t, [c.uncond, c.positive])
            return uncond + cfg_scale * self._with_perp_neg(positive - uncond, uncond, opposed)
        if cfg_scale == 1.0:
            return self._predict(x_t, t, c.positive)
        (uncond, cond), _ = self._ask(x_t, t, [c.uncond, c.positive])
        return classifier_free(uncond, cond, cfg_scale)

    def without_words(self, x_t: Tensor, t: Tensor) -> Tensor:
        """epsilon [B, c, h, w] under no words at all, the negative prompt's included."""
        return self._predict(x_t, t, self._empty)

    def separate(self, x_t: Tensor, t: Tensor, with_negative: bool) -> Separate:
        """The prediction without words, that under the negative prompt and the way from the first
        to the prompt, in one batched call. The negative prompt is asked only if it counts."""
        c, empty_ = self._conditions, self._empty
        whole = [empty_, c.positive, *([c.uncond] if with_negative else [])]
        (empty, positive, *rest), opposed = self._ask(x_t, t, whole)
        negative = rest[0] if with_negative else empty
        return Separate(empty, negative, self._with_perp_neg(positive - empty, empty, opposed))

    @property
    def _empty(self) -> Condition:
        if self._conditions.empty is None:
            raise ValueError("these conditions were made without the empty prompt")
        return self._conditions.empty

    @property
    def _has_perp_neg(self) -> bool:
        return any(len(views) for views in self._views_per_negative)

    @cached_property
    def _views_per_negative(self) -> list[Tensor]:
        """For each negative the views [n] that are asked under it: those in which it counts, and
        the views that the network must see beside them."""
        c = self._conditions
        if c.weights is None:
            return []
        together = self._denoiser.views_together
        counts = (c.weights.cpu() != 0).reshape(-1, together, c.weights.shape[1]).any(1)
        return [column.repeat_interleave(together).nonzero().flatten() for column in counts.T]

    def _opposed(self, like: Tensor) -> list[tuple[Tensor, Tensor]]:
        """For each negative the views [n] of :attr:`_views_per_negative` and their weights
        [n, 1, 1, 1], where ``like`` is; brought there once."""
        if self._brought is None:
            columns, weights = self._views_per_negative, self._conditions.weights
            chosen = [
                weights[index.to(weights.device), k]
                for k, index in enumerate(columns)
                if weights is not None
            ]
            there = send([*columns, *chosen], like.device)
            self._brought = [
                (views, weight.to(like).reshape(-1, 1, 1, 1))
                for views, weight in zip(there[: len(columns)], there[len(columns) :], strict=True)
            ]
        return self._brought

    def _ask(
        self, x_t: Tensor, t: Tensor, full_batch: list[Condition]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Predictions of the whole batch under each of ``full_batch``, and of the views that count
        under each negative of Perp-Neg, in one call of the network.

        Rows are ordered condition by condition, so that a sample always meets its own negatives,
        whatever the batch size.
        """
        negatives = self._conditions.negatives
        everyone = torch.arange(len(x_t), device=x_t.device)
        opposed = [views for views, _ in self._opposed(x_t)]
        views = [*[everyone] * len(full_batch), *opposed]
        words = list(full_batch)
        for negative, index in zip(negatives, self._views_per_negative, strict=True):
            words.append(negative.rows(index))
        rows = torch.cat(views)
        out = self._predict(x_t[rows], t[rows], Condition.cat(words))
        parts = out.split([len(v) for v in views])
        return list(parts[: len(full_batch)]), list(parts[len(full_batch) :])

    def _with_perp_neg(self, positive: Tensor, empty: Tensor, opposed: list[Tensor]) -> Tensor:
        """``e_pos + sum_i w_i * perp(e_i, e_pos)``; ``positive`` is relative to ``empty``,
        ``opposed`` are the predictions themselves, of the views in which they count."""
        direction = positive
        for (views, weight), negative in zip(self._opposed(positive), opposed, strict=True):
            away = weight * perpendicular(negative - empty[views], positive[views])
            direction = direction.index_add(0, views, away)
        return direction

    def _predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        self.evaluations += len(x_t)
        return self._denoiser.predict_noise(x_t, t, condition)
