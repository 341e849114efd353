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
from sdi_gs.guidance import Viewpoints


def test_the_representation_follows_the_run(fast: Path) -> None:
    config = load(str(fast), ["steps=77", "seed=5"])
    shape = build.renderer(config, torch.device("cpu"))
    assert isinstance(shape, GaussianRenderer)
    assert shape.steps == 77
    alike = GaussianRenderer(config.representation, steps=77, seed=5)  # type: ignore[arg-type]
    assert torch.equal(shape.cloud().means, alike.cloud().means)
    assert torch.equal(shape.generator.get_state(), alike.generator.get_state())
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
    assert guidance.steps == 9  # type: ignore[attr-defined]
    assert guidance.noise == config.noise  # type: ignore[attr-defined]
    assert guidance.config == config.guidance  # type: ignore[attr-defined]
    model = build.denoiser(config.model, torch.device("cpu"))  # the run has freed its text encoder
    conditions = guidance.subject.conditions(  # type: ignore[attr-defined]
        Viewpoints.orbit(torch.tensor([0.0, 180.0]), torch.zeros(2))
    )
    for found, texts in (
        (conditions.uncond, ["ugly", "ugly"]),
        (conditions.positive, ["a mug, front view", "a mug, back view"]),
        (conditions.empty, ["", ""]),
    ):
        torch.testing.assert_close(found["hidden"], model.embed(texts)["hidden"])


@pytest.mark.parametrize("kind", list(NOISES.table))
def test_every_noise_makes_a_step(fast: Path, kind: str) -> None:
    from sdi_gs.trainer import train_step

    run = build.training(load(str(fast), ["prompt=a mug", f"noise.kind={kind}"]))
    before = [p.detach().clone() for g in run.renderer.optimizers[0].param_groups
              for p in g["params"]]  # fmt: skip
    report = train_step(run, 0)
    assert report.losses["guidance"] > 1e-3
    assert type(run.guidance.noise).__name__ == NOISES.table[kind].__name__  # type: ignore[attr-defined]
    after = [p for g in run.renderer.optimizers[0].param_groups for p in g["params"]]
    assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_backgrounds(fast: Path) -> None:
    rng = torch.Generator().manual_seed(0)
    solid = load(str(fast), ["background.color=[1, 0.5, 0]"]).background
    for colours in (solid.training(2, rng), solid.still(2)):
        assert colours is not None
        assert colours.tolist() == [[1.0, 0.5, 0.0]] * 2
    random = load(str(fast), ["background=random"]).background
    colours, white = random.training(2, rng), random.still(1)
    assert colours is not None
    assert len(colours.unique()) == 6
    assert white is not None
    assert white.tolist() == [[1.0, 1.0, 1.0]]
    environment = load(str(fast), ["background=environment"]).background
    assert environment.training(2, rng) is None
    assert environment.still(2) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_where_there_is_none(fast: Path) -> None:
    with pytest.raises(UserError, match="sees no CUDA device"):
        build.device("cuda")
    assert build.device("auto").type == "cpu"
    with pytest.raises(UserError, match=r"device='gpu' is not one of auto, cpu, cuda"):
        build.device("gpu")
    with pytest.raises(UserError, match="back-end"):
        build.renderer(load(str(fast), ["representation.backend=cuda"]), torch.device("cpu"))


@pytest.mark.parametrize(("word", "dtype"), [("auto", torch.float32), ("bfloat16", torch.bfloat16)])
def test_precision_follows_the_device(fast: Path, word: str, dtype: torch.dtype) -> None:
    model = build.denoiser(load(str(fast), [f"model.dtype={word}"]).model, torch.device("cpu"))
    for network in (model.network, model.vae, *model.readers):  # type: ignore[attr-defined]
        assert {parameter.dtype for parameter in network.parameters()} == {dtype}


def test_a_prompt_that_is_no_text(fast: Path) -> None:
    for prompt in ("a\nmug", "a \udc80 mug", "\x00"):
        with pytest.raises(UserError, match="no text"):
            build.check_prompt(load(str(fast), [f"prompt={prompt}"]))


def test_a_control_variate_is_refused_where_its_mean_is_not_zero(fast: Path) -> None:
    config = load(str(fast), ["prompt=a mug", "update.kind=stein"])
    with pytest.raises(UserError, match=r"needs noise\.kind=random, got ddim_inversion"):
        build.training(config)
    build.training(load(str(fast), ["prompt=a mug"], "stein"))
