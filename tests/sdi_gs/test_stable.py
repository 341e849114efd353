# SPDX-License-Identifier: Apache-2.0
"""The adapter around diffusers, on tiny random networks of the same classes."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Literal

import pytest
import torch

from sdi_gs.diffusion.base import Condition, Denoiser
from sdi_gs.diffusion.schedule import mix, scaled_linear_alpha_bar
from sdi_gs.diffusion.stable import ModelError, StableDiffusion
from sdi_gs.diffusion.tuning import Tuning, tune


@pytest.fixture(name="folder")
def _folder(tiny_model: Path) -> Path:
    """A pipeline folder as save_pretrained writes it: 16-pixel pictures, 8x8 latents."""
    return tiny_model


def test_it_is_a_denoiser_on_stable_diffusions_schedule(folder: Path) -> None:
    model = StableDiffusion.load(folder)
    assert isinstance(model, Denoiser)
    torch.testing.assert_close(
        model.alpha_bar.double(), scaled_linear_alpha_bar(), rtol=1e-4, atol=1e-6
    )
    assert model.image_size == 16
    assert not any(p.requires_grad for p in model.unet.parameters())


def test_the_gradient_passes_the_encoder(folder: Path) -> None:
    """Finite differences through resize and VAE, in float64."""
    model = StableDiffusion.load(folder)
    model.vae.double()
    rgb = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(1)).double()
    rgb.requires_grad_()

    def value(picture: torch.Tensor) -> torch.Tensor:
        pixels = torch.nn.functional.interpolate(picture, size=(16, 16), mode="bilinear")
        return model.vae.encode(pixels * 2 - 1).latent_dist.mean.square().sum()

    latents = model.encode(rgb)  # float32 at the door
    (latents / model.vae.config.scaling_factor).square().sum().backward()
    assert rgb.grad is not None
    direction = torch.randn(rgb.shape, generator=torch.Generator().manual_seed(2)).double()
    h = 1e-5
    with torch.no_grad():
        numeric = (value(rgb + h * direction) - value(rgb - h * direction)) / (2 * h)
    assert float((rgb.grad * direction).sum()) == pytest.approx(float(numeric), rel=1e-4)


def test_latents_and_pictures_have_their_shapes_and_dtypes(folder: Path) -> None:
    for dtype in ("float32", "bfloat16", "float16"):
        model = StableDiffusion.load(folder, dtype=dtype)
        z = model.encode(torch.rand(2, 3, 16, 16))
        assert (z.shape, z.dtype) == ((2, 4, 8, 8), torch.float32)
        eps = model.predict_noise(z, torch.tensor([3, 900]), model.embed(["a", "b"]))
        assert (eps.shape, eps.dtype) == (z.shape, torch.float32)
        assert model.decode(z).shape == (2, 3, 16, 16)
        assert model.decode(z).dtype == torch.float32


def test_v_prediction_becomes_epsilon(folder: Path) -> None:
    """A network trained for v says v = sqrt(a) eps - sqrt(1 - a) z."""
    model = StableDiffusion.load(folder)
    model.prediction = "v_prediction"
    z, eps = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    t = torch.tensor([100, 800])
    a = model.alpha_bar[t]

    class Knows(torch.nn.Module):
        def forward(self, x, t, encoder_hidden_states):  # type: ignore[no-untyped-def]
            level = a.reshape(-1, 1, 1, 1)
            v = level.sqrt() * eps - (1 - level).sqrt() * z
            return type("Out", (), {"sample": v})

    model.unet = Knows()
    got = model.predict_noise(mix(z, eps, a), t, model.embed(["a", "b"]))
    torch.testing.assert_close(got, eps, rtol=1e-4, atol=1e-5)


def test_a_prompt_is_encoded_the_same_alone_and_in_company(folder: Path) -> None:
    model = StableDiffusion.load(folder)
    together = model.embed(["a red mug", "", "a very long sentence that does not fit at all"])
    assert set(together.parts) == {"hidden"}
    torch.testing.assert_close(together["hidden"][0, 26:], together["hidden"][1, :26])
    alone = model.embed(["a red mug", ""])["hidden"]
    torch.testing.assert_close(together["hidden"][:2, :26], alone)
    # 36 letters for an encoder that reads 24 at once; the others have an empty piece behind them.
    assert together["hidden"].shape == (3, 2 * 26, 16)


@pytest.mark.parametrize(
    ("source", "expected"),
    [("./no/such/folder", "does not exist"), ("nobody/no-such-model-here", "cannot be fetched")],
)
def test_a_missing_model_says_what_to_do(
    source: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=expected) as caught:
        StableDiffusion.load(source)
    assert "mini" in str(caught.value)


def test_broken_folders(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model_index\.json"):
        StableDiffusion.load(tmp_path)
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelError, match="does not load"):
        StableDiffusion.load(broken)
    with pytest.raises(ModelError, match="float8"):
        StableDiffusion.load(folder, dtype="float8")


# --- how a model is run changes no result ---------------------------------------------------------


def asked(model: StableDiffusion) -> torch.Tensor:
    rng = torch.Generator().manual_seed(5)
    x = torch.randn(5, 4, 8, 8, generator=rng)
    t = torch.tensor([10, 300, 500, 700, 990])
    words = 1000.0 * torch.randn(5, 12, 16, generator=rng)  # they count little in a random network
    return model.predict_noise(x, t, Condition({"hidden": words}))


@pytest.mark.parametrize("rows", [1, 2, 5, 7])
def test_rows_asked_a_few_at_a_time_answer_the_same(folder: Path, rows: int) -> None:
    whole = asked(StableDiffusion.load(folder))
    calls: list[int] = []
    model = tune(StableDiffusion.load(folder), Tuning(rows=rows))
    model.unet.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    # Products of matrices of other sizes are summed in another order.
    torch.testing.assert_close(asked(model), whole, rtol=1e-4, atol=3e-5)
    assert sum(calls) == 5
    assert max(calls) == min(rows, 5)


def test_a_compiled_network_answers_the_same(folder: Path, monkeypatch) -> None:
    """By the compiler's front end: what it generates code with is not ours to test."""
    whole = asked(tune(StableDiffusion.load(folder), Tuning()))
    modes: list[object] = []
    real = torch.compile

    def spy(module, **options):  # type: ignore[no-untyped-def]
        modes.append(options.pop("mode"))
        return real(module, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", spy)
    model = tune(StableDiffusion.load(folder), Tuning(compile="reduce-overhead"))
    torch.testing.assert_close(asked(model), whole, rtol=1e-5, atol=1e-6)
    assert modes == ["reduce-overhead"]


def test_channels_last_changes_no_more_than_rounding(folder: Path) -> None:
    model = tune(StableDiffusion.load(folder), Tuning())
    kernels = [m.weight for m in model.unet.modules() if isinstance(m, torch.nn.Conv2d)]
    wide = [weight for weight in kernels if weight.shape[2] > 1 and weight.shape[1] > 1]
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in wide)
    plain = asked(StableDiffusion.load(folder))
    # Sums of some hundred float32 products in another order, through a dozen random layers.
    torch.testing.assert_close(asked(model), plain, rtol=1e-4, atol=1e-4)


