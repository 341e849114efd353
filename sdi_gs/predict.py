# SPDX-License-Identifier: Apache-2.0
"""Guided noise prediction: classifier-free guidance and Perp-Neg, written once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .diffusion.base import Denoiser
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
        """Args: x_t [B, c, h, w]; t [B] int64; cfg_scale in the convention of
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
        c = self._conditions
        return c.negatives is not None and c.weights is not None and bool((c.weights != 0).any())

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
        stacked = [c.empty, c.positive]
        if with_negative:
            stacked.append(c.uncond)
        if self._has_perp_neg:
            assert c.negatives is not None
            stacked += [c.negatives[:, k] for k in range(c.negatives.shape[1])]
        count = len(stacked)
        rows = self._predict(x_t.repeat(count, 1, 1, 1), t.repeat(count), torch.cat(stacked))
        empty, positive, *rest = rows.chunk(count)
        negative = rest.pop(0) if with_negative else empty
        toward = positive - empty
        if self._has_perp_neg:
            toward = self._with_perp_neg(toward, [row - empty for row in rest])
        return Separate(empty, negative, toward)

    def _with_perp_neg(self, positive: Tensor, negatives: list[Tensor]) -> Tensor:
        """``e_pos + sum_i w_i * perp(e_i, e_pos)``, all relative to the unconditional one."""
        weights = self._conditions.weights
        assert weights is not None
        direction = positive
        for k, negative in enumerate(negatives):
            weight = weights[:, k].to(positive.dtype).reshape(-1, 1, 1, 1)
            direction = direction + weight * perpendicular(negative, positive)
        return direction

    def _predict(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        self.evaluations += len(x_t)
        return self._denoiser.predict_noise(x_t, t, condition)

    def _perp_neg(self, x_t: Tensor, t: Tensor, cfg_scale: float) -> Tensor:
        """``uncond + s * (e_pos + sum_i w_i * perp(e_i, e_pos))``.

        Rows are ordered [uncond, positive, negative 1, negative 2, ...], each a whole batch, so
        that a sample always meets its own negatives, whatever the batch size.
        """
        c = self._conditions
        assert c.negatives is not None
        assert c.weights is not None
        if cfg_scale == 0.0:
            return self._predict(x_t, t, c.uncond)
        count = c.negatives.shape[1]
        stacked = [c.uncond, c.positive, *(c.negatives[:, k] for k in range(count))]
        rows = self._predict(
            x_t.repeat(2 + count, 1, 1, 1), t.repeat(2 + count), torch.cat(stacked)
        ).chunk(2 + count)
        uncond = rows[0]
        toward = self._with_perp_neg(rows[1] - uncond, [row - uncond for row in rows[2:]])
        return uncond + cfg_scale * toward
