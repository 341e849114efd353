# SPDX-License-Identifier: Apache-2.0
"""Runs of a shape that is made of latents: no encoder is asked, and its own prior draws it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from representations.interface import Render
from sdi_gs import build, look
from sdi_gs.config import load
from sdi_gs.guidance import GuidanceConfig, ScoreDistillation, Viewpoints
from sdi_gs.guidance.noise import RandomNoise
from sdi_gs.trainer import train_step

from ..tiny import save_settings

Run = Callable[..., Any]
VOXELS = {"kind": "latent_voxels", "size": 6, "samples": 8}


@pytest.fixture
def voxels(tiny_model: Path, tmp_path: Path) -> Path:
    return save_settings(tmp_path / "voxels.yaml", tiny_model, resolution=8, representation=VOXELS,
                         noise={"kind": "random"}, terms={"emptiness": 0.01})  # fmt: skip


def test_a_run_is_trained_stopped_resumed_and_exported(
    sdi_gs: Run, interrupted: Run, voxels: Path, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    words = ["generate", "a red mug", "--config", voxels]
    said = sdi_gs(*words, "--out", whole)
    assert said.code == 0, said.err
    interrupted(*words, "--out", cut)
    assert sdi_gs("resume", cut).code == 0
    for name in ("preview.png", "stats.jsonl"):
        assert (whole / name).stat().st_size > 0
    assert (whole / "preview.png").read_bytes() == (cut / "preview.png").read_bytes()
    for wrong, taught in (("16", "resolution=8"), ("64", "resolution=8")):
        refused = sdi_gs(*words, f"resolution={wrong}", "--out", tmp_path / "r")
        assert refused.code == 2
        assert "latents themselves" in refused.err
        assert refused.err.strip().endswith(taught)


def test_a_prior_of_other_latents_is_refused(
    sdi_gs: Run, voxels: Path, prior_folders: Callable[[str], Path], tmp_path: Path
) -> None:
    said = sdi_gs("generate", "a red mug", "--config", voxels, "--out", tmp_path / "r",
                  f"model.source={prior_folders('if')}")  # fmt: skip
    assert said.code == 2
    assert "is made of 4 latents" in said.err
    assert "has 3: take a prior with 4" in said.err


def test_guidance_takes_the_latents_as_they_are(
    voxels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its gradient is eq. 10 on the latents of the picture, and no encoder is asked in a step."""
    training = build.training(load(str(voxels), ["prompt=a red mug"]))
    model = training.guidance.denoiser  # type: ignore[attr-defined]

    def refuse(rgb: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the encoder was asked")

    monkeypatch.setattr(model, "encode", refuse)
    assert train_step(training, 0).evaluations > 0
    z = torch.randn(2, 4, 8, 8, requires_grad=True)
    grey = torch.full((2, 3, 8, 8), 0.5, requires_grad=True)
    words = training.guidance.subject  # type: ignore[attr-defined]
    method = ScoreDistillation(model, words, RandomNoise(), config=GuidanceConfig(), steps=6)
    nothing = torch.zeros(2, 1, 8, 8)
    render = Render(grey, nothing, nothing, torch.zeros(2, 3, 8, 8), z)
    views = Viewpoints.front(2)
    seen = views.seeing(render, None)  # type: ignore[arg-type]
    guided = method(grey, seen, 0, torch.Generator().manual_seed(1))
    guided.loss.backward()
    assert torch.equal(guided.latents, z.detach())
    assert grey.grad is None
    assert z.grad is not None
    expected = (z.detach() - guided.target) / z.numel()
    assert torch.allclose(z.grad, expected, atol=1e-7)


def test_people_see_what_the_decoder_makes_of_the_latents() -> None:
    """mini's own latents of a picture that no voxel hides: developed, they are its decoding."""
    config = load("mini_sjc", ["prompt=a red mug", "representation.size=4"])
    shape = build.renderer(config, torch.device("cpu"))
    shown = look.stage(config, shape)
    assert shown.darkroom is not None
    assert shown.darkroom.factor == 4
    cameras = config.views.showcase(2, 64, 15.0)
    with torch.no_grad():
        shape.volume.fill_(-40.0)  # type: ignore[attr-defined]
    pictures, alpha = shown.look(cameras)
    assert pictures.shape == (2, 3, 64, 64)
    assert float(alpha.max()) < 1e-6
    assert float(pictures[..., 24:40, 24:40].min()) > 0.95  # the latent of white is white
    odd, _ = shown.look(config.views.showcase(1, 50, 15.0))
    assert odd.shape == (1, 3, 50, 50)
