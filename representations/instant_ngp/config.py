# SPDX-License-Identifier: Apache-2.0
"""Every setting of the radiance field. The defaults are the recipe of the SDI paper's code: a
field of radius 2 in 16 levels, 512 steps across the cube, shading after 1000 steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from ..checks import one_of, require
from ..memory import COPIES_IN_TRAINING, PER_PIXEL_AND_VIEW
from ..ops.fields.hash_grid import HashGridSpec
from ..start_file import StartFile

BlobKind = Literal["magic3d", "dreamfusion", "none"]
Activation = Literal["softplus", "exp"]
NormalKind = Literal["analytic", "finite_difference"]
Backend = Literal["auto", "cpu", "cuda", "nerfacc", "torch", "reference"]
InitKind = Literal["blob", "points", "splats"]

LEAST_MEMORY_MB = 16
"""Of one pass of rays."""


@dataclass(frozen=True, kw_only=True)
class GridConfig:
    """The multiresolution hash grid (Mueller et al. 2022) and its progressive bands."""

    levels: int = 16
    features: int = 2  # per level
    log2_size: int = 19  # entries per level, at most 2^this
    base_resolution: int = 16  # cells along an axis on the coarsest level
    max_resolution: int = 4096  # ... and on the finest
    start_levels: int = 8  # used at the beginning
    start_step: int = 2000  # until here; then one level more ...
    level_every: int = 500  # ... every so many steps

    def __post_init__(self) -> None:
        require(1 <= self.levels <= 32, "grid.levels", self.levels, "1 to 32", 16)
        require(self.features in (1, 2, 4, 8), "grid.features", self.features, "1, 2, 4, 8", 2)
        require(1 <= self.log2_size <= 28, "grid.log2_size", self.log2_size, "1 to 28", 19)
        base, most = self.base_resolution, self.max_resolution
        require(base >= 2, "grid.base_resolution", base, "2 or more", 16)
        require(base <= most <= 2**20, "grid.max_resolution", most, "base_resolution to 2^20", base)
        require(
            self.levels > 1 or most == base, "grid.max_resolution", most,
            "base_resolution, where there is one level", base,
        )  # fmt: skip
        start = self.start_levels
        require(1 <= start <= self.levels, "grid.start_levels", start, "1 to levels", self.levels)
        require(self.start_step >= 0, "grid.start_step", self.start_step, "0 or more", 2000)
        require(self.level_every >= 1, "grid.level_every", self.level_every, "1 or more", 500)

    def spec(self) -> HashGridSpec:
        """The layout of the table; nothing is allocated."""
        return HashGridSpec.reaching(
            self.max_resolution,
            levels=self.levels,
            features=self.features,
            log2_size=self.log2_size,
            base_resolution=self.base_resolution,
        )

    def active_levels(self, step: int) -> int:
        """How many levels are switched on at ``step``; the others read as zero."""
        if step < self.start_step:
            return self.start_levels
        return min(self.levels, self.start_levels + (step - self.start_step) // self.level_every)


@dataclass(frozen=True, kw_only=True)
class DensityConfig:
    """From features to density, in 1 / world unit."""

    activation: Activation = "softplus"  # exp is cut at e^15
    blob: BlobKind = "magic3d"  # magic3d: cone | dreamfusion: Gaussian | none
    blob_strength: float = 10.0  # added to the raw density at the origin
    blob_radius: float = 0.5  # magic3d: where the cone reaches 0 | dreamfusion: deviation
    hidden: int = 64  # units of the one hidden layer of each head

    def __post_init__(self) -> None:
        one_of("density.activation", self.activation, get_args(Activation))
        one_of("density.blob", self.blob, get_args(BlobKind))
        require(self.blob_radius > 0, "density.blob_radius", self.blob_radius, "> 0", 0.5)
        require(self.hidden >= 1, "density.hidden", self.hidden, "1 unit or more", 64)


@dataclass(frozen=True, kw_only=True)
class MarchConfig:
    """How rays walk through the field."""

    samples: int = 512  # steps across the diagonal of the cube
    max_samples: int = 512  # kept per ray, at most
    jitter: bool = True  # in training: the first step starts at a random fraction
    resolution: int = 32  # cells of the occupancy grid along an axis
    update_every: int = 16  # optimisation steps between updates of the grid
    warmup: int = 256  # steps with full sweeps; later a quarter of the cells and the occupied
    decay: float = 0.95  # of a cell's memory per update
    alpha_threshold: float = 0.01  # opacity of one step below which a cell counts as empty
    memory_mb: int = 4096  # budget of one pass; larger pictures are drawn in parts

    def __post_init__(self) -> None:
        require(self.samples >= 1, "march.samples", self.samples, "1 or more", 512)
        require(self.max_samples >= 1, "march.max_samples", self.max_samples, "1 or more", 512)
        require(2 <= self.resolution <= 512, "march.resolution", self.resolution, "2 to 512", 32)
        require(self.update_every >= 1, "march.update_every", self.update_every, "1 or more", 16)
        require(self.warmup >= 0, "march.warmup", self.warmup, "0 or more", 256)
        require(0.0 < self.decay <= 1.0, "march.decay", self.decay, "0 < x <= 1", 0.95)
        threshold = self.alpha_threshold
        require(0.0 <= threshold < 1.0, "march.alpha_threshold", threshold, "0 <= x < 1", 0.01)
        least = LEAST_MEMORY_MB
        enough = self.memory_mb >= least
        require(enough, "march.memory_mb", self.memory_mb, f"{least} or more", 4096)


@dataclass(frozen=True, kw_only=True)
class MaterialConfig:
    """A point light on a matte surface (DreamFusion, arXiv 2209.14988, sec. 3.2)."""

    albedo_steps: int = 1000  # no shading before; a number beyond the run switches it off
    albedo_share: float = 0.7  # afterwards: chance that a view shows the albedo alone
    textureless_share: float = 0.225  # ... or shading alone, on white; the rest shows both
    ambient: float = 0.1  # light from everywhere
    diffuse: float = 0.9  # light from the lamp
    lamp_spread: float = 1.0  # deviation added to the camera's position to place the lamp
    lamp_distance: tuple[float, float] = (0.8, 1.5)  # of the lamp from the origin, world units

    def __post_init__(self) -> None:
        require(self.albedo_steps >= 0, "material.albedo_steps", self.albedo_steps, ">= 0", 1000)
        a, t = self.albedo_share, self.textureless_share
        require(0.0 <= a <= 1.0, "material.albedo_share", a, "0 to 1", 0.7)
        require(
            0.0 <= t <= 1.0 - a, "material.textureless_share", t, "0 to 1 - albedo_share", 0.225
        )
        low, high = self.lamp_distance
        require(
            0.0 < low <= high, "material.lamp_distance", self.lamp_distance, "0 < low <= high",
            (0.8, 1.5),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FieldRates:
    """Adam's learning rates, constant."""

    grid: float = 1e-2
    heads: float = 1e-2
    environment: float = 1e-3

    def __post_init__(self) -> None:
        for name, rate in vars(self).items():
            require(rate >= 0.0, f"rates.{name}", rate, "a learning rate, 0 or more", 1e-2)


