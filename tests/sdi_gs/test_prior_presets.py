# SPDX-License-Identifier: Apache-2.0
"""The presets for SDXL and SD 3.5: their published sizes, what they are estimated to take, and a
step of each with tiny networks of the same classes."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from sdi_gs import budget, build
from sdi_gs.budget import GIB, Budget
from sdi_gs.config import Config, load, presets
from sdi_gs.diffusion import cost
from sdi_gs.diffusion.load import load_prior
from sdi_gs.diffusion.published import KNOWN, shaped, sizes_of
from sdi_gs.diffusion.source import How
from sdi_gs.diffusion.tuning import Tuning, tune
from sdi_gs.errors import UserError
from sdi_gs.team import ALONE, Team
from sdi_gs.trainer import train_step

from .test_paper_presets import CONFIGS, small

PRESETS = {"sdxl_gaussians": "sdxl", "sdxl_nerf": "sdxl", "sd35_gaussians": "sd35",
           "sd35_nerf": "sd35"}  # fmt: skip
XL, MEDIUM = KNOWN


def test_the_sizes_have_the_numbers_of_parameters_that_are_told() -> None:
    """SDXL: 2.6 billion; CLIP L, CLIP G and T5-XXL; SD 3.5 medium: 2.5 billion with its table of
    positions (384 x 384 places of 1,536 numbers),
    which is no parameter."""

    def count(module: Any) -> int:
        return sum(p.numel() for p in module.parameters())

    xl, medium = (shaped(KNOWN[name]) for name in (XL, MEDIUM))
    assert (count(xl.network), count(xl.vae)) == (2_567_463_684, 83_653_863)
    assert [count(m) for m in xl.readers] == [123_060_480, 694_659_840]
    assert [count(m) for m in medium.readers] == [123_650_304, 694_659_840, 4_762_310_656]
    assert (count(medium.vae), xl.image_size, medium.image_size) == (83_819_683, 1024, 1024)
    table = 384 * 384 * 1536
    assert count(medium.network) + table == pytest.approx(2.47e9, rel=1e-3)
    assert cost.parameter_bytes(medium.network) == 2 * (count(medium.network) + table)
    # The autoencoder of SDXL is kept in float32, T5's second matrices are.
    assert cost.parameter_bytes(xl.vae) == 4 * count(xl.vae)
    assert cost.parameter_bytes(medium.readers[2]) > 2 * count(medium.readers[2])
    half = shaped(KNOWN[MEDIUM], dtype=torch.bfloat16).readers[2]
    assert cost.parameter_bytes(half) == 2 * count(half)


@pytest.mark.parametrize("family", ["sdxl", "sd35"])
def test_presets_say_what_they_are_estimated_to_take(family: str) -> None:
    """The networks are counted once: beside them the two presets differ in what is rendered."""
    found = budget.estimate(load(f"{family}_gaussians"))
    for kind in ("gaussians", "nerf"):
        name = f"{family}_{kind}"
        config = load(name)
        rendered = config.representation.training_bytes(1, config.resolution)  # type: ignore
        size = found._replace(representation=rendered).total
        text = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
        said = re.search(r"Estimated, never measured [^:]*: ([\d.]+) GiB of a card; \d+ min", text)
        assert said is not None
        assert float(said[1]) == pytest.approx(size / GIB, abs=0.06)
        assert name in presets()


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_takes_a_step_with_tiny_networks(name: str, prior_folders: Any) -> None:
    training = build.training(small(name, prior_folders(PRESETS[name])))
    report = train_step(training, 10)
    assert report.evaluations > training.batch
    assert not training.guidance.denoiser.readers  # type: ignore[attr-defined]


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd35", "if", "mv"])
def test_a_folder_of_any_family_is_measured_itself(family: str, prior_folders: Any) -> None:
    config = small("sdi_gaussians", prior_folders(family))
    found = budget.estimate(config)
    assert 0 < found.weights < 1e6
    assert 0 < found.words < 1e6
    assert 0 < found.activations < 2e7
    learned = budget.estimate(load("sdi_gaussians", [f"model.source={config.model.source}"], "vsd"))
    assert learned.weights > found.weights  # the second network's


def test_views_that_are_seen_together_are_spared_as_groups(prior_folders: Any) -> None:
    """What is proposed works when it is typed, and a model without a VAE is not told of it."""
    config = small("sdi_gaussians", prior_folders("mv")).model_copy(update={"batch": 8})
    same, _ = budget.savings(config)
    assert same == ["micro_batch=4", "model.rows=4", "model.vae_memory=bounded"]
    tune(load_prior(prior_folders("mv"), How()), Tuning(rows=4))
    with pytest.raises(UserError, match=r"write batch=4 model\.rows=4 model\.vae_memory=bounded,"):
        budget.require_card(config, 1000)
    pixels = small("sdi_gaussians", prior_folders("if"))
    assert "model.vae_memory=bounded" not in budget.savings(pixels)[0]
    with pytest.raises(UserError, match=r"write batch=1 model\.rows=1, close"):
        budget.require_card(pixels, 1000)
    # A row less than a group needs the group.
    one = cost.of_prediction(shaped(sizes_of(str(prior_folders("mv")))), 1)
    four = cost.of_prediction(shaped(sizes_of(str(prior_folders("mv")))), 4)
    assert one == four


def test_what_fits_instead_is_of_the_same_family(monkeypatch: pytest.MonkeyPatch) -> None:
    """With sizes that are made up, since those of all presets take long to count."""

    def estimated(config: Config, team: Team = ALONE) -> Budget:
        one = 11 if config.model.source == XL else 4
        return Budget(GIB * one * config.batch, 0, 0, 0, 0)

    monkeypatch.setattr(budget, "estimate", estimated)
    with pytest.raises(UserError, match=r"use --config sdxl_gaussians \(about 11\.0 GiB\)"):
        budget.require_card(load("sdxl_gaussians", ["batch=2"]), 13 * GIB)
    with pytest.raises(UserError, match=r"model\.vae_memory=bounded"):
        budget.require_card(load("sdxl_gaussians"), 9 * GIB)
    # SDXL's preset would fit, and is another model.
    with pytest.raises(UserError, match="use --config sdi_"):
        budget.require_card(load("sdi_gaussians", ["batch=8"]), 12 * GIB)
    assert sizes_of("someone/else").family == "StableDiffusionPipeline"
