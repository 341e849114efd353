# SPDX-License-Identifier: Apache-2.0
"""Every setting of the Gaussian representation. The defaults suit a run of a few hundred steps at
64 x 64 pixels with a few thousand splats, seen from a distance of 2.5 to 4."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from ..checks import one_of, require
from ..memory import COPIES_IN_TRAINING, PER_PIXEL_AND_VIEW
from ..start_file import StartFile

InitKind = Literal["ball", "points", "splats"]
DensifyKind = Literal["quantile", "threshold", "mcmc", "none"]
Backend = Literal["auto", "cpu", "cuda", "triton", "gsplat", "torch", "reference"]
"""auto = by device: cpu is numba; cuda takes gsplat where it is compiled, else our Triton kernels.
torch and reference are one: plain torch, slow, on any device."""


@dataclass(frozen=True, kw_only=True)
class InitConfig(StartFile):
    """Where the first splats come from."""

    kind: InitKind = "ball"  # ball | points (mesh or point cloud file) | splats (a file of them)
    radius: float = 0.8  # world units: of the ball, or that a file is scaled to (0 = keep)
    opacity: float = 0.1  # of every splat, except those of kind "splats"
    colour: float = 0.5  # grey level, where the source has no colours
    colour_jitter: float = 0.05  # standard deviation added to each channel of "ball"
    scale_factor: float = 1.0  # times the mean distance to the three nearest neighbours

    def __post_init__(self) -> None:
        one_of("init.kind", self.kind, get_args(InitKind))
        self.require_file(fileless="ball")
        lowest = 0.0 if self.kind != "ball" else 1e-6
        require(self.radius >= lowest, "init.radius", self.radius, "a positive length", 0.8)
        require(0.0 < self.opacity < 1.0, "init.opacity", self.opacity, "0 < opacity < 1", 0.1)
        require(0.0 <= self.colour <= 1.0, "init.colour", self.colour, "0 to 1", 0.5)
        require(self.colour_jitter >= 0.0, "init.colour_jitter", self.colour_jitter, ">= 0", 0.05)
        require(self.scale_factor > 0.0, "init.scale_factor", self.scale_factor, "> 0", 1.0)


@dataclass(frozen=True, kw_only=True)
class RatesConfig:
    """Adam's learning rates."""

    means: float = 5e-3  # world units; falls exponentially ...
    means_final: float = 2e-4  # ... to this at the last step
    log_scale: float = 1e-2  # constant
    quat_wxyz: float = 1e-2  # constant
    opacity_logit: float = 5e-2  # constant
    sh_dc: float = 2e-2  # constant; colour moves by 0.28 times this
    sh_rest: float = 1e-3  # constant; only with sh_degree > 0
    environment: float = 1e-2  # constant; the learned background

    def __post_init__(self) -> None:
        for name, rate in vars(self).items():
            lowest_ok = rate > 0.0 if name.startswith("means") else rate >= 0.0
            require(lowest_ok, f"rates.{name}", rate, "a positive learning rate", 1e-3)


