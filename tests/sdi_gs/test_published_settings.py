# SPDX-License-Identifier: Apache-2.0
"""Defaults that a paper or its code states (presets write down only what differs from them), and
where the range of each setting ends."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from sdi_gs.guidance.consistency import GradientConsistencyConfig
from sdi_gs.guidance.distillation import GuidanceConfig, TimeConfig
from sdi_gs.guidance.image_space import ImageSpaceConfig
from sdi_gs.guidance.noise import (
    DDIMInversion,
    FixedNoise,
    IntervalInversion,
    RandomNoise,
    ReleasedInversion,
)
from sdi_gs.guidance.paths import (
    GuidedConsistency,
    NestedIntervals,
    Segment,
    SegmentConsistency,
)
from sdi_gs.guidance.prompts import PromptConfig
from sdi_gs.guidance.roots import Anderson, FixedPoint, GradientDescent, NewtonKrylov
from sdi_gs.guidance.stein import SteinConfig
from sdi_gs.guidance.update import Asynchronous, Bridge, Classifier, NoiseFree, Residual
from sdi_gs.guidance.variational import VariationalConfig
from sdi_gs.ramp import Ramp
from sdi_gs.views import ViewPolicy


def always(value: float) -> Ramp:
    return Ramp(value, value)


PUBLISHED: list[tuple[type, dict[str, Any]]] = [
    # SDI (arXiv 2405.15891): t falls from 1 to 0.2, scale 7.5, inversion with minus that scale in
    # int(10 t) steps, tau up to 1/30, entropy 0.3 (App. A).
    (TimeConfig, {"high": Ramp(1.0, 0.2), "low": None, "same_for_batch": False}),
    (
        GuidanceConfig,
        {"cfg_scale": always(7.5), "t": TimeConfig(), "weight": "sigma", "reduction": "mean",
         "scale": 1.0, "latents": "mean"},
    ),
    (
        DDIMInversion,
        {"cfg_scale": -7.5, "steps_per_unit": 10.0, "steps": None, "rho": None, "order": 1,
         "heun": False, "tau_max": 1 / 30, "entropy": always(0.3)},
    ),
    # Its code: a grid of n_inversion_steps = 10, eta 0.3.
    (ReleasedInversion, {"cfg_scale": -7.5, "spacing": 100, "eta": 0.3}),
    # The cameras of its code: half of the elevations uniform in the sine, jitter as threestudio's.
    (
        ViewPolicy,
        {"azimuth_deg": (-180.0, 180.0), "elevation_deg": (-10.0, 45.0),
         "elevation_sine_share": 0.5, "distance": (1.5, 2.0), "fov_y_deg": (40.0, 70.0),
         "position_jitter": 0.1, "target_jitter": 0.2, "up_jitter": 0.02, "stratified": True,
         "antithetic": "none", "neighbour_deg": 0.0, "group_azimuth_deg": None},
    ),
    (FixedNoise, {"seed": 0}),
    (RandomNoise, {}),
    # Its Fig. 9 states neither iterations nor rate; the scale is the forward one.
    (FixedPoint, {"cfg_scale": 7.5, "iterations": 10, "damping": 1.0}),
    (GradientDescent, {"cfg_scale": 7.5, "iterations": 10, "rate": 0.1}),
    # LucidDreamer (2311.11284): delta_S = 200, delta_T from 100 to 50 in 1500 steps of 1000 times.
    (
        IntervalInversion,
        {"published": False, "cfg_scale": 0.0, "interval": Ramp(0.1, 0.05, 1500), "spacing": 0.2,
         "most_steps": 5},
    ),
    # SegmentDreamer (2507.05256), its paper and code: 5 segments of t from 20 to 980 of 1000, at
    # least 80 from e to t, 10 on both sides of s, no s below 150.
    (
        Segment,
        {"segments": 5, "low": 0.02, "high": 0.98, "gap": 0.08, "margin": 0.01,
         "direct_below": 0.15, "fixed": True, "seed": 0},
    ),
    # GCS (2407.13584), its code: intervals from 100 to 80 of 1000 in 1500 steps, 10 below s.
    (
        NestedIntervals,
        {"interval": Ramp(0.1, 0.08, 1500), "margin": 0.01, "fixed": True, "seed": 0},
    ),
    (SegmentConsistency, {}),
    (GuidedConsistency, {"compact": 1.0, "clean": 0.5, "pixels": 0.5}),
    # ScaleDreamer (2407.02040), its code: up to a tenth of the way from 20 of 1000 to t.
    (Asynchronous, {"most": 0.1, "drawn": True, "after": 0.02}),
    (Bridge, {"sds_until": 0.8}),  # SDS-Bridge (2406.09417), its code: step 20,000 of 25,000
    # DreamFusion (2209.14988): overhead above 60 degrees; front and back are quarters of the turn.
    (
        PromptConfig,
        {"view_dependent": True, "overhead_above_deg": 60.0, "front_within_deg": 45.0,
         "back_beyond_deg": 135.0, "perp_neg": "none"},
    ),
    (Residual, {"subtract": True, "steps": 1, "order": 1}),
    (Classifier, {"negative": Ramp(0.0, -1.0, 5000)}),  # CSD (2310.19415), coarse stage
    (NoiseFree, {"low_noise_until": 0.2}),  # NFSD (2310.17590): t < 200 of 1000
    # ProlificDreamer (2305.16213): a LoRA, 1e-4, no camera in a tenth of the samples.
    (VariationalConfig, {"marginal": 0.0, "rank": 4, "rate": 1e-4, "camera_dropped": 0.1}),
    # HiFA (2305.18766), threestudio's lambda_sds_img
    (ImageSpaceConfig, {"weight": 0.01, "steps": 1}),
    # SteinDreamer (2401.00604) has one phi and says neither decay nor rate: those are ours
    (SteinConfig, {"baseline": "constant", "decay": 0.95, "rate": 1e-4, "beside_constant": False}),
]  # fmt: skip


@pytest.mark.parametrize(("cls", "expected"), PUBLISHED, ids=[cls.__name__ for cls, _ in PUBLISHED])
def test_the_defaults_are_the_published_ones(cls: type, expected: dict[str, Any]) -> None:
    made = cls()
    found = {f.name: getattr(made, f.name) for f in dataclasses.fields(cls) if f.name != "kind"}
    assert found == expected


LIMITS: list[tuple[type, str, list[Any], list[Any]]] = [
    # setting, the outermost values that are allowed, the nearest ones that are not
    (DDIMInversion, "steps", [1, None], [0]),
    (DDIMInversion, "steps_per_unit", [0.01], [0.0, -0.01]),
    (
        DDIMInversion, "rho", [None, 1.0, 100.0, Ramp(1.0, 100.0)],
        [0.99, 101.0, Ramp(0.99, 3.0), Ramp(3.0, 101.0)],
    ),
    (DDIMInversion, "tau_max", [0.0, 0.99], [-0.01, 1.0]),
    (
        DDIMInversion, "entropy", [0.0, always(0.0)],
        [-0.01, Ramp(0.3, -0.01), Ramp(-0.01, 0.3)],
    ),
    (FixedPoint, "iterations", [1], [0]),
    (FixedPoint, "damping", [0.01, 1.0], [0.0, 1.01]),
    (Anderson, "iterations", [1], [0]),
    (Anderson, "memory", [1], [0]),
    (NewtonKrylov, "iterations", [1], [0]),
    (NewtonKrylov, "krylov", [1], [0]),
    (NewtonKrylov, "difference", [0.001, 0.99], [0.0, 1.0]),
    (Segment, "segments", [1], [0]),
    (Segment, "low", [0.01, 0.97], [0.0, 0.98]),
    (Segment, "gap", [0.021], [0.02]),
    (NestedIntervals, "interval", [Ramp(0.02, 0.99)], [Ramp(0.01, 0.1), Ramp(0.1, 1.0)]),
    (GuidedConsistency, "compact", [0.0], [-0.01]),
    (GuidedConsistency, "clean", [0.0], [-0.01]),
    (GuidedConsistency, "pixels", [0.0], [-0.01]),
    (Asynchronous, "most", [0.0], [-0.01]),
    (Asynchronous, "after", [0.0, 0.99], [-0.01, 1.0]),
    (Bridge, "sds_until", [0.0, 1.0], [-0.01, 1.01]),
    (Residual, "steps", [1], [0]),
    (GradientDescent, "iterations", [1], [0]),
    (GradientDescent, "rate", [0.01], [0.0]),
    (IntervalInversion, "most_steps", [1], [0]),
    (IntervalInversion, "spacing", [0.01, 1.0], [0.0, 1.01]),
    (
        IntervalInversion, "interval", [Ramp(0.01, 1.0), Ramp(1.0, 0.01)],
        [Ramp(0.0, 0.1), Ramp(0.1, 0.0), Ramp(1.01, 0.1), Ramp(0.1, 1.01)],
    ),
    (ReleasedInversion, "spacing", [1], [0]),
    (NoiseFree, "low_noise_until", [0.0, 1.0], [-0.01, 1.01]),
    (VariationalConfig, "marginal", [0.0, 1.0], [-0.01, 1.01]),
    (VariationalConfig, "camera_dropped", [0.0, 1.0], [-0.01, 1.01]),
    (VariationalConfig, "rank", [1], [0]),
    (VariationalConfig, "rate", [0.0], [-1e-6]),
    (ImageSpaceConfig, "weight", [0.0], [-0.01]),
    (ImageSpaceConfig, "steps", [1], [0]),
    (SteinConfig, "decay", [0.0, 0.99], [-0.01, 1.0]),
    (SteinConfig, "rate", [0.0], [-1e-4]),
    (ViewPolicy, "azimuth_deg", [(5.0, 5.0)], [(5.0, 4.9)]),
    (ViewPolicy, "elevation_deg", [(-90.0, 90.0), (5.0, 5.0)], [(-90.1, 0.0), (0.0, 90.1)]),
    (ViewPolicy, "elevation_deg", [], [(5.0, 4.9)]),
    (ViewPolicy, "distance", [(0.01, 0.01)], [(0.0, 1.0), (1.0, 0.9)]),
    (ViewPolicy, "fov_y_deg", [(0.1, 179.9), (9.0, 9.0)], [(0.0, 9.0), (9.0, 180.0), (9.0, 8.9)]),
    (ViewPolicy, "elevation_sine_share", [0.0, 1.0], [-0.01, 1.01]),
    (ViewPolicy, "position_jitter", [0.0], [-0.01]),
    (ViewPolicy, "target_jitter", [0.0], [-0.01]),
    (ViewPolicy, "up_jitter", [0.0], [-0.01]),
    (ViewPolicy, "neighbour_deg", [0.0, 90.0], [-0.01, 90.1]),
    (GradientConsistencyConfig, "weight", [0.0], [-0.01]),
    (GradientConsistencyConfig, "tolerance", [0.001], [0.0]),
    (GradientConsistencyConfig, "opaque", [0.01, 0.99], [0.0, 1.0]),
]  # fmt: skip


@pytest.mark.parametrize(("cls", "name", "allowed", "refused"), LIMITS)
def test_a_setting_ends_where_it_says(
    cls: type, name: str, allowed: list[Any], refused: list[Any]
) -> None:
    for value in allowed:
        cls(**{name: value})
    for value in refused:
        with pytest.raises(ValueError, match=rf"\.{name}(\.start|\.end)?=.* is not possible"):
            cls(**{name: value})
