# SPDX-License-Identifier: Apache-2.0
"""Priors of every family, as tiny random networks of the published classes: what each answers is
what its own pipeline makes of its parts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sdi_gs.diffusion.base import Adaptable, Condition, Denoiser, ToldOfCameras
from sdi_gs.diffusion.folder import ModelError
from sdi_gs.diffusion.latents import Prior
from sdi_gs.diffusion.load import load_prior
from sdi_gs.diffusion.source import How
from sdi_gs.diffusion.together import see_together
from sdi_gs.diffusion.tuning import Tuning, tune
from sdi_gs.guidance import Viewpoints

from ..tiny_priors import ADAPTED, FAMILIES, how

Folders = Callable[[str], Path]
WORDS = ["a red mug", "a blue owl, side view", ""]


@pytest.fixture(params=(*FAMILIES, *ADAPTED))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def question(model: Prior) -> tuple[Tensor, Tensor, Condition]:
    """Noisy latents, times and words, whose influence a random network shows: three, or three
    groups of views that are seen together."""
    views = model.views_together
    z = model.encode(torch.rand(1, 3, 16, 16))
    x_t = randn(3 * views, *z.shape[1:], seed=1)
    each = torch.arange(3).repeat_interleave(views)
    words = louder(model.embed(WORDS)).rows(each)
    if isinstance(model, ToldOfCameras):
        around = torch.arange(3.0 * views) * 90.0
        viewpoints = Viewpoints.orbit(around, torch.full_like(around, 20.0))
        words = model.seen_from(words, viewpoints.camera_to_world)
    return x_t, torch.tensor([10, 500, 900])[each], words


def louder(condition: Condition) -> Condition:
    """Words count little in a random network."""
    return Condition(
        {k: 30.0 * p if p.is_floating_point() else p for k, p in condition.parts.items()}
    )


# --- what holds for every family ------------------------------------------------------------------


def test_a_family_is_a_denoiser_that_answers_alike_alone_and_together(
    prior_folders: Folders, family: str
) -> None:
    folder = prior_folders(family)
    model = load_prior(folder, how(folder))
    assert isinstance(model, Denoiser)
    assert isinstance(model, Adaptable)
    assert not any(p.requires_grad for p in model.network.parameters())
    x_t, t, words = question(model)
    whole = model.predict_noise(x_t, t, words)
    assert (whole.shape, whole.dtype) == (x_t.shape, torch.float32)
    views = model.views_together
    assert float((whole[0] - whole[views]).abs().max()) > 1e-3
    model.rows = 2 * views
    torch.testing.assert_close(model.predict_noise(x_t, t, words), whole, rtol=1e-4, atol=3e-5)
    for k in range(3):
        row = torch.arange(k * views, (k + 1) * views)
        alone = model.predict_noise(x_t[row], t[row], words.rows(row))
        torch.testing.assert_close(alone, whole[row], rtol=1e-4, atol=3e-5)
    other = model.predict_noise(x_t, t, words.rows(torch.arange(3 * views).roll(-views)))
    assert float((other - whole).abs().max()) > 1e-5  # the words are heard


def test_a_family_takes_the_gradient_through_its_encoder(
    prior_folders: Folders, family: str
) -> None:
    """Finite differences in float64, a picture of another size than the model's."""
    folder = prior_folders(family)
    model = load_prior(folder, how(folder))
    if model.vae is not None:
        model.vae.double()
    rgb = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(1)).double()
    along = randn(1, 3, 24, 24, seed=2).double()
    rgb.requires_grad_()
    value = model.encode(rgb)
    weight = randn(*value.shape, seed=3)
    (value * weight).sum().backward()
    assert rgb.grad is not None
    h = 1e-3  # what comes out is float32
    with torch.no_grad():
        there, back = (model.encode(rgb + sign * h * along) for sign in (1.0, -1.0))
        numeric = float(((there - back).double() * weight).sum() / (2 * h))
    assert float((rgb.grad * along).sum()) == pytest.approx(numeric, rel=2e-3)


def test_a_family_gives_its_words_away_and_says_so(prior_folders: Folders, family: str) -> None:
    folder = prior_folders(family)
    model = load_prior(folder, how(folder))
    x_t, t, words = question(model)
    assert model.readers
    model.forget_words()
    assert not model.readers
    with pytest.raises(RuntimeError, match="forget_words"):
        model.embed(["a mug"])
    assert model.predict_noise(x_t, t, words).shape == x_t.shape