@dataclass(frozen=True, kw_only=True)
class FieldInitConfig(StartFile):
    """What the field looks like at step 0: the blob of its density, or pictures of a file that it
    is fitted to beforehand."""

    kind: InitKind = "blob"  # blob | points (mesh or point cloud file) | splats (a file of them)
    radius: float = 0.8  # "points": world units that the file is scaled to; 0 = keep
    colour: float = 0.5  # "points": grey level, where the source has no colours
    count: int = 4000  # "points": how many are drawn from a mesh
    steps: int = 200  # of the fit
    batch: int = 4  # pictures of a step of the fit
    resolution: int = 64  # pixels of their side

    def __post_init__(self) -> None:
        one_of("init.kind", self.kind, get_args(InitKind))
        self.require_file(fileless="blob")
        require(self.radius >= 0.0, "init.radius", self.radius, "a length, 0 or more", 0.8)
        require(0.0 <= self.colour <= 1.0, "init.colour", self.colour, "0 to 1", 0.5)
        for name in ("count", "steps", "batch"):
            require(getattr(self, name) >= 1, f"init.{name}", getattr(self, name), "1 or more", 4)
        require(self.resolution >= 8, "init.resolution", self.resolution, "8 or more", 64)


@dataclass(frozen=True, kw_only=True)
class InstantNGPConfig:
    """A radiance field on a hash grid."""

    kind: Literal["instant_ngp"] = "instant_ngp"
    radius: float = 2.0  # the field lives in the cube [-radius, radius]^3, world units
    backend: Backend = "auto"  # auto = by device | cpu (numba) | cuda | nerfacc | torch (reference)
    normals: NormalKind = "analytic"
    normal_epsilon: float = 0.01  # finite_difference: half distance of the probes, world units
    init: FieldInitConfig = field(default_factory=FieldInitConfig)
    grid: GridConfig = field(default_factory=GridConfig)
    density: DensityConfig = field(default_factory=DensityConfig)
    march: MarchConfig = field(default_factory=MarchConfig)
    material: MaterialConfig = field(default_factory=MaterialConfig)
    rates: FieldRates = field(default_factory=FieldRates)

    def __post_init__(self) -> None:
        require(self.radius > 0.0, "radius", self.radius, "a positive length", 2.0)
        one_of("backend", self.backend, get_args(Backend))
        one_of("normals", self.normals, get_args(NormalKind))
        epsilon = self.normal_epsilon
        require(0.0 < epsilon < self.radius, "normal_epsilon", epsilon, "0 < x < radius", 0.01)

    @property
    def step_length(self) -> float:
        """Length of one step of a ray, world units."""
        return 2.0 * self.radius * math.sqrt(3.0) / self.march.samples

    def smaller(self) -> list[str]:
        """Settings with which training takes less memory; see
        :class:`~representations.interface.Thrifty`."""
        budget = max(LEAST_MEMORY_MB, self.march.memory_mb // 2)
        passes = [f"march.memory_mb={budget}"] if budget < self.march.memory_mb else []
        grid = self.grid.log2_size
        return [*passes, f"grid.log2_size={grid - 1}"] if grid > 1 else passes

    def training_bytes(self, views: int, resolution: int) -> int:
        """About what training holds when ``views`` square pictures of ``resolution`` pixels are
        drawn at once: parameters, gradients and Adam's moments, the budget of one pass of rays,
        and an allowance for the pictures."""
        table = 4 * COPIES_IN_TRAINING * self.grid.spec().parameters
        pictures = 4 * views * resolution**2 * PER_PIXEL_AND_VIEW
        return table + self.march.memory_mb * 2**20 + pictures
