# SPDX-License-Identifier: Apache-2.0
"""Regularisers: unweighted scalars, small is good. Each is finite even when nothing is visible."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from ..interface import Render
from .parameters import GaussianParameters

ALPHA_MARGIN = 1e-3
"""Pixel alpha is kept this far from 0 and 1 inside logarithms."""

LONGEST_RATIO = 4.0
"""Axis ratios up to this cost nothing; beyond it a splat is a needle."""


def _total_variation(picture: Tensor) -> Tensor:
    """Mean squared difference of neighbouring pixels of [B, C, H, W]; 0 for a single pixel."""
    total = picture.new_zeros(())
    if picture.shape[-2] > 1:
        total = total + (picture[..., 1:, :] - picture[..., :-1, :]).square().mean()
    if picture.shape[-1] > 1:
        total = total + (picture[..., :, 1:] - picture[..., :, :-1]).square().mean()
    return total


def _opaque(alpha: Tensor) -> Tensor:
    """Binary entropy of pixel alpha: pixels should be covered or empty."""
    a = alpha.clamp(ALPHA_MARGIN, 1.0 - ALPHA_MARGIN)
    return -(a * a.log() + (1.0 - a) * (1.0 - a).log()).mean()


def _anisotropy(gaussians: GaussianParameters) -> Tensor:
    """Mean log axis ratio beyond LONGEST_RATIO."""
    ratio = gaussians.log_scale.amax(-1) - gaussians.log_scale.amin(-1)
    limit = torch.log(ratio.new_tensor(LONGEST_RATIO))
    return (ratio - limit).clamp(min=0.0).mean()


TERMS: dict[str, Callable[[GaussianParameters, Render], Tensor]] = {
    "opacity": lambda g, r: g.opacity.mean(),
    "scale": lambda g, r: g.scale.mean(),
    "offset": lambda g, r: (g.means.square().sum(-1) + 1e-12).sqrt().mean(),
    "sparsity": lambda g, r: (r.alpha.square() + 0.01).sqrt().mean(),
    "opaque": lambda g, r: _opaque(r.alpha),
    "tv_rgb": lambda g, r: _total_variation(r.rgb),
    "tv_depth": lambda g, r: _total_variation(r.depth),
    "tv_normal": lambda g, r: _total_variation(r.normal),
    "anisotropy": lambda g, r: _anisotropy(g),
}
"""Name -> formula. opacity, scale, offset: means over splats (offset is the distance from the
origin); sparsity: mean over pixels of sqrt(alpha^2 + 0.01); tv_*: total variation."""


def compute(
    gaussians: GaussianParameters, render: Render, names: Collection[str] | None
) -> dict[str, Tensor]:
    """The named terms (None = all). Raises ValueError for a name that does not exist."""
    unknown = sorted(set(names or ()) - set(TERMS))
    if unknown:
        raise ValueError(f"unknown term {unknown[0]!r}: choose from {', '.join(TERMS)}")
    wanted = TERMS if names is None else names
    return {name: TERMS[name](gaussians, render) for name in wanted}
