# SPDX-License-Identifier: Apache-2.0
"""Guided noise prediction: classifier-free guidance and Perp-Neg, written once."""

from __future__ import annotations

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
        if c.negatives is not None and c.weights is not None and bool((c.weights != 0).any()):
            return self._perp_neg(x_t, t, cfg_scale)
        if cfg_scale == 0.0:
            return self._predict(x_t, t, c.uncond)
        if cfg_scale == 1.0:
            return self._predict(x_t, t, c.positive)
        uncond, cond = self._predict(
            torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([c.uncond, c.positive])
        ).chunk(2)
        return classifier_free(uncond, cond, cfg_scale)

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
        positive = rows[1] - uncond
        direction = positive
        for k in range(count):
            weight = c.weights[:, k].to(positive.dtype).reshape(-1, 1, 1, 1)
            direction = direction + weight * perpendicular(rows[2 + k] - uncond, positive)
        return uncond + cfg_scale * direction