# --- SDXL -----------------------------------------------------------------------------------------


def test_sdxl_answers_as_its_pipeline_asks(prior_folders: Folders) -> None:
    from diffusers import StableDiffusionXLPipeline

    folder = prior_folders("sdxl")
    pipe: Any = StableDiffusionXLPipeline.from_pretrained(folder)
    model = load_prior(folder, How())
    with torch.no_grad():
        hidden, _, pooled, _ = pipe.encode_prompt("a red mug", do_classifier_free_guidance=False)
        ids = pipe._get_add_time_ids(
            (16, 16), (0, 0), (16, 16), torch.float32,
            text_encoder_projection_dim=pipe.text_encoder_2.config.projection_dim,
        )  # fmt: skip
        x_t, t = randn(1, 4, 8, 8), torch.tensor([321])
        eps = pipe.unet(
            x_t, t, encoder_hidden_states=hidden,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": ids},
        ).sample  # fmt: skip
    words = model.embed(["a red mug"])
    torch.testing.assert_close(words["hidden"], hidden)
    torch.testing.assert_close(words["pooled"], pooled)
    assert words["time_ids"].tolist() == [[16, 16, 0, 0, 16, 16]]
    torch.testing.assert_close(model.predict_noise(x_t, t, words), eps, rtol=1e-5, atol=1e-6)


def test_sdxl_is_told_no_words_as_zeros(prior_folders: Folders) -> None:
    words = load_prior(prior_folders("sdxl"), How()).embed(["", "a", " "])
    for part in ("hidden", "pooled"):
        size = words[part].flatten(1).abs().amax(1)
        assert size[0] == 0.0
        assert float(size[1:].min()) > 0.0


# --- SD 3 -----------------------------------------------------------------------------------------


def pipeline_of(name: str, folder: Path, **parts: None) -> Any:
    import diffusers

    return getattr(diffusers, name).from_pretrained(folder, **parts)


def told_by_sd3(pipe: Any, text: str) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        hidden, _, pooled, _ = pipe.encode_prompt(
            text, None, None, do_classifier_free_guidance=False
        )
    return hidden, pooled


def test_sd3_answers_as_its_pipeline_asks(prior_folders: Folders) -> None:
    """The velocity, at a time of the flow's own scheduler, means the noise that it is."""
    pipe = pipeline_of("StableDiffusion3Pipeline", prior_folders("sd35"))
    model = load_prior(prior_folders("sd35"), How())
    hidden, pooled = told_by_sd3(pipe, "a red mug")
    words = model.embed(["a red mug"])
    torch.testing.assert_close(words["hidden"], hidden)
    torch.testing.assert_close(words["pooled"], pooled)
    at = 300  # of the table; the scheduler counts down from the most noise
    s = pipe.scheduler.sigmas[1000 - 1 - at]
    time = pipe.scheduler.timesteps[1000 - 1 - at]
    x, eps = randn(1, 16, 8, 8), randn(1, 16, 8, 8, seed=1)
    z = (1 - s) * x + s * eps
    with torch.no_grad():
        v = pipe.transformer(
            hidden_states=z, timestep=time[None], encoder_hidden_states=hidden,
            pooled_projections=pooled,
        ).sample  # fmt: skip
    level = model.alpha_bar[at]
    x_t = level.sqrt() * x + (1 - level).sqrt() * eps
    got = model.predict_noise(x_t, torch.tensor([at]), words)
    torch.testing.assert_close(got, z + (1 - s) * v, rtol=1e-4, atol=1e-5)
    denoised = (x_t - (1 - level).sqrt() * got) / level.sqrt()
    torch.testing.assert_close(denoised, z - s * v, rtol=1e-4, atol=1e-5)
    assert len(model.alpha_bar) == 970  # shift 3: alpha_bar is 1e-4 at 970.9 thousandths


def test_sd3_latents_are_moved_and_scaled(prior_folders: Folders) -> None:
    pipe = pipeline_of("StableDiffusion3Pipeline", prior_folders("sd35"))
    model = load_prior(prior_folders("sd35"), How())
    rgb = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        mean = pipe.vae.encode(2 * rgb - 1).latent_dist.mean
    torch.testing.assert_close(model.encode(rgb), (mean - 0.0609) * 1.5305)