def _sized(sizes: list[int], kept: torch.Tensor) -> torch.Tensor:
    if not isinstance(kept, torch.nn.Parameter):
        sizes.append(kept.numel())
    return kept


@pytest.mark.parametrize("engine", ["plain", "diffusers"])
def test_a_bounded_encoder_has_the_same_latents_and_gradient(
    folder: Path, engine: Literal["plain", "diffusers"]
) -> None:
    """And keeps less for the backward pass: neither network's blocks are overlooked."""
    found, kept = [], []
    for memory in ("full", "bounded"):
        model = tune(StableDiffusion.load(folder, engine=engine), Tuning(vae_memory=memory))  # type: ignore[arg-type]
        sizes: list[int] = []
        rgb = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        rgb.requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(partial(_sized, sizes), lambda kept: kept):
            latents = model.encode(rgb)
        latents.square().sum().backward()
        found.append((latents.detach(), rgb.grad))
        kept.append(sum(sizes))
    assert kept[1] < 0.6 * kept[0]
    for full, bounded in zip(*found, strict=True):
        torch.testing.assert_close(bounded, full, rtol=1e-5, atol=1e-6)


def test_a_model_that_gave_its_words_away_says_so(folder: Path) -> None:
    model = StableDiffusion.load(folder)
    words = model.embed(["a", "b", "c", "d", "e"])
    model.forget_words()
    assert model.text_encoder is None
    with pytest.raises(RuntimeError, match=r"forget_words"):
        model.embed(["a"])
    assert model.predict_noise(torch.zeros(5, 4, 8, 8), torch.full((5,), 9), words).shape[0] == 5
