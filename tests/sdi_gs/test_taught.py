# SPDX-License-Identifier: Apache-2.0
"""What a message tells the user to write works when it is written."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator

from sdi_gs import errors
from sdi_gs.assets import SplatOptions
from sdi_gs.budget import savings
from sdi_gs.config import ConfigError, load
from sdi_gs.errors import UserError
from sdi_gs.guidance.noise import ReleasedInversion

Run = Callable[..., Any]

WRONG = [
    # preset, settings, of which the last is impossible
    ("mini", ["noise.steps=0"]),
    ("mini", ["noise.steps_per_unit=0"]),
    ("mini", ["noise.tau_max=1"]),
    ("mini", ["noise.entropy=-1"]),
    ("mini", ["noise=fixed_point", "noise.iterations=0"]),
    ("mini", ["noise=gradient_descent", "noise.rate=0"]),
    ("mini", ["noise=interval_inversion", "noise.spacing=0"]),
    ("mini", ["noise=interval_inversion", "noise.most_steps=0"]),
    ("mini", ["noise=released_inversion", "noise.spacing=0"]),
    ("mini", ["update=noise_free", "update.low_noise_until=2"]),
    ("mini", ["update=variational", "update.marginal=-1"]),
    ("mini", ["update=variational", "update.rank=0"]),
    ("mini", ["update=stein", "update.decay=1"]),
    ("mini", ["update=stein", "update.rate=-1"]),
    ("mini", ["update=stein", "update.beside_constant=true"]),
    ("mini", ["update=image_space", "update.weight=-1"]),
    ("mini", ["views.distance=[3, 1]"]),
    ("mini", ["views.distance=[0, 1]"]),
    ("mini", ["views.elevation_deg=[0, 100]"]),
    ("mini", ["views.fov_y_deg=[0, 200]"]),
    ("mini", ["views.elevation_sine_share=2"]),
    ("mini", ["views.up_jitter=-1"]),
    ("mini", ["background.color=[2, 0, 0]"]),
    ("mini", ["representation.count=0"]),
    ("mini", ["representation.sh_degree=4"]),
    ("mini", ["representation.init.opacity=2"]),
    ("mini", ["representation.densify.every=0"]),
    ("mini", ["representation.rates.means=0"]),
    ("mini_nerf", ["representation.radius=0"]),
    ("mini_nerf", ["representation.grid.levels=0"]),
    ("mini_nerf", ["representation.march.decay=2"]),
    ("mini_nerf", ["representation.material.lamp_distance=[2, 1]"]),
]


@pytest.mark.parametrize(("preset", "settings"), WRONG, ids=lambda x: str(x)[-40:])
def test_the_setting_that_a_refusal_tells_to_write_is_accepted(
    preset: str, settings: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(preset, settings)
    name = settings[-1].partition("=")[0]
    told = re.search(r"write ((\S+?)=(\[.*?\]|\([^)]*\)|'[^']*'|\S+))$", str(caught.value))
    assert told is not None, caught.value
    assert told[2] == name
    typed = told[1].replace("'", "").replace("(", "[").replace(")", "]")
    load(preset, [*settings[:-1], typed])


def test_the_released_inversion_names_a_setting_that_exists() -> None:
    with pytest.raises(ValueError, match="raise guidance") as caught:
        ReleasedInversion().times(1, 0, 1000)
    name = re.search(r"raise (\S+)", str(caught.value))
    assert name is not None
    load("sdi_released", [f"{name[1]}=0.5"])


def test_what_helps_against_a_full_card_is_typed_as_told() -> None:
    for preset in ("sdi_gaussians", "sdi_nerf", "mini", "mini_nerf"):
        before = load(preset, ["prompt=a mug"])
        same, other = savings(before)
        assert "model.rows=1" in same
        assert other
        after = savings(load(preset, ["prompt=a mug", *same, *other]))
        assert after.same == []  # what is in force is not told again
        assert not set(other) & set(after.other)


@pytest.mark.parametrize(
    ("argv", "on_path", "expected"),
    [
        ("/env/bin/sdi-gs", "/env/bin/sdi-gs", "sdi-gs"),
        (".venv/bin/sdi-gs", None, ".venv/bin/sdi-gs"),
        ("/env/bin/sdi-gs", "/other/bin/sdi-gs", "/env/bin/sdi-gs"),
        ("/site/sdi_gs/__main__.py", "/env/bin/sdi-gs", "sdi-gs"),
        ("/site/sdi_gs/__main__.py", None, f"{shlex.quote(sys.executable)} -m sdi_gs"),
        ("my_script.py", None, f"{shlex.quote(sys.executable)} -m sdi_gs"),
    ],
)
def test_a_command_is_told_as_it_can_be_typed(
    monkeypatch: pytest.MonkeyPatch, argv: str, on_path: str | None, expected: str
) -> None:
    monkeypatch.setattr(sys, "argv", [argv])
    monkeypatch.setattr(errors.shutil, "which", lambda name: on_path)
    assert errors.command("resume", "a run") == f"{expected} resume 'a run'"


def test_the_command_that_continues_a_stopped_run_does(
    sdi_gs: Run, interrupted: Run, fast: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a run with spaces"
    said = interrupted("generate", "a mug", "--config", fast, "--out", out)
    typed = shlex.split(said.err.strip().splitlines()[-1])
    assert typed[:2] == ["sdi-gs", "resume"]
    again = sdi_gs(*typed[1:])
    assert again.code == 0, again.err
    replay = next(line for line in again.out.splitlines() if "replay" in line)
    words = shlex.split(replay.removeprefix("  replay"))
    assert sdi_gs(*words[1:], "--out", tmp_path / "again").code == 0


def test_options_are_named_as_they_are_typed(sdi_gs: Run, fast: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert sdi_gs("generate", "a mug", "--config", fast, "--out", out).code == 0
    for words, expected in (
        (("--sh-degree", 9), "--sh-degree 9: allowed"),
        (("--min-opacity", 2), "--min-opacity 2.0: allowed"),
        (("--format", "glb", "--up", "y"), "--up y: for splats, and --format glb writes"),
        (("--format", "glb", "--resolution", 2), "write --resolution 128"),
        (("--format", "spzz"), "--format spzz: did you mean 'spz'"),
    ):
        said = sdi_gs("export", out, *words)
        assert (said.code, expected in said.err) == (2, True), said.err
    with pytest.raises(UserError, match=r"^sh_degree=9: allowed"):
        SplatOptions(sh_degree=9)


@pytest.mark.parametrize(
    ("assignment", "nearest"),
    [("device=gpu", "cpu"), ("model.dtype=float", "float32"), ("prompts.perp_neg=treestudio", "th"),
     ("representation.init.kind=point", "points"), ("guidance.weight=sigmas", "sigma")],
)  # fmt: skip
def test_a_misspelt_word_names_the_nearest(assignment: str, nearest: str) -> None:
    name, _, word = assignment.partition("=")
    with pytest.raises(
        ConfigError, match=rf"^{name}='{word}' is not known; did you mean '{nearest}"
    ):
        load(None, [assignment])


def test_latents_may_be_drawn_from_the_posterior(tiny_model: Path) -> None:
    """Their mean is the latent that is taken otherwise, their deviation the encoder's own."""
    from sdi_gs.diffusion.stable import StableDiffusion
    from sdi_gs.guidance import GuidanceConfig, ScoreDistillation, Viewpoints
    from sdi_gs.guidance.noise import RandomNoise

    assert load("sdi_released").guidance.latents == "sample"
    assert load("sdi_gaussians").guidance.latents == "mean"
    model = StableDiffusion.load(tiny_model)
    mean, deviation = model.encode_posterior(torch.full((1, 3, 16, 16), 0.3))
    assert torch.equal(mean, model.encode(torch.full((1, 3, 16, 16), 0.3)))
    count = 600
    rgb = torch.full((count, 3, 16, 16), 0.3)
    guide = ScoreDistillation(
        model, "a mug", RandomNoise(), config=GuidanceConfig(latents="sample"), steps=10
    )
    front = Viewpoints.orbit(torch.zeros(count), torch.zeros(count))
    drawn = guide(rgb, front, 0, Generator().manual_seed(0)).latents
    error = (drawn.mean(0) - mean[0]) / (deviation[0] / count**0.5)
    assert float(error.abs().max()) < 5.0  # 256 standard normal numbers
    torch.testing.assert_close(drawn.std(0), deviation[0], rtol=0.15, atol=0.0)


def test_a_model_without_a_posterior_says_so() -> None:
    from sdi_gs.diffusion.analytic import GaussianMixture
    from sdi_gs.guidance import GuidanceConfig, ScoreDistillation

    model = GaussianMixture(torch.zeros(1, 3, 2, 2), torch.ones(1))
    with pytest.raises(ValueError, match=r"write guidance\.latents=mean"):
        ScoreDistillation(model, "x", config=GuidanceConfig(latents="sample"), steps=1)
    load(None, ["guidance.latents=mean"])


def test_a_budget_counts_what_a_method_asks_beside_the_rest() -> None:
    from sdi_gs.budget import estimate

    known = {name: estimate(load("sdi_gaussians", [], name)) for name in ("sds", "csd", "vsd")}
    assert known["csd"].activations > known["sds"].activations  # a third condition, or a fifth
    assert known["vsd"].activations > known["csd"].activations  # a network that learns
    assert known["vsd"].weights > known["sds"].weights
