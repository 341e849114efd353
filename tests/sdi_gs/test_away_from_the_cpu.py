# SPDX-License-Identifier: Apache-2.0
"""Guidance on another device than the CPU, without one: tensors on ``meta`` refuse to be mixed
with those of the CPU and have no values to read, as if every read of a card were forbidden."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sdi_gs import methods
from sdi_gs.config import guidances, load
from sdi_gs.diffusion.stable import StableDiffusion
from sdi_gs.guidance import PromptSet, Viewpoints, distillation

from .doubles import before_a_wall

META = torch.device("meta")
VIEWS = before_a_wall(
    Viewpoints.orbit(torch.tensor([20.0, -130.0]), torch.tensor([10.0, 40.0])), 16, META
)
READ = ("cfd", "gsd")
"""They count the cells that their pictures see, and a card has to say how many there are."""


@pytest.fixture(scope="module")
def away(tiny_model: Path) -> StableDiffusion:
    """Half precision inside, as on a card."""
    here = StableDiffusion.load(tiny_model)
    networks = [m.half().to(META) for m in (here.unet, here.vae, here.text_encoder)]

    class Schedule:
        alphas_cumprod = here.alpha_bar
        config = type("Config", (), {"prediction_type": here.prediction})

    return StableDiffusion(*networks, here.tokenizer, Schedule())


def test_meta_is_strict() -> None:
    there = torch.zeros(2, device=META)
    with pytest.raises(RuntimeError):
        there + torch.zeros(2)
    with pytest.raises((RuntimeError, NotImplementedError)):
        bool((there > 0).all())


@pytest.mark.parametrize("perp_neg", ["none", "threestudio"])
@pytest.mark.parametrize("name", [name for name in guidances() if name not in READ])
def test_every_method_stays_where_the_pictures_are_and_reads_nothing(
    away: StableDiffusion, name: str, perp_neg: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The schedule is looked at once, when a method is made, and here there is nothing to look at.
    monkeypatch.setattr(distillation, "require_signal", lambda alpha_bar: alpha_bar)
    config = load("sdi_gaussians", ["prompt=a mug", "batch=2", f"prompts.perp_neg={perp_neg}"],
                  name)  # fmt: skip
    prompts = PromptSet(away, config.prompt, config.negative_prompt, config.prompts)
    method = methods.guidance(config, away, prompts, config.noise)
    rgb = torch.zeros(2, 3, 16, 16, device=META, requires_grad=True)
    guided = method(rgb, VIEWS, 40, torch.Generator().manual_seed(0))
    guided.loss.backward()
    for tensor in (guided.loss, guided.target, guided.kappa, guided.x_t, rgb.grad):
        assert tensor is not None
        assert tensor.device == META
        assert tensor.dtype == torch.float32  # half precision stays inside of the denoiser
    assert guided.t.device == META