@dataclass(frozen=True, kw_only=True)
class DensifyConfig:
    """When and how the number of splats changes."""

    kind: DensifyKind = "quantile"  # quantile: scale-free | threshold: published systems | mcmc
    start: float = 0.1  # fraction of the run before the first event
    stop: float = 0.7  # fraction of the run after the last event
    every: int = 25  # steps between events
    grow: float = 0.1  # quantile, mcmc: fraction of the splats added per event, at most
    grow_grad2d: float = 2e-4  # threshold: mean screen gradient per view, in half pictures
    split_above: float = 1.5  # larger than this times the median splat: split, else clone
    split_shrink: float = 1.6  # the halves of a split are this much smaller
    prune_opacity: float = 0.01  # below: removed (mcmc: moved to a living splat)
    prune_opacity_end: float | None = None  # it moves there, evenly, over the run; None: it stays
    prune_scale: float = 0.5  # longest axis above this fraction of the scene radius: removed
    opacity_decay: float = 1.0  # opacity is multiplied by this at each event; 1 = never
    noise: float = 5e5  # mcmc: position noise per step, times the learning rate of means

    def __post_init__(self) -> None:
        one_of("densify.kind", self.kind, get_args(DensifyKind))
        require(0.0 <= self.start <= 1.0, "densify.start", self.start, "a fraction 0 to 1", 0.1)
        require(self.start <= self.stop <= 1.0, "densify.stop", self.stop, "start to 1", 0.7)
        require(self.every >= 1, "densify.every", self.every, "1 step or more", 25)
        require(0.0 <= self.grow <= 1.0, "densify.grow", self.grow, "a fraction 0 to 1", 0.1)
        require(self.grow_grad2d >= 0, "densify.grow_grad2d", self.grow_grad2d, ">= 0", 2e-4)
        require(self.split_above > 0, "densify.split_above", self.split_above, "> 0", 1.5)
        require(self.split_shrink > 1, "densify.split_shrink", self.split_shrink, "> 1", 1.6)
        require(
            0.0 <= self.prune_opacity < 1.0,
            "densify.prune_opacity",
            self.prune_opacity,
            "0 to 1",
            0.01,
        )
        require(
            self.prune_opacity_end is None or 0.0 <= self.prune_opacity_end < 1.0,
            "densify.prune_opacity_end",
            self.prune_opacity_end,
            "0 to 1",
            0.2,
        )
        require(self.prune_scale > 0, "densify.prune_scale", self.prune_scale, "> 0", 0.5)
        require(
            0.0 < self.opacity_decay <= 1.0,
            "densify.opacity_decay",
            self.opacity_decay,
            "0 < x <= 1",
            1.0,
        )
        require(self.noise >= 0, "densify.noise", self.noise, ">= 0", 5e5)

    def at(self, done: float) -> DensifyConfig:
        """The settings as they are after the share ``done``, 0 to 1, of the run."""
        if self.prune_opacity_end is None:
            return self
        moved = self.prune_opacity + (self.prune_opacity_end - self.prune_opacity) * done
        return replace(self, prune_opacity=moved, prune_opacity_end=None)


PER_SPLAT_AND_VIEW = 60
"""Numbers that a rasteriser keeps for the backward pass: projection, lists, gradients; about."""


@dataclass(frozen=True, kw_only=True)
class GaussianConfig:
    """A field of 3D Gaussians (Kerbl et al. 2023)."""

    kind: Literal["gaussians"] = "gaussians"
    count: int = 2000  # splats at the start; kind "splats" takes what the file has
    max_count: int = 4000  # hard budget, never exceeded
    sh_degree: int = 0  # 0 = one colour from all sides; up to 3
    backend: Backend = "auto"  # auto | cpu (numba) | cuda | triton | gsplat | torch
    init: InitConfig = field(default_factory=InitConfig)
    rates: RatesConfig = field(default_factory=RatesConfig)
    densify: DensifyConfig = field(default_factory=DensifyConfig)

    def __post_init__(self) -> None:
        require(self.count >= 1, "count", self.count, "1 splat or more", 2000)
        require(
            self.max_count >= self.count, "max_count", self.max_count, "at least count", self.count
        )
        require(self.sh_degree in (0, 1, 2, 3), "sh_degree", self.sh_degree, "0, 1, 2 or 3", 0)
        one_of("backend", self.backend, get_args(Backend))

    def smaller(self) -> list[str]:
        """Settings with which training takes less memory; see
        :class:`~representations.interface.Thrifty`."""
        if self.init.kind == "splats":  # their number is that of the file, at least
            return []
        half = max(1, self.max_count // 2)
        counted = [f"count={half}"] if half < self.count else []
        return [*counted, f"max_count={half}"] if half < self.max_count else []

    def training_bytes(self, views: int, resolution: int) -> int:
        """About what training holds when ``views`` square pictures of ``resolution`` pixels are
        drawn at once: parameters, gradients and Adam's moments, and allowances for one pass."""
        numbers = 11 + 3 * (self.sh_degree + 1) ** 2
        splats = self.max_count * (COPIES_IN_TRAINING * numbers + views * PER_SPLAT_AND_VIEW)
        return 4 * (splats + views * resolution**2 * PER_PIXEL_AND_VIEW)
