# SPDX-License-Identifier: Apache-2.0
"""Splats as plain tensors, the way they are optimised and stored: before any activation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

SH_COUNTS = (1, 4, 9, 16)  # coefficients per channel of degree 0, 1, 2, 3


@dataclass(frozen=True)
class SplatCloud:
    """N Gaussians in the world frame (z up), pre-activation, float32."""

    means: Tensor  # [N, 3] world units
    log_scale: Tensor  # [N, 3] natural log of the standard deviations
    quat_wxyz: Tensor  # [N, 4] local axes to world, any non-zero length
    opacity_logit: Tensor  # [N]
    sh_dc: Tensor  # [N, 3] colour = 0.5 + 0.28209479177387814 * sh_dc
    sh_rest: Tensor  # [N, K - 1, 3] higher spherical harmonics; K - 1 is 0, 3, 8 or 15

    def __len__(self) -> int:  # the number of splats, not of fields
        return int(self.means.shape[0])

    @property
    def sh_degree(self) -> int:
        return SH_COUNTS.index(self.sh_rest.shape[1] + 1)

    def items(self) -> list[tuple[str, Tensor]]:
        return [(field.name, getattr(self, field.name)) for field in fields(self)]

    def map(self, function: Callable[[Tensor], Tensor]) -> SplatCloud:
        """Apply a function to every tensor, for example a selection of rows."""
        return SplatCloud(*(function(tensor) for _, tensor in self.items()))

    def replace(self, **tensors: Tensor) -> SplatCloud:
        return replace(self, **tensors)

    def with_sh_degree(self, degree: int) -> SplatCloud:
        """The same splats with spherical harmonics cut off or padded with zeros to ``degree``."""
        wanted = SH_COUNTS[degree] - 1
        rest = self.sh_rest[:, :wanted]
        rest = torch.nn.functional.pad(rest, (0, 0, 0, wanted - rest.shape[1]))
        return self.replace(sh_rest=rest)

    def finite(self) -> Tensor:
        """Bool [N]: every number of the splat is finite."""
        # NaN and infinity survive every sum, so one number tells that there are none.
        if all(math.isfinite(float(t.sum())) for _, t in self.items()):
            return torch.ones(len(self), dtype=torch.bool, device=self.means.device)
        return torch.stack(
            [torch.isfinite(t.reshape(len(self), -1)).all(-1) for _, t in self.items()]
        ).all(0)

    def check(self) -> SplatCloud:
        """Raise a ValueError naming the first field whose shape does not fit; else return self."""
        n = len(self)
        wanted = {
            "means": (n, 3),
            "log_scale": (n, 3),
            "quat_wxyz": (n, 4),
            "opacity_logit": (n,),
            "sh_dc": (n, 3),
        }
        for name, shape in wanted.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(
                    f"{name} has shape {tuple(getattr(self, name).shape)}, {n} splats need {shape}"
                )
        rest = tuple(self.sh_rest.shape)
        if len(rest) != 3 or rest[0] != n or rest[2] != 3 or rest[1] + 1 not in SH_COUNTS:
            raise ValueError(
                f"sh_rest has shape {rest}, needs ({n}, K, 3) with K one of 0, 3, 8, 15 "
                "(spherical harmonics of degree 0 to 3 without the constant)"
            )
        return self
