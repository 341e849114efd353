# SPDX-License-Identifier: Apache-2.0
"""From a sentence to a 3D asset by Score Distillation via Inversion (arXiv 2405.15891).

::

    asset = sdi_gs.generate("a red mug", seed=3)
    asset.save("mug.ply")
    asset.turntable("mug.mp4")

and for a loop of one's own::

    prior = sdi_gs.load_prior("mini")
    guide = sdi_gs.ScoreDistillation(prior, "a red mug", steps=400)
    guide(rgb, viewpoints, step).loss.backward()

Importing this package imports nothing heavy: a name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

# Type checkers read __init__.pyi, which a test holds to the same names.
_HOMES = {
    ".api": ("Asset", "generate", "load_prior", "open_asset", "register", "resume"),
    ".config": ("Config", "load"),
    ".diffusion.base": ("Condition", "Denoiser"),
    ".diffusion.schedule": (
        "alpha_bar_at", "mix", "noise_between", "per_sample", "sigma", "unmix",
    ),
    ".errors": ("RunFailure", "UserError"),
    ".guidance": (
        "Conditions", "Guidance", "GuidanceConfig", "Guided", "PromptConfig", "PromptSet",
        "ScoreDistillation", "Subject", "TimeConfig", "Viewpoints",
    ),
    ".guidance.draws": ("normal_like", "uniform"),
    ".guidance.inversion": ("ddim_invert",),
    ".guidance.noise": (
        "DDIMInversion", "FixedNoise", "IntervalInversion", "NoiseInput", "NoiseStrategy",
        "Noised", "RandomNoise", "ReleasedInversion",
    ),
    ".guidance.paths": (
        "GuidedConsistency", "NestedIntervals", "Segment", "SegmentConsistency",
    ),
    ".guidance.predict": ("GuidedPredictor",),
    ".guidance.reverse": ("reverse",),
    ".guidance.roots": ("Anderson", "FixedPoint", "GradientDescent", "NewtonKrylov"),
    ".guidance.sampling": ("ddim_sample", "pure_noise"),
    ".guidance.surface_noise": ("SurfaceNoise", "WorldMapNoise"),
    ".guidance.times": ("Times",),
    ".guidance.update": (
        "Asynchronous", "Bridge", "Classifier", "NoiseFree", "Residual", "UpdateInput",
        "UpdateRule",
    ),
    ".ramp": ("Progress", "Ramp"),
    ".views": ("ViewPolicy",),
    "representations.cameras": (
        "camera_to_world", "look_at", "orbit", "pinhole", "rays", "turntable",
    ),
    "representations.cloud": ("SplatCloud",),
    "representations.export": ("write_ply",),
    "representations.gaussians": ("GaussianConfig", "GaussianRenderer"),
    "representations.instant_ngp": ("InstantNGPConfig", "InstantNGPRenderer"),
    "representations.interface": (
        "Cameras", "HasDensity", "HasMesh", "HasSplats", "RefineReport", "Render", "Renderer",
        "Run", "Sized", "Surface",
    ),
    "representations.ops.splats": ("Splats", "Splatted", "rasterize"),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted([*_HOME_OF, "__version__"])


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("sdi-gs")
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'sdi_gs' has no attribute {name!r}")
    value = getattr(importlib.import_module(home, __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
