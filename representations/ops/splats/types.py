# SPDX-License-Identifier: Apache-2.0
"""What a splat rasteriser takes and gives: the signature all back-ends share."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ...interface import Cameras


class Splats(NamedTuple):
    """N Gaussians, activated, in the world frame; all of one dtype and device."""

    means: Tensor  # [N, 3] world units
    quat_wxyz: Tensor  # [N, 4] any non-zero length
    scale: Tensor  # [N, 3] standard deviations along the local axes, > 0, world units
    opacity: Tensor  # [N] in [0, 1]

    def check(self, features: Tensor, cameras: Cameras) -> None:
        """Raise a ValueError that names the first shape which does not fit."""
        n = len(self.means)
        wanted = {
            "means": (self.means, (n, 3)),
            "quat_wxyz": (self.quat_wxyz, (n, 4)),
            "scale": (self.scale, (n, 3)),
            "opacity": (self.opacity, (n,)),
            "features": (features, (len(cameras), n, features.shape[-1])),
        }
        for name, (tensor, shape) in wanted.items():
            if tuple(tensor.shape) != shape:
                raise ValueError(
                    f"{name} has shape {tuple(tensor.shape)}, but {n} splats seen by "
                    f"{len(cameras)} cameras need {shape}"
                )


class Splatted(NamedTuple):
    """Pictures, and where each splat landed on each of them."""

    features: Tensor  # [B, C, H, W] sum of weight * feature; background not added
    depth: Tensor  # [B, 1, H, W] sum of weight * z; divide by alpha for the expected depth
    alpha: Tensor  # [B, 1, H, W] sum of weights, in [0, 1)
    means2d: Tensor  # [B, N, 2] pixels; in the graph: call retain_grad() before backward
    radii: Tensor  # [B, N, 2] int32 half extent in pixels per axis, 0 = not drawn
    depths: Tensor  # [B, N] z in the camera frame, 0 where not drawn
    conics: Tensor  # [B, N, 3] xx, xy, yy of the inverse screen covariance, detached


Splat = Callable[[Splats, Tensor, Cameras], Splatted]
"""``splat(splats, features [B, N, C], cameras)``, differentiable in splats and features."""
