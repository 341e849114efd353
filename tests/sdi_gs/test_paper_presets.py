# SPDX-License-Identifier: Apache-2.0
"""The presets for Stable Diffusion: they load, fit the cards they name, and take a step."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from sdi_gs import budget, build
from sdi_gs.budget import GIB
from sdi_gs.config import load
from sdi_gs.diffusion import cost
from sdi_gs.diffusion.published import random_stable_diffusion
from sdi_gs.errors import UserError
from sdi_gs.trainer import train_step

from .test_portions import Second

CONFIGS = Path(__file__).parents[2] / "configs"
PRESETS = [f"sdi_{kind}{card}" for kind in ("gaussians", "nerf") for card in ("", "_8gb", "_12gb")]
SMALL = [
    "prompt=a corgi", "resolution=16", "device=cpu", "steps=20",
    "output.turntable.frames=2",
]  # fmt: skip
SMALL_OF = {
    "gaussians": ["representation.count=300", "representation.max_count=400"],
    "instant_ngp": [
        "representation.grid.log2_size=12", "representation.march.samples=32",
        "representation.march.max_samples=32", "representation.march.resolution=16",
    ],
}  # fmt: skip


def small(name: str, folder: Path):  # type: ignore[no-untyped-def]
    kind = "instant_ngp" if "nerf" in name else "gaussians"
    return load(name, [*SMALL, *SMALL_OF[kind], f"model.source={folder}"])


@pytest.mark.parametrize("name", [*PRESETS, "sdi_released", "sdi_released_nerf"])
def test_a_preset_takes_steps_with_tiny_networks_of_the_same_classes(
    name: str, tiny_model: Path
) -> None:
    training = build.training(small(name, tiny_model))
    (optimizer,) = training.renderer.optimizers
    before = [p.detach().clone() for g in optimizer.param_groups for p in g["params"]]
    for step in (0, 10, 19):
        report = train_step(training, step)
        assert report.evaluations > training.batch
    after = [p for g in optimizer.param_groups for p in g["params"]]
    assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert training.guidance.denoiser.text_encoder is None  # type: ignore[attr-defined]


def test_the_paper_presets_are_the_papers() -> None:
    for name in PRESETS:
        config = load(name)
        assert (config.resolution, config.steps) == (512, 10_000)
        assert (config.guidance.t.high.start, config.guidance.t.high.end) == (1.0, 0.2)
        assert config.guidance.cfg_scale.start == 7.5
        assert config.noise.cfg_scale == -7.5  # type: ignore[union-attr]
        assert config.noise.steps_per_unit == 10  # type: ignore[union-attr]
        assert config.prompts.perp_neg != "none"


def test_presets_for_small_cards_fit_them() -> None:
    """With half a gibibyte for the desktop; and they need less than the preset they come from."""
    sizes = {name: budget.estimate(load(name)).total for name in PRESETS}
    for name, size in sizes.items():
        text = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
        said = re.search(r"Estimated, never measured [^:]*: ([\d.]+) GiB of a card; \d+ min", text)
        assert said is not None, name
        assert float(said[1]) == pytest.approx(size / GIB, abs=0.06), name
    for name, size in sizes.items():
        card = {"_8gb": 8, "12gb": 12}.get(name[-4:], 24)
        assert size < (card - 0.5) * 1e9, name
    assert sizes["sdi_gaussians_8gb"] < 0.8 * sizes["sdi_gaussians"]
    assert sizes["sdi_nerf_8gb"] < 0.7 * sizes["sdi_nerf"]


def test_the_estimate_counts_what_it_should() -> None:
    one, two = (budget.estimate(load("sdi_gaussians", [f"batch={b}"])) for b in (1, 2))
    assert one.weights == pytest.approx(2 * (865_910_724 + 83_653_863), rel=0.01)
    assert one.weights == two.weights
    model = random_stable_diffusion("meta")
    waiting = cost.of_encoding(model, 1).kept_bytes  # the graph, while the UNet is asked
    assert one.activations == waiting + cost.of_prediction(model, 4).peak_bytes
    assert two.activations == pytest.approx(2 * one.activations, rel=0.05)
    portions = budget.estimate(load("sdi_gaussians", ["batch=8", "micro_batch=1"]))
    assert portions == one
    shared = budget.estimate(load("sdi_gaussians", ["batch=2"]), Second())
    assert shared == one
    few, many = (
        budget.estimate(load("sdi_gaussians", [f"representation.max_count={n}"]))
        for n in (100_000, 1_100_000)
    )
    assert many.representation - few.representation == 1_000_000 * 4 * (4 * 14 + 60)
    assert one.total == one.weights + one.activations + one.representation + one.context


def test_a_local_model_is_measured_itself(tiny_model: Path) -> None:
    config = small("sdi_gaussians", tiny_model)
    assert budget.estimate(config).weights < 1e6


def test_a_card_that_is_too_small_is_told_before_loading_what_fits(tiny_model: Path) -> None:
    config = load("sdi_nerf")
    budget.require_card(config, 24 * GIB)
    with pytest.raises(UserError, match=r"about 8\.\d GiB .* 7\.6 GiB are free: use --config "
                       r"sdi_nerf_12gb \(about 7\.\d GiB\)"):  # fmt: skip
        budget.require_card(config, int(7.6 * GIB))
    with pytest.raises(UserError, match="sdi_nerf_8gb"):
        budget.require_card(config, 6 * GIB)
    with pytest.raises(UserError, match=r"model\.vae_memory=bounded"):
        budget.require_card(config, 2 * GIB)
    budget.require_card(load("mini"), 0)  # it fits everywhere
    budget.require_card(small("sdi_gaussians", tiny_model), GIB)
