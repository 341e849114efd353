# SPDX-License-Identifier: Apache-2.0
from representations.cameras import (
    camera_to_world as camera_to_world,
)
from representations.cameras import (
    look_at as look_at,
)
from representations.cameras import (
    orbit as orbit,
)
from representations.cameras import (
    pinhole as pinhole,
)
from representations.cameras import (
    rays as rays,
)
from representations.cameras import (
    turntable as turntable,
)
from representations.cloud import (
    SplatCloud as SplatCloud,
)
from representations.export import (
    write_ply as write_ply,
)
from representations.gaussians import (
    GaussianConfig as GaussianConfig,
)
from representations.gaussians import (
    GaussianRenderer as GaussianRenderer,
)
from representations.instant_ngp import (
    InstantNGPConfig as InstantNGPConfig,
)
from representations.instant_ngp import (
    InstantNGPRenderer as InstantNGPRenderer,
)
from representations.interface import (
    Cameras as Cameras,
)
from representations.interface import (
    HasDensity as HasDensity,
)
from representations.interface import (
    HasMesh as HasMesh,
)
from representations.interface import (
    HasSplats as HasSplats,
)
from representations.interface import (
    RefineReport as RefineReport,
)
from representations.interface import (
    Render as Render,
)
from representations.interface import (
    Renderer as Renderer,
)
from representations.interface import (
    Run as Run,
)
from representations.interface import (
    Sized as Sized,
)
from representations.interface import (
    Surface as Surface,
)
from representations.ops.splats import (
    Splats as Splats,
)
from representations.ops.splats import (
    Splatted as Splatted,
)
from representations.ops.splats import (
    rasterize as rasterize,
)

from .api import (
    Asset as Asset,
)
from .api import (
    generate as generate,
)
from .api import (
    load_prior as load_prior,
)
from .api import (
    open_asset as open_asset,
)
from .api import (
    register as register,
)
from .api import (
    resume as resume,
)
from .config import (
    Config as Config,
)
from .config import (
    load as load,
)
from .diffusion.base import (
    Condition as Condition,
)
from .diffusion.base import (
    Denoiser as Denoiser,
)
from .diffusion.schedule import (
    alpha_bar_at as alpha_bar_at,
)
from .diffusion.schedule import (
    mix as mix,
)
from .diffusion.schedule import (
    noise_between as noise_between,
)
from .diffusion.schedule import (
    per_sample as per_sample,
)
from .diffusion.schedule import (
    sigma as sigma,
)
from .diffusion.schedule import (
    unmix as unmix,
)
from .errors import (
    RunFailure as RunFailure,
)
from .errors import (
    UserError as UserError,
)
from .guidance import (
    Conditions as Conditions,
)
from .guidance import (
    Guidance as Guidance,
)
from .guidance import (
    GuidanceConfig as GuidanceConfig,
)
from .guidance import (
    Guided as Guided,
)
from .guidance import (
    PromptConfig as PromptConfig,
)
from .guidance import (
    PromptSet as PromptSet,
)
from .guidance import (
    ScoreDistillation as ScoreDistillation,
)
from .guidance import (
    Subject as Subject,
)
from .guidance import (
    TimeConfig as TimeConfig,
)
from .guidance import (
    Viewpoints as Viewpoints,
)
from .guidance.draws import (
    normal_like as normal_like,
)
from .guidance.draws import (
    uniform as uniform,
)
from .guidance.inversion import (
    ddim_invert as ddim_invert,
)
from .guidance.noise import (
    DDIMInversion as DDIMInversion,
)
from .guidance.noise import (
    FixedNoise as FixedNoise,
)
from .guidance.noise import (
    IntervalInversion as IntervalInversion,
)
from .guidance.noise import (
    Noised as Noised,
)
from .guidance.noise import (
    NoiseInput as NoiseInput,
)
from .guidance.noise import (
    NoiseStrategy as NoiseStrategy,
)
from .guidance.noise import (
    RandomNoise as RandomNoise,
)
from .guidance.noise import (
    ReleasedInversion as ReleasedInversion,
)
from .guidance.paths import (
    GuidedConsistency as GuidedConsistency,
)
from .guidance.paths import (
    NestedIntervals as NestedIntervals,
)
from .guidance.paths import (
    Segment as Segment,
)
from .guidance.paths import (
    SegmentConsistency as SegmentConsistency,
)
from .guidance.predict import (
    GuidedPredictor as GuidedPredictor,
)
from .guidance.reverse import (
    reverse as reverse,
)
from .guidance.roots import (
    Anderson as Anderson,
)
from .guidance.roots import (
    FixedPoint as FixedPoint,
)
from .guidance.roots import (
    GradientDescent as GradientDescent,
)
from .guidance.roots import (
    NewtonKrylov as NewtonKrylov,
)
from .guidance.sampling import (
    ddim_sample as ddim_sample,
)
from .guidance.sampling import (
    pure_noise as pure_noise,
)
from .guidance.surface_noise import (
    SurfaceNoise as SurfaceNoise,
)
from .guidance.surface_noise import (
    WorldMapNoise as WorldMapNoise,
)
from .guidance.times import (
    Times as Times,
)
from .guidance.update import (
    Asynchronous as Asynchronous,
)
from .guidance.update import (
    Bridge as Bridge,
)
from .guidance.update import (
    Classifier as Classifier,
)
from .guidance.update import (
    NoiseFree as NoiseFree,
)
from .guidance.update import (
    Residual as Residual,
)
from .guidance.update import (
    UpdateInput as UpdateInput,
)
from .guidance.update import (
    UpdateRule as UpdateRule,
)
from .ramp import (
    Progress as Progress,
)
from .ramp import (
    Ramp as Ramp,
)
from .views import (
    ViewPolicy as ViewPolicy,
)

__version__: str
