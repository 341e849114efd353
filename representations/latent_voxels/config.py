# SPDX-License-Identifier: Apache-2.0
"""Every setting of the voxels of latents."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from ..checks import require
from ..memory import COPIES_IN_TRAINING, PER_PIXEL_AND_VIEW

CHANNELS = 4
"""Of the latents of every prior that it was made for."""

PER_SAMPLE = 40
"""Numbers of a sample on a ray that are kept for the backward pass, about."""

STABLE_DIFFUSION = (
    (0.298, 0.207, 0.208),
    (0.187, 0.286, 0.173),
    (-0.158, 0.189, 0.264),
    (-0.184, -0.271, -0.473),
    (0.0, 0.0, 0.0),
)
"""Latents of Stable Diffusion as colours in [-1, 1]: factors that were found by experiment for 1.4,
and that previews of many programs use (discuss.huggingface.co/t/23204, "decoding latents to RGB
without upscaling"). Each row is what one of a latent adds; the last is what none of them has."""


@dataclass(frozen=True, kw_only=True)
class VoxelRates:
    """Adam's learning rates."""

    density: float = 0.05
    latents: float = 0.05
    environment: float = 1e-2

    def __post_init__(self) -> None:
        for name, rate in vars(self).items():
            require(rate >= 0.0, f"rates.{name}", rate, "0 or more", 0.05)


@dataclass(frozen=True, kw_only=True)
class LatentVoxelConfig:
    """Voxels with a density and four latents each (Score Jacobian Chaining, arXiv 2212.00774)."""

    kind: Literal["latent_voxels"] = "latent_voxels"
    size: int = 100  # voxels along a side
    radius: float = 1.0  # half the side of the cube around the origin, world units
    samples: int = 128  # on a ray, evenly from where it enters the cube to where it leaves
    blob_radius: float = 0.5  # of the ball that it begins as, as a share of ``radius``
    blob_strength: float = 10.0  # of its density, 1 / world unit
    rates: VoxelRates = field(default_factory=VoxelRates)
    # [5, 3]: latents to colours in [-1, 1], and a constant
    colours: tuple[tuple[float, ...], ...] = STABLE_DIFFUSION
    white: tuple[float, ...] | None = None  # [4] latents of white; None: the least that are white

    def __post_init__(self) -> None:
        require(2 <= self.size <= 512, "size", self.size, "2 to 512 voxels", 100)
        require(2 <= self.samples <= 4096, "samples", self.samples, "2 to 4096", 128)
        for name in ("radius", "blob_radius", "blob_strength"):
            value = getattr(self, name)
            require(0.0 < value < math.inf, name, value, "above 0", 0.5)
        rows = [len(row) for row in self.colours]
        finite = all(math.isfinite(x) for row in self.colours for x in row)
        require(rows == [3] * (CHANNELS + 1) and finite, "colours", self.colours,
                "5 rows of 3 numbers", [list(row) for row in STABLE_DIFFUSION])  # fmt: skip
        white = self.white
        fits = white is None or (len(white) == CHANNELS and all(map(math.isfinite, white)))
        require(fits, "white", white, "4 numbers, or null", [0.0] * CHANNELS)

    def smaller(self) -> list[str]:
        """Settings with which training takes less memory; see
        :class:`~representations.interface.Thrifty`."""
        fewer = [f"samples={self.samples // 2}"] if self.samples >= 32 else []
        return [*fewer, f"size={self.size // 2}"] if self.size >= 32 else fewer

    def training_bytes(self, views: int, resolution: int) -> int:
        """About what training holds when ``views`` square pictures of ``resolution`` pixels are
        drawn at once."""
        voxels = COPIES_IN_TRAINING * (CHANNELS + 1) * self.size**3
        rays = views * resolution**2 * (PER_SAMPLE * self.samples + PER_PIXEL_AND_VIEW)
        return 4 * (voxels + rays)