@pytest.mark.parametrize("missing", [(3,), (1,), (2,), (1, 2), (2, 3)])
def test_sd3_does_without_text_encoders(
    prior_folders: Folders, missing: tuple[int, ...], tmp_path: Path
) -> None:
    """What is not there says zeros, as the pipeline does without T5, and the rest is as it was."""
    folder = Path(shutil.copytree(prior_folders("sd35"), tmp_path / "model"))
    index = json.loads((folder / "model_index.json").read_text())
    for k in missing:
        for part in ("text_encoder", "tokenizer"):
            name = part if k == 1 else f"{part}_{k}"
            index[name] = [None, None]
            shutil.rmtree(folder / name)
    (folder / "model_index.json").write_text(json.dumps(index))
    whole = load_prior(prior_folders("sd35"), How()).embed(["a red mug"])
    words = load_prior(folder, How()).embed(["a red mug"])
    hidden, pooled = whole["hidden"].clone(), whole["pooled"].clone()
    widths = {1: (slice(0, 8), slice(0, 6)), 2: (slice(8, 24), slice(6, 14))}
    clip = [k for k in (1, 2) if k not in missing]
    for k in missing:
        if k == 3:
            hidden[:, 26:] = 0.0
        else:
            pooled[:, widths[k][1]] = 0.0
    torch.testing.assert_close(words["pooled"], pooled)
    if clip == [1, 2]:
        torch.testing.assert_close(words["hidden"], hidden)
        pipe = pipeline_of(
            "StableDiffusion3Pipeline", folder, text_encoder_3=None, tokenizer_3=None
        )
        torch.testing.assert_close(words["hidden"], told_by_sd3(pipe, "a red mug")[0])
    elif not clip:
        assert words["hidden"].shape[1] == 77 + 256
        assert not bool(words["hidden"][:, :77].any())
        torch.testing.assert_close(words["hidden"][:, 77:], hidden[:, 26:])


def test_sd3_without_any_words_is_refused(prior_folders: Folders, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(prior_folders("sd35"), tmp_path / "model"))
    for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
        shutil.rmtree(folder / name)
    with pytest.raises(ModelError, match="no text encoder: at least one of"):
        load_prior(folder, How())


# --- DeepFloyd IF ---------------------------------------------------------------------------------


def test_if_answers_as_its_pipeline_asks(prior_folders: Folders) -> None:
    pipe = pipeline_of("IFPipeline", prior_folders("if"))
    model = load_prior(prior_folders("if"), How())
    with torch.no_grad():
        hidden, _ = pipe.encode_prompt("A red mug", do_classifier_free_guidance=False)
        x_t, t = randn(1, 3, 16, 16), torch.tensor([321])
        both = pipe.unet(x_t, t, encoder_hidden_states=hidden).sample
    words = model.embed(["A red mug"])
    torch.testing.assert_close(words["hidden"], hidden)
    eps, variance = both.chunk(2, dim=1)
    got = model.predict_noise(x_t, t, words)
    torch.testing.assert_close(got, eps, rtol=1e-5, atol=1e-6)
    assert float((got - variance).abs().max()) > 1e-3


def test_if_sees_pixels(prior_folders: Folders) -> None:
    """Every pixel of a large picture counts, and a small one comes back as it was."""
    model = load_prior(prior_folders("if"), How())
    small = torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(model.decode(model.encode(small)), small)
    large = torch.rand(1, 3, 128, 128, requires_grad=True)
    z = model.encode(large)
    assert z.shape == (1, 3, 16, 16)
    z.sum().backward()
    assert large.grad is not None
    assert float(large.grad.min()) > 0.0


# --- several views at once ------------------------------------------------------------------------


def test_views_of_a_group_see_each_other_and_no_others(prior_folders: Folders) -> None:
    model = load_prior(prior_folders("mv"), How())
    assert model.views_together == 4
    x_t, t, words = question(model)
    t = torch.full_like(t, 300)
    before = model.predict_noise(x_t, t, words)
    x_t[5] += randn(*x_t.shape[1:], seed=4)
    moved = (model.predict_noise(x_t, t, words) - before).flatten(1).abs().amax(1)
    assert bool((moved[4:8] > 1e-5).all())
    assert float(moved[:4].max()) < 1e-6
    assert float(moved[8:].max()) < 1e-6


