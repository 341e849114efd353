# SPDX-License-Identifier: Apache-2.0
"""From words to objects: every word has one, and settings of the run reach the parts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from representations.gaussians import GaussianRenderer
from sdi_gs import build
from sdi_gs.config import NOISES, load
from sdi_gs.errors import UserError
from sdi_gs.guidance.prompts import ViewAngles


def test_the_representation_follows_the_run(fast: Path) -> None:
    config = load(str(fast), ["steps=77", "seed=5"])
    shape = build.renderer(config, torch.device("cpu"))
    assert isinstance(shape, GaussianRenderer)
    assert (shape.config.steps, shape.config.seed, shape.config.init.seed) == (77, 5, 5)
    other = build.renderer(load(str(fast), ["seed=6"]), torch.device("cpu"))
    assert isinstance(other, GaussianRenderer)
    assert not torch.equal(shape.cloud().means, other.cloud().means)


def test_the_run_reaches_every_part(fast: Path) -> None:
    config = load(
        str(fast), ["prompt=a mug", "negative_prompt=ugly", "terms.opaque=0.5", "steps=9"]
    )
    run = build.training(config)
    assert (run.steps, run.batch, run.resolution) == (9, 2, 16)
    assert run.weights == config.terms
    assert run.views == config.views
    guidance = run.guidance
    assert guidance.total_steps == 9  # type: ignore[attr-defined]
    assert guidance.noise == config.noise  # type: ignore[attr-defined]
    assert guidance.config == config.guidance  # type: ignore[attr-defined]
    model = build.denoiser(config, torch.device("cpu"))  # the run has freed its text encoder
    conditions = guidance.prompt.conditions(  # type: ignore[attr-defined]
        ViewAngles(torch.tensor([0.0, 180.0]), torch.zeros(2))
    )
    torch.testing.assert_close(conditions.uncond[:1], model.embed(["ugly"]))
    torch.testing.assert_close(
        conditions.positive, model.embed(["a mug, front view", "a mug, back view"])
    )


@pytest.mark.parametrize("kind", NOISES)
def test_every_noise_makes_a_step(fast: Path, kind: str) -> None:
    from sdi_gs.trainer import train_step

    run = build.training(load(str(fast), ["prompt=a mug", f"noise.kind={kind}"]))
    report = train_step(run, 0)
    assert report.loss > 0.0


def test_backgrounds(fast: Path) -> None:
    rng = torch.Generator().manual_seed(0)
    solid = load(str(fast), ["background.color=[1, 0.5, 0]"])
    assert build.background(solid)(2, rng).tolist() == [[1.0, 0.5, 0.0]] * 2  # type: ignore[union-attr]
    assert build.still_background(solid, 1).tolist() == [[1.0, 0.5, 0.0]]  # type: ignore[union-attr]
    random = load(str(fast), ["background=random"])
    colours = build.background(random)(2, rng)
    assert colours is not None
    assert len(colours.unique()) == 6
    assert build.still_background(random, 1).tolist() == [[1.0, 1.0, 1.0]]  # type: ignore[union-attr]
    environment = load(str(fast), ["background=environment"])
    assert build.background(environment)(2, rng) is None
    assert build.still_background(environment, 2) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_where_there_is_none(fast: Path) -> None:
    with pytest.raises(UserError, match="sees no CUDA device"):
        build.device(load(str(fast), ["device=cuda"]))
    assert build.device(load(None)).type == "cpu"
    with pytest.raises(UserError, match="back-end"):
        build.renderer(load(str(fast), ["representation.backend=cuda"]), torch.device("cpu"))


def test_precision_follows_the_device(fast: Path) -> None:
    model = build.denoiser(load(str(fast), ["model.dtype=auto"]), torch.device("cpu"))
    assert model.dtype == torch.float32  # type: ignore[attr-defined]
    model = build.denoiser(load(str(fast), ["model.dtype=bfloat16"]), torch.device("cpu"))
    assert model.dtype == torch.bfloat16  # type: ignore[attr-defined]


def test_a_prompt_that_is_no_text(fast: Path) -> None:
    for prompt in ("a\nmug", "a \udc80 mug", "\x00"):
        with pytest.raises(UserError, match="no text"):
            build.check_prompt(load(str(fast), [f"prompt={prompt}"]))


def test_a_control_variate_is_refused_where_its_mean_is_not_zero(fast: Path) -> None:
    config = load(str(fast), ["prompt=a mug", "update.kind=stein"])
    with pytest.raises(UserError, match=r"needs noise\.kind=random, got ddim_inversion"):
        build.training(config)
    build.training(load(str(fast), ["prompt=a mug"], "stein"))
