# SPDX-License-Identifier: Apache-2.0
"""A run of the program with a prior of every family, on splats and on a field."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Generator, Tensor

from representations.cameras import azimuth_in_half_turn
from sdi_gs import methods
from sdi_gs.config import guidances, load
from sdi_gs.diffusion.base import Condition, ToldOfCameras
from sdi_gs.diffusion.latents import Prior
from sdi_gs.diffusion.load import load_prior
from sdi_gs.guidance import Guidance, PromptConfig, PromptSet, Viewpoints
from sdi_gs.guidance.draws import ViewSlice
from sdi_gs.guidance.predict import GuidedPredictor

from ..tiny import FIELD, FIELD_TERMS, save_settings
from ..tiny_priors import ADAPTED, ADAPTER, FAMILIES, how
from .doubles import before_a_wall
from .test_prior_folders import single_file

DOCS = Path(__file__).parents[2] / "docs" / "priors.md"
TAUGHT = DOCS.read_text(encoding="utf-8").split("model.adapter=/models/", 1)[1].split("```", 1)[0]
"""What the page types behind the adapter's file."""
EACH = (*FAMILIES, *ADAPTED)


@pytest.mark.parametrize("representation", ["splats", "field"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_command_takes_a_step(
    family: str, representation: str, tmp_path: Path, prior_folders: Any, sdi_gs: Any
) -> None:
    more = {} if representation == "splats" else {"representation": FIELD, "terms": FIELD_TERMS}
    config = save_settings(tmp_path / "fast.yaml", tmp_path / "nothing", **more)
    folder, out = prior_folders(family), tmp_path / "run"
    said = sdi_gs(
        "generate", "a red mug", "--config", config, "--out", out, f"model.source={folder}",
        "steps=1", "batch=4", "output.turntable.frames=1", "output.preview_every=0",
    )  # fmt: skip
    assert said.code == 0, said.err
    assert (out / "final.ply").exists() or (out / "final.glb").exists()
    assert yaml.safe_load((out / "config.yaml").read_text())["model"]["source"] == str(folder)


@pytest.mark.parametrize("family", ADAPTED)
def test_the_command_takes_a_step_with_an_adapter(
    family: str, tmp_path: Path, prior_folders: Any, sdi_gs: Any
) -> None:
    """With the cameras that it was taught with, as docs/priors.md writes them. The run remembers
    its file; a batch that is no whole group is refused before it begins."""
    config = save_settings(tmp_path / "fast.yaml", tmp_path / "nothing")
    folder = prior_folders(family)
    given = [f"model.source={folder}", f"model.adapter={folder / ADAPTER}", "steps=1",
             "output.turntable.frames=1", "output.preview_every=0"]  # fmt: skip
    words = ["generate", "a red mug", "--config", config, "--out"]
    given += re.findall(r"(?:views\.\w+=\[.*?\]|prompts\.\S+)", TAUGHT)
    assert len(given) == 12
    said = sdi_gs(*words, tmp_path / "run", *given, "batch=6")
    assert said.code == 0, said.err
    assert (tmp_path / "run" / "final.ply").exists()
    kept = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["model"]
    assert kept["adapter"] == str(folder / ADAPTER)
    said = sdi_gs(*words, tmp_path / "two", *given, "batch=4")
    assert said.code == 2
    assert "in groups of 6 views" in said.err
    assert "batch=6" in said.err
    said = sdi_gs(*words, tmp_path / "two", *given, "batch=6", "views.group_azimuth_deg=[0,90]")
    assert said.code == 2
    assert "write views.group_azimuth_deg=[0, 60, 120, 180, 240, 300]" in said.err
    assert not (tmp_path / "two").exists()


def test_the_command_names_what_a_prior_is_made_of(
    tmp_path: Path, prior_folders: Any, sdi_gs: Any
) -> None:
    """A single file, where its settings are, and a LoRA: as settings of the run, which remembers
    them; and a fault in one of them is the user's."""
    folder = prior_folders("sd15")
    model = single_file(folder, tmp_path / "v1.safetensors")
    layer = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    pair = {f"{layer}.lora_{k}.weight": torch.zeros(s) for k, s in (("A", (2, 16)), ("B", (16, 2)))}
    save_file(pair, tmp_path / "style.safetensors")
    config = save_settings(tmp_path / "fast.yaml", model)
    given = [f"model.layout={folder}", f"model.lora={tmp_path / 'style.safetensors'}",
             "model.lora_scale=0.7"]  # fmt: skip
    short = ["steps=1", "output.turntable.frames=1", "output.preview_every=0"]
    out = tmp_path / "run"
    said = sdi_gs("generate", "a red mug", "--config", config, "--out", out, *given, *short)
    assert said.code == 0, said.err
    kept = yaml.safe_load((out / "config.yaml").read_text())["model"]
    assert (kept["lora_scale"], kept["layout"]) == (0.7, str(folder))
    said = sdi_gs("generate", "a red mug", "--config", config, "--out", tmp_path / "two")
    assert said.code == 2
    assert "model.layout=FOLDER" in said.err
    assert not (tmp_path / "two").exists()


# --- methods ------------------------------------------------------------------------------------

VIEWS = Viewpoints.orbit(torch.tensor([20.0, -130.0]), torch.tensor([10.0, 40.0]))


def around(views: int) -> Viewpoints:
    """Two groups."""
    turn = torch.arange(views) * (360.0 / views)
    return Viewpoints.orbit(
        azimuth_in_half_turn(torch.cat([turn + 20.0, turn + 50.0])),
        torch.tensor([10.0, 40.0]).repeat_interleave(views),
        torch.full((2 * views,), 3.0),
    )


def seen(model: Prior) -> Viewpoints:
    """Two views, or two groups of those that are seen together."""
    views = model.views_together
    return before_a_wall(VIEWS if views == 1 else around(views), 16)


def pictures_of(model: Prior) -> Tensor:
    """As many pictures, other ones each."""
    shape = (len(seen(model)), 3, 16, 16)
    return torch.rand(shape, generator=Generator().manual_seed(9))


def of_group(model: Prior, k: int) -> slice:
    """The rows of the view, or of the group, ``k``."""
    return slice(k * model.views_together, (k + 1) * model.views_together)


@pytest.fixture(scope="module")
def models(prior_folders: Any) -> Any:
    """A loaded model of each family."""

    @cache
    def made(family: str) -> Prior:
        folder = prior_folders(family)
        return load_prior(folder, how(folder))

    return made


def method_of(name: str, model: Prior, perp_neg: str = "threestudio") -> Guidance:
    settings = ["prompt=a mug", "model.source=x", "steps=100", f"prompts.perp_neg={perp_neg}"]
    config = load("mini", settings, name)
    prompts = PromptSet(model, config.prompt, config.negative_prompt, config.prompts)
    return methods.guidance(config, model, prompts, config.noise)


@pytest.mark.parametrize("family", ["sdxl", "sd35", "if", "mv", "mva"])
@pytest.mark.parametrize("name", guidances())
def test_every_method_runs_on_every_family(name: str, family: str, models: Any) -> None:
    model = models(family)
    method = method_of(name, model, "none")
    rgb = pictures_of(model).requires_grad_()
    for step in (40, 41):
        guided = method(rgb, seen(model), step, Generator().manual_seed(step))
    (gradient,) = torch.autograd.grad(guided.loss, rgb)
    assert bool(torch.isfinite(gradient).all())
    assert float(gradient.abs().max()) > 0.0


@pytest.mark.parametrize("family", EACH)
@pytest.mark.parametrize("name", ["sds", "sdi", "ism", "nfsd"])
def test_two_views_get_what_each_gets_alone(name: str, family: str, models: Any) -> None:
    model = models(family)
    method = method_of(name, model)
    pictures, views = pictures_of(model), seen(model)
    count = len(views)
    whole = ViewSlice(Generator().manual_seed(2), 0, count)
    together = method(pictures, views, 40, whole).target
    scale = float(together.abs().max())
    for k in (0, 1):
        one = of_group(model, k)
        rng = ViewSlice(Generator().manual_seed(2), one.start, count)
        alone = method(pictures[one], views[one], 40, rng).target
        # float32; several guided calls of a random network multiply its rounding.
        torch.testing.assert_close(alone, together[one], rtol=1e-3, atol=5e-4 * scale)
    assert float((together[0] - together[-1]).abs().max()) > 1e-2 * scale


@pytest.mark.parametrize("family", EACH)
@pytest.mark.parametrize("perp_neg", ["none", "threestudio"])
def test_guidance_is_its_formula_on_every_family(family: str, perp_neg: str, models: Any) -> None:
    """The whole call beside the formula, with the network asked one row and condition at a time."""
    model = models(family)
    subject = PromptSet(model, "a mug", "grey", PromptConfig(perp_neg=perp_neg))  # type: ignore
    conditions = subject.conditions(seen(model))
    z = model.encode(pictures_of(model))
    t = torch.tensor([300, 700]).repeat_interleave(model.views_together)
    guided = GuidedPredictor(model, conditions)(z, t, 7.5)
    for k in (0, 1):
        row = torch.arange(len(z))[of_group(model, k)]

        def eps(c: Condition, row: Tensor = row) -> Tensor:
            return model.predict_noise(z[row], t[row], c.rows(row))

        uncond = eps(conditions.uncond)
        positive = eps(conditions.positive) - uncond
        direction = positive
        for i, negative in enumerate(conditions.negatives):
            e = eps(negative) - uncond
            assert conditions.weights is not None
            dims = (1, 2, 3)
            along = (e * positive).sum(dims) / positive.square().sum(dims)
            weight = conditions.weights[row, i].reshape(-1, 1, 1, 1)
            direction = direction + weight * (e - along.reshape(-1, 1, 1, 1) * positive)
        expected = uncond + 7.5 * direction
        scale = float(expected.abs().max())
        torch.testing.assert_close(guided[row], expected, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("family", EACH)
def test_a_second_network_starts_as_the_frozen_one_and_learns(family: str, models: Any) -> None:
    model = models(family)
    learner = model.learner("a mug", 2, 1e-2)
    z = model.encode(pictures_of(model))
    t = torch.tensor([200, 800]).repeat_interleave(model.views_together)
    words, cameras = model.embed(["a mug"] * len(z)), seen(model).camera_to_world.float()
    if isinstance(model, ToldOfCameras):
        words = model.seen_from(words, cameras)
    with torch.no_grad():
        frozen = model.predict_noise(z, t, words)
    poses = cameras.flatten(1)
    torch.testing.assert_close(learner.predict(z, t, poses), frozen)
    before = [p.clone() for p in model.network.parameters()]
    losses = [float(learner.learn(z, poses, Generator().manual_seed(1))) for _ in range(20)]
    assert losses[-1] < 0.98 * losses[0]
    assert all(torch.equal(a, b) for a, b in zip(before, model.network.parameters(), strict=True))
    assert float((learner.predict(z, t, poses) - learner.predict(z, t, None)).abs().max()) > 1e-4