def test_what_sees_together_is_one_attention_over_all_pixels(prior_folders: Folders) -> None:
    """Softmax attention from the weights of a layer, over the pixels of all four views."""
    model = load_prior(prior_folders("mv"), How(engine="diffusers"))
    layer = model.network.down_blocks[1].attentions[0].transformer_blocks[0].attn1
    x = randn(8, 16, 16, seed=5)
    with torch.no_grad():
        got = layer(x)
        joined = x.reshape(2, 64, 16)
        q, k, v = (
            each(joined).reshape(2, 64, 2, 8).transpose(1, 2)
            for each in (layer.to_q, layer.to_k, layer.to_v)
        )
        weight = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1)
        expected = layer.to_out[0]((weight @ v).transpose(1, 2).reshape(8, 16, 16))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_both_engines_see_the_same_views_and_cameras(prior_folders: Folders) -> None:
    plain, published = (
        load_prior(prior_folders("mv"), How(engine=engine)) for engine in ("plain", "diffusers")
    )
    x_t, t, words = question(plain)
    torch.testing.assert_close(
        plain.predict_noise(x_t, t, words), published.predict_noise(x_t, t, words),
        rtol=1e-4, atol=1e-5,
    )  # fmt: skip


def test_a_camera_is_heard_and_its_distance_is_not(prior_folders: Folders) -> None:
    model = load_prior(prior_folders("mv"), How())
    assert isinstance(model, ToldOfCameras)
    around, up = torch.tensor([0.0, 90.0, 180.0, -90.0]), torch.full((4,), 20.0)
    words = model.embed(["a red mug"] * 4)
    near, far, turned = (
        model.seen_from(words, Viewpoints.orbit(a, up, d).camera_to_world)
        for a, d in (
            (around, torch.full((4,), 1.0)),
            (around, torch.full((4,), 7.0)),
            (around + 30.0, torch.full((4,), 1.0)),
        )
    )
    torch.testing.assert_close(near["camera"], far["camera"])
    # The third row is upward and the last column the place, of length 1.
    assert near["camera"][0].reshape(4, 4)[:3, 3].norm().item() == pytest.approx(1.0)
    x_t, t = randn(4, 4, 8, 8), torch.full((4,), 500)
    eps = [model.predict_noise(x_t, t, each) for each in (near, far, turned)]
    torch.testing.assert_close(eps[0], eps[1])
    assert float((eps[0] - eps[2]).abs().max()) > 1e-5


def test_rows_part_no_group(prior_folders: Folders) -> None:
    model = load_prior(prior_folders("mv"), How())
    with pytest.raises(ValueError, match=r"sees 4 views .* write model\.rows=4$"):
        tune(model, Tuning(rows=6))
    assert tune(model, Tuning(rows=8)).rows == 8


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("views_together", 1, "views_together=1"),
        ("views_together", "4", "views_together='4'"),
        ("views_together", None, "views_together=None"),
    ],
)
def test_a_folder_that_does_not_say_how_many_views(
    key: str, value: Any, said: str, prior_folders: Folders, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(prior_folders("mv"), tmp_path / "model"))
    index = json.loads((folder / "model_index.json").read_text()) | {key: value}
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=said):
        load_prior(folder, How())


def test_parts_are_taken_from_the_folder_beside(prior_folders: Folders, tmp_path: Path) -> None:
    whole = Path(shutil.copytree(prior_folders("mv"), tmp_path / "whole"))
    own = tmp_path / "own"
    own.mkdir()
    shutil.move(whole / "unet", own / "unet")
    index = json.loads((whole / "model_index.json").read_text()) | {"parts_from": "../whole"}
    (own / "model_index.json").write_text(json.dumps(index))
    one, other = load_prior(own, How()), load_prior(prior_folders("mv"), How())
    x_t, t, words = question(one)
    torch.testing.assert_close(one.predict_noise(x_t, t, words), other.predict_noise(x_t, t, words))


# --- MVDream --------------------------------------------------------------------------------------


