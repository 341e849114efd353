# SPDX-License-Identifier: Apache-2.0
"""Denoisers in closed form: data that is a Gaussian, or a mixture of Gaussians.

They satisfy the same protocol as Stable Diffusion, so the whole trainer runs on them, and every
answer is known. With ``x_bar = x / sqrt(alpha_bar)`` and ``sigma`` as in ``schedule.py``, a
component N(m, v I) gives ``epsilon = sigma * (x_bar - m) / (v + sigma^2)``, a mixture the
posterior-weighted mean of these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Condition
from .schedule import (
    alpha_bar_at,
    per_sample,
    require_signal,
    scaled_linear_alpha_bar,
    sigma,
)


class GaussianMixture:
    """A mixture of isotropic or axis-aligned Gaussians over latents.

    A condition is a subset of the components, as weights: :meth:`embed` turns a prompt into the
    components whose name occurs in it (all of them for an empty or unknown prompt, which is what
    unconditional means).
    """

    def __init__(
        self,
        means: Tensor,
        variances: Tensor,
        weights: Tensor | None = None,
        names: Mapping[str, Sequence[int]] | None = None,
        alpha_bar: Tensor | None = None,
    ) -> None:
        """Args: means [K, c, h, w]; variances [K] or like means, > 0; weights [K], summing to 1
        (uniform by default); names: word -> components; alpha_bar [T], Stable Diffusion's by
        default. Works in the dtype of ``means``."""
        count, dims = len(means), means.dim()
        if dims != 4:
            raise ValueError(f"means must be [K, c, h, w], got shape {tuple(means.shape)}")
        self.means = means
        shaped = variances.reshape(count, *[1] * 3) if variances.dim() == 1 else variances
        self.variances = shaped.to(means).expand_as(means)  # [K, c, h, w]
        if bool((self.variances <= 0).any()):
            raise ValueError("variances must be positive")
        uniform = torch.full((count,), 1.0 / count, dtype=means.dtype)
        self.weights = uniform if weights is None else weights.to(means)
        self.names = dict(names or {})
        table = scaled_linear_alpha_bar() if alpha_bar is None else alpha_bar
        self.alpha_bar = require_signal(table).to(means.dtype)
        self.views_together = 1

    def embed(self, prompts: Sequence[str]) -> Condition:
        """``weights`` of the components, [len(prompts), K], each row summing to 1."""
        rows = []
        for prompt in prompts:
            words = prompt.replace(",", " ").split()
            chosen = sorted({k for w in words for k in self.names.get(w, ())})
            row = self.weights.clone()
            if chosen:
                row = torch.zeros_like(row)
                row[chosen] = self.weights[chosen]
            rows.append(row / row.sum())
        return Condition({"weights": torch.stack(rows)})

    def encode(self, rgb: Tensor) -> Tensor:
        """Pictures averaged down to the latent size and mapped to [-1, 1]; extra channels zero."""
        _, channels, height, width = self.means.shape
        small = F.adaptive_avg_pool2d(rgb.to(self.means.dtype) * 2.0 - 1.0, (height, width))
        if channels <= 3:
            return small[:, :channels]
        return torch.cat([small, small.new_zeros(len(rgb), channels - 3, height, width)], dim=1)

    def decode(self, latents: Tensor) -> Tensor:
        """The inverse of :meth:`encode` at the latent size."""
        rgb = latents[:, :3] if latents.shape[1] >= 3 else latents[:, :1].repeat(1, 3, 1, 1)
        return rgb * 0.5 + 0.5

    def predict_noise(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Time 0 is the clean sample, whose noise is 0 (an inversion starts there)."""
        return self.noise_at(x_t, alpha_bar_at(self.alpha_bar, t), condition)

    def noise_at(self, x_t: Tensor, level: Tensor, condition: Condition) -> Tensor:
        """epsilon at any level ``alpha_bar`` [B] in (0, 1]; what :meth:`predict_noise` looks up."""
        s = sigma(level).reshape(-1, 1, 1, 1, 1)
        x_bar = (x_t / per_sample(level).sqrt())[:, None]  # [B, 1, c, h, w]
        spread = self.variances[None] + s.square()  # [B, K, c, h, w]
        offset = x_bar - self.means[None]
        log_density = -0.5 * (offset.square() / spread + spread.log()).sum(dim=(2, 3, 4))
        weights = condition["weights"].log()  # log 0 = -inf: excluded
        posterior = torch.softmax(log_density + weights, dim=1)
        each = s * offset / spread
        return torch.einsum("bk,bkchw->bchw", posterior, each)


def gaussian(mean: Tensor, variance: float, alpha_bar: Tensor | None = None) -> GaussianMixture:
    """One Gaussian N(mean, variance I); ``mean`` is [c, h, w]."""
    return GaussianMixture(
        mean[None], torch.tensor([variance], dtype=mean.dtype), alpha_bar=alpha_bar
    )
