# SPDX-License-Identifier: Apache-2.0
"""Regularisers: unweighted scalars, small is good. Each is finite even when nothing is visible."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from .. import picture_terms
from ..interface import Cameras, Render
from .parameters import GaussianParameters

LONGEST_RATIO = 4.0
"""Axis ratios up to this cost nothing; beyond it a splat is a needle."""


def _anisotropy(gaussians: GaussianParameters) -> Tensor:
    """Mean log axis ratio beyond LONGEST_RATIO."""
    ratio = gaussians.log_scale.amax(-1) - gaussians.log_scale.amin(-1)
    limit = torch.log(ratio.new_full((), LONGEST_RATIO))
    return (ratio - limit).clamp(min=0.0).mean()


SPLAT_TERMS: dict[str, Callable[[GaussianParameters], Tensor]] = {
    "opacity": lambda g: g.opacity.mean(),
    "scale": lambda g: g.scale.mean(),
    "offset": lambda g: (g.means.square().sum(-1) + 1e-12).sqrt().mean(),
    "anisotropy": _anisotropy,
}
"""Name -> formula: means over splats; offset is the distance from the origin."""

TERMS = (*SPLAT_TERMS, *picture_terms.TERMS)
"""Every name that :func:`compute` knows."""


def compute(
    gaussians: GaussianParameters,
    render: Render,
    cameras: Cameras,
    names: Collection[str] | None,
) -> dict[str, Tensor]:
    """The named terms (None = all). Raises ValueError for a name that does not exist."""
    unknown = sorted(set(names or ()) - set(TERMS))
    if unknown:
        raise ValueError(f"unknown term {unknown[0]!r}: choose from {', '.join(TERMS)}")
    return {
        name: SPLAT_TERMS[name](gaussians)
        if name in SPLAT_TERMS
        else picture_terms.TERMS[name](render, cameras)
        for name in (TERMS if names is None else names)
    }