def original_name(name: str, layers: int = 1, levels: int = 2) -> str:
    """What the original code calls a weight of diffusers' UNet of ``levels`` resolutions."""
    whole = {
        "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
        "class_embedding.linear_1": "camera_embed.0", "class_embedding.linear_2": "camera_embed.2",
        "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    }  # fmt: skip
    stem, _, kind = name.rpartition(".")
    if stem in whole:
        return f"{whole[stem]}.{kind}"
    block, _, rest = name.partition(".")
    if block == "mid_block":
        what, k, inside = rest.split(".", 2)
        at = f"middle_block.{1 if what == 'attentions' else 2 * int(k)}"
    else:
        i, what, k, inside = rest.split(".", 3)
        down = block == "down_blocks"
        at = "input_blocks" if down else "output_blocks"
        number = int(i) * (layers + 1) + int(k) + down
        if what == "downsamplers":
            return f"input_blocks.{(int(i) + 1) * (layers + 1)}.0.op.{kind}"
        if what == "upsamplers":
            attended = int(i) < levels - 1  # in the tiny network
            return f"output_blocks.{(int(i) + 1) * (layers + 1) - 1}.{1 + attended}.conv.{kind}"
        at = f"{at}.{number}.{int(what == 'attentions')}"
    for ours, theirs in (
        ("norm1.", "in_layers.0."), ("conv1.", "in_layers.2."), ("norm2.", "out_layers.0."),
        ("conv2.", "out_layers.3."), ("time_emb_proj.", "emb_layers.1."),
        ("conv_shortcut.", "skip_connection."),
    ):  # fmt: skip
        if what == "resnets" and inside.startswith(ours):
            inside = inside.replace(ours, theirs)
            break
    return f"{at}.{inside}"


def mvdream(made: Path, path: Path, **settings: Any) -> tuple[Path, Any]:
    """The folder of a pipeline, and one of class ``MVDreamPipeline`` with the same UNet; 32 groups
    of channels, as there."""
    from diffusers import UNet2DConditionModel
    from safetensors.torch import save_file

    folder = Path(shutil.copytree(made, path))
    torch.manual_seed(3)
    unet: Any = UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, attention_head_dim=(4, 8),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), cross_attention_dim=16,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), use_linear_projection=True,
        class_embed_type="projection", projection_class_embeddings_input_dim=16,
    )  # fmt: skip
    shutil.rmtree(folder / "unet")
    (folder / "unet").mkdir()
    raw = {
        "_class_name": "MultiViewUNetModel", "image_size": 8, "in_channels": 4, "out_channels": 4,
        "model_channels": 32, "num_res_blocks": 1, "attention_resolutions": [2],
        "channel_mult": [1, 2], "num_head_channels": 8, "transformer_depth": 1, "context_dim": 16,
        "camera_dim": 16,
    }  # fmt: skip
    (folder / "unet" / "config.json").write_text(json.dumps(raw | settings))
    state = {original_name(n): v.contiguous() for n, v in unet.state_dict().items()}
    assert len(state) == len(unet.state_dict())
    save_file(state, folder / "unet" / "diffusion_pytorch_model.safetensors")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": "MVDreamPipeline", "unet": ["mv_unet", "MultiViewUNetModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder, unet


@pytest.mark.parametrize("engine", ["plain", "diffusers"])
def test_mvdream_is_read_without_its_program(
    engine: Any, prior_folders: Folders, tmp_path: Path
) -> None:
    """Beside diffusers' UNet with the same weights, told poses of a world whose front is at -y."""
    folder, unet = mvdream(prior_folders("sd15"), tmp_path / "mvdream")
    model = load_prior(folder, How(engine=engine))
    assert model.views_together == 4
    assert isinstance(model, ToldOfCameras)
    around, up = torch.tensor([0.0, 90.0, 180.0, -90.0]), torch.full((4,), 15.0)
    views = Viewpoints.orbit(around, up, torch.full((4,), 3.0))
    words = model.seen_from(louder(model.embed(["a red mug"] * 4)), views.camera_to_world)
    pose = words["camera"].reshape(4, 4, 4)
    near, high = np.cos(np.radians(15)), np.sin(np.radians(15))
    places = [[0, -near, high], [near, 0, high], [0, near, high], [-near, 0, high]]
    torch.testing.assert_close(pose[:, :3, 3], torch.tensor(places).float())
    see_together(unet, 4)
    x_t, t = randn(4, 4, 8, 8), torch.full((4,), 321)
    with torch.no_grad():
        expected = unet(
            x_t, t, encoder_hidden_states=words["hidden"], class_labels=pose.flatten(1)
        ).sample
    torch.testing.assert_close(model.predict_noise(x_t, t, words), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ip_dim": 16}, "ip_dim=16.*told a picture"),
        ({"camera_dim": 12}, "camera_dim=12"),
        ({"channel_mult": None}, "does not say all of"),
        ({"model_channels": 64}, "not of one model|have another shape"),
    ],
)
def test_what_is_no_mvdream_is_named(
    settings: dict[str, Any], said: str, prior_folders: Folders, tmp_path: Path
) -> None:
    folder, _ = mvdream(prior_folders("sd15"), tmp_path / "mvdream", **settings)
    with pytest.raises(ModelError, match=said):
        load_prior(folder, How())
