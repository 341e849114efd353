# SPDX-License-Identifier: Apache-2.0
"""Guidance from plain tensors: viewpoints, conditions, and strategies asked by themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from representations.cameras import look_at, pinhole
from representations.interface import Cameras, Render
from sdi_gs.diffusion.analytic import GaussianMixture
from sdi_gs.diffusion.base import Condition
from sdi_gs.diffusion.schedule import mix
from sdi_gs.guidance.draws import Rng
from sdi_gs.guidance.noise import START, Noised, NoiseInput, NoiseStrategy, Predict
from sdi_gs.guidance.times import Times
from sdi_gs.guidance.viewpoints import Viewpoints
from sdi_gs.ramp import Progress


def rng(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def around(*azimuth_deg: float, elevation_deg: float | Sequence[float] = 0.0) -> Viewpoints:
    """Viewpoints at these azimuths, in float64."""
    azimuth = torch.tensor(azimuth_deg, dtype=torch.float64)
    elevation = torch.as_tensor(elevation_deg, dtype=torch.float64).expand(len(azimuth))
    return Viewpoints.orbit(azimuth, elevation)


def components(rows: Sequence[Sequence[float]]) -> Condition:
    """A condition of a Gaussian mixture: the weights of its components, one row per sample."""
    return Condition({"weights": torch.tensor(rows, dtype=torch.float64)})


class Latent(GaussianMixture):
    """Pictures are latents: guidance without an encoder in between."""

    def encode(self, rgb: Tensor) -> Tensor:
        return rgb


class Given:
    """A noise strategy that injects a known kappa, one row per sample."""

    def __init__(self, kappa: Tensor) -> None:
        self.kappa = kappa

    def __call__(self, given: NoiseInput) -> Noised:
        return Noised(mix(given.z, self.kappa, given.alpha_bar[given.t.device]), self.kappa)


class Answers:
    """A predictor that answers by a formula, whatever the words and the scale."""

    views_together = 1

    def __init__(self, formula: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.formula = formula

    def __call__(self, x_t: Tensor, t: Tensor, cfg_scale: float) -> Tensor:
        return self.formula(x_t, t)

    def without_words(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.formula(x_t, t)


def noised(
    strategy: NoiseStrategy,
    z: Tensor,
    t: Tensor | Sequence[int],
    predict: Predict,
    alpha_bar: Tensor,
    generator: Rng | None = None,
    progress: Progress = START,
    viewpoints: Viewpoints | None = None,
) -> Noised:
    """What ``strategy`` makes of ``z`` at the integer times ``t``."""
    at = Times.of(torch.as_tensor(t), z.device)
    source = rng() if generator is None else generator
    return strategy(NoiseInput(z, at, predict, alpha_bar, source, progress, viewpoints))


def before_a_wall(views: Viewpoints, pixels: int, device: torch.device | str = "cpu") -> Viewpoints:
    """The same, for methods that look at the shape: every pixel of theirs sees a wall at z-depth 1,
    on pictures of that size."""
    at = views.camera_to_world[:, :3, 3]
    lens = pinhole(torch.ones(len(views)), pixels, pixels)
    pose = look_at(at, torch.zeros_like(at))
    cameras = Cameras(pose.to(device), lens.to(device), pixels, pixels)
    one = torch.ones(len(views), 1, pixels, pixels, device=device)
    return views.seeing(Render(one.expand(-1, 3, -1, -1), one, one, one), cameras)
