# SPDX-License-Identifier: Apache-2.0
"""Regularisers that look at a picture only, shared by all representations: unweighted scalars,
small is good, finite even when nothing is visible."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .convexity import camera_normals, convexity, released_convexity
from .interface import Cameras, Render

ALPHA_MARGIN = 1e-3
"""Pixel alpha is kept this far from 0 and 1 inside logarithms."""


def total_variation(picture: Tensor) -> Tensor:
    """Mean squared difference of neighbouring pixels of [B, C, H, W]; 0 for a single pixel."""
    total = picture.new_zeros(())
    if picture.shape[-2] > 1:
        total = total + (picture[..., 1:, :] - picture[..., :-1, :]).square().mean()
    if picture.shape[-1] > 1:
        total = total + (picture[..., :, 1:] - picture[..., :, :-1]).square().mean()
    return total


def opaque(alpha: Tensor) -> Tensor:
    """Binary entropy of pixel alpha: pixels should be covered or empty."""
    a = alpha.clamp(ALPHA_MARGIN, 1.0 - ALPHA_MARGIN)
    entropy: Tensor = -(a * a.log() + (1.0 - a) * (1.0 - a).log()).mean()
    return entropy


def _convexity(render: Render, cameras: Cameras) -> Tensor:
    return convexity(camera_normals(render.normal, cameras.world_to_cam))


TERMS: dict[str, Callable[[Render, Cameras], Tensor]] = {
    "sparsity": lambda r, c: (r.alpha.square() + 0.01).sqrt().mean(),
    "opaque": lambda r, c: opaque(r.alpha),
    "tv_rgb": lambda r, c: total_variation(r.rgb),
    "tv_depth": lambda r, c: total_variation(r.depth),
    "tv_normal": lambda r, c: total_variation(r.normal),
    "convexity": _convexity,
    "convexity_released": lambda r, c: released_convexity(r.normal, r.alpha),
}
"""Name -> formula. sparsity: mean over pixels of sqrt(alpha^2 + 0.01); tv_*: total variation;
convexity: in the camera's frame; convexity_released: as the published code measures it."""
