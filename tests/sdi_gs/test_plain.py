# SPDX-License-Identifier: Apache-2.0
"""The plain networks beside the classes of diffusers and transformers that published them: the same
weights, the same answers and gradients, in double precision."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from sdi_gs.diffusion import plain_text, plain_unet, plain_vae
from sdi_gs.diffusion.base import Condition
from sdi_gs.diffusion.lora import BesideClass, LoraLearner, projections, under
from sdi_gs.diffusion.plain_layers import Attention, Joined, join_all
from sdi_gs.diffusion.schedule import alpha_bar_of
from sdi_gs.diffusion.stable import ModelError, StableDiffusion
from sdi_gs.diffusion.tuning import Tuning, tune

UNETS: dict[str, dict[str, Any]] = {
    "as Stable Diffusion 1": {
        "block_out_channels": (8, 12, 16), "layers_per_block": 2, "cross_attention_dim": 6,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 4,
    },
    "as Stable Diffusion 2": {
        "block_out_channels": (8, 16), "layers_per_block": 1, "cross_attention_dim": 10,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": (1, 2), "use_linear_projection": True, "upcast_attention": True,
    },
    "deeper transformers, other ends": {
        "block_out_channels": (8, 8), "layers_per_block": (1, 2), "cross_attention_dim": 6,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2), "attention_head_dim": 2,
        "in_channels": 9, "flip_sin_to_cos": False, "freq_shift": 1, "downsample_padding": 0,
        "time_embedding_dim": 20,
    },
}  # fmt: skip
VAES: dict[str, dict[str, Any]] = {
    "with attention": {"layers_per_block": 2},
    "without": {
        "mid_block_add_attention": False, "use_quant_conv": False, "use_post_quant_conv": False,
    },
}  # fmt: skip


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def shaken(network: nn.Module) -> Any:
    """Weights of which none is left at the value that it was made with."""
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=rng))
    return network.double().eval().requires_grad_(False)


def twin(plain: Any, published: nn.Module, config: dict[str, Any]) -> Any:
    network = plain(config).double().eval().requires_grad_(False)
    network.load_state_dict(published.state_dict())
    join_all(network)
    return network


def unets(words: str) -> tuple[Any, Any]:
    published = shaken(UNet2DConditionModel(sample_size=8, norm_num_groups=4, **UNETS[words]))
    return twin(plain_unet.PlainUNet, published, dict(published.config)), published


def question(config: Any, side: tuple[int, int] = (8, 12)) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(3, config.in_channels, *side, generator=rng).double()
    words = torch.randn(3, 5, config.cross_attention_dim, generator=rng).double()
    return x, torch.tensor([0, 311, 999]), words


@pytest.mark.parametrize("words", UNETS)
@pytest.mark.parametrize("side", [(8, 12), (7, 5)])
def test_a_unet_answers_as_the_published_one_with_its_gradient(
    words: str, side: tuple[int, int]
) -> None:
    """Sides that do not halve evenly as well: the way up must find the sizes of the way down."""
    plain, published = unets(words)
    x, t, hidden = question(published.config, side)
    found = []
    for network in (plain, published):
        with torch.no_grad():
            silent = network(x, t, encoder_hidden_states=hidden).sample
        moving, spoken = x.clone().requires_grad_(), hidden.clone().requires_grad_()
        out = network(moving, t, encoder_hidden_states=spoken).sample
        out.square().sum().backward()
        assert torch.equal(silent, out.detach())
        found.append((out.detach(), moving.grad, spoken.grad))
    for ours, theirs in zip(*found, strict=True):
        assert relative(ours, theirs) < 1e-12


def test_mini_answers_as_diffusers_reads_it() -> None:
    """To rounding, in float32 and with the whole adapter around it."""
    from sdi_gs.mini import MINI_DIR

    plain = tune(StableDiffusion.load(MINI_DIR, engine="plain"), Tuning())
    published = tune(StableDiffusion.load(MINI_DIR, engine="diffusers"), Tuning())
    assert isinstance(plain.unet, plain_unet.PlainUNet)
    assert isinstance(published.unet, UNet2DConditionModel)
    assert torch.equal(plain.alpha_bar, published.alpha_bar)
    rng = torch.Generator().manual_seed(2)
    rgb, x = torch.rand(3, 3, 64, 64, generator=rng), torch.randn(3, 4, 16, 16, generator=rng)
    words = published.embed(["a red mug", "a chair seen from behind", ""])
    found = []
    for model in (plain, published):
        picture = rgb.clone().requires_grad_()
        spoken = model.embed(["a red mug", "a chair seen from behind", ""])["hidden"]
        z = model.encode(picture)
        z.square().sum().backward()
        eps = model.predict_noise(x, torch.tensor([20, 500, 980]), words)
        decoded = model.decode(z.detach())
        found.append((spoken, z.detach(), picture.grad, eps, decoded))
    for ours, theirs in zip(*found, strict=True):
        assert relative(ours, theirs) < 5e-7


def test_low_rank_weights_learn_as_beside_the_published_network() -> None:
    """A layer that another takes the place of is no longer asked with its neighbours."""
    found = []
    for network in unets("as Stable Diffusion 1"):
        x, t, hidden = question(network.config)
        alpha_bar = torch.linspace(0.99, 0.01, 1000).double()

        def noise(net, x, t, condition, camera):  # type: ignore[no-untyped-def]
            words = condition["hidden"]
            return net(x, t, encoder_hidden_states=words, class_labels=camera).sample

        ask = under(noise, Condition({"hidden": hidden[:1]}))
        learner = LoraLearner(network, ask, BesideClass(), alpha_bar, rank=2, rate=1e-2)
        assert len(learner.trained) == 2 * len(projections(network)) + 2
        camera = torch.eye(4).reshape(1, 16).repeat(3, 1)
        first = learner.predict(x, t, camera)
        with torch.no_grad():
            base = network(x, t, encoder_hidden_states=hidden[:1].expand(3, -1, -1)).sample
        assert relative(first, base) < 1e-12  # nothing is learned yet
        for _ in range(3):
            learner.learn(x, camera, torch.Generator().manual_seed(4))
        found.append(learner.predict(x, t, camera))
        assert relative(found[-1], base) > 1e-3
    assert relative(*found) < 1e-5


@pytest.mark.parametrize("words", VAES)
def test_an_autoencoder_answers_as_the_published_one_with_its_gradient(words: str) -> None:
    published = shaken(AutoencoderKL(
        block_out_channels=(8, 12), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, **VAES[words],
    ))  # fmt: skip
    plain = twin(plain_vae.PlainVAE, published, dict(published.config))
    rgb = torch.rand(2, 3, 12, 8, generator=torch.Generator().manual_seed(1)).double()
    found = []
    for network in (plain, published):
        moving = rgb.clone().requires_grad_()
        posterior = network.encode(moving).latent_dist
        (posterior.mean.square().sum() + posterior.std.sum()).backward()
        decoded = network.decode(posterior.mean.detach()).sample
        found.append((posterior.mean.detach(), posterior.std.detach(), moving.grad, decoded))
    for ours, theirs in zip(*found, strict=True):
        assert relative(ours, theirs) < 1e-12


@pytest.mark.parametrize("act", ["gelu", "quick_gelu"])
def test_a_text_encoder_answers_as_the_published_one(act: str) -> None:
    config = CLIPTextConfig(
        vocab_size=40, hidden_size=12, intermediate_size=20, num_hidden_layers=2, hidden_act=act,
        num_attention_heads=3, max_position_embeddings=9, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    published = shaken(CLIPTextModel(config))
    plain = twin(plain_text.PlainTextEncoder, published, config.to_dict())
    ids = torch.randint(40, (3, 7), generator=torch.Generator().manual_seed(1))
    assert relative(plain(ids).last_hidden_state, published(ids).last_hidden_state) < 1e-12


SCHEDULES: list[dict[str, Any]] = [
    {},
    {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
    {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 100},
    {"beta_schedule": "scaled_linear", "beta_end": 0.012, "rescale_betas_zero_snr": True},
    {"trained_betas": [0.1, 0.2, 0.3]},
]


@pytest.mark.parametrize("config", SCHEDULES)
def test_the_table_of_a_schedule_is_that_of_diffusers(config: dict[str, Any]) -> None:
    wanted = DDIMScheduler(**config).alphas_cumprod
    torch.testing.assert_close(alpha_bar_of(config), wanted, rtol=1e-5, atol=1e-7)


def test_an_unknown_schedule_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'sigmoid' is not one of linear, scaled_linear"):
        alpha_bar_of({"beta_schedule": "sigmoid"})


def copied(folder: Path, to: Path) -> Path:
    import shutil

    return Path(shutil.copytree(folder, to))


def rewrite(path: Path, **changed: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def rename(path: Path, old: str, new: str) -> None:
    weights = load_file(path)
    renamed = {name.replace(old, new): tensor for name, tensor in weights.items()}
    assert renamed.keys() != weights.keys()
    save_file(renamed, path, metadata={"format": "pt"})


def test_a_network_of_other_arithmetic_is_left_to_diffusers(
    tiny_model: Path, tmp_path: Path
) -> None:
    folder = copied(tiny_model, tmp_path / "model")
    rewrite(folder / "unet/config.json", mid_block_scale_factor=2.0)
    model = StableDiffusion.load(folder)
    assert isinstance(model.unet, UNet2DConditionModel)
    assert isinstance(model.vae, plain_vae.PlainVAE)
    with pytest.raises(ModelError, match=r"mid_block_scale_factor=2.0.*model.engine=auto"):
        StableDiffusion.load(folder, engine="plain")


def test_folders_with_the_names_of_earlier_years_load(tiny_model: Path, tmp_path: Path) -> None:
    """The attention of autoencoders was renamed, and so were CLIP's weights."""
    folder = copied(tiny_model, tmp_path / "model")
    vae = folder / "vae/diffusion_pytorch_model.safetensors"
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"),
                     ("to_out.0", "proj_attn")):  # fmt: skip
        rename(vae, f"attentions.0.{new}.", f"attentions.0.{old}.")
    text = folder / "text_encoder/model.safetensors"
    if not next(iter(load_file(text))).startswith("text_model."):
        named = {f"text_model.{name}": tensor for name, tensor in load_file(text).items()}
        save_file(named, text, metadata={"format": "pt"})
    model, before = StableDiffusion.load(folder, engine="plain"), StableDiffusion.load(tiny_model)
    rgb = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    assert torch.equal(model.encode(rgb), before.encode(rgb))
    assert torch.equal(model.embed(["a mug"])["hidden"], before.embed(["a mug"])["hidden"])


def test_mini_is_loaded_without_diffusers() -> None:
    """Its import takes longer than the model."""
    code = (
        "import sys, torch\n"
        "from sdi_gs.build import denoiser\n"
        "from sdi_gs.config import ModelConfig\n"
        "denoiser(ModelConfig(source='mini', dtype='float32'), torch.device('cpu'))\n"
        "print([name for name in ('diffusers', 'transformers.models.clip.modeling_clip')\n"
        "       if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip().splitlines()[-1] == "[]"


def test_a_model_that_predicts_something_else_is_named_by_its_file(
    tiny_model: Path, tmp_path: Path
) -> None:
    folder = copied(tiny_model, tmp_path / "model")
    rewrite(folder / "scheduler/scheduler_config.json", prediction_type="sample")
    with pytest.raises(ModelError, match=r"scheduler_config\.json has prediction_type='sample'"):
        StableDiffusion.load(folder)


def test_what_is_asked_together_is_one_product_and_held_once() -> None:
    """The layers' weights are views of the joined one: nothing is in memory twice, and a copy of
    the network with low-rank layers shares it."""
    plain, _ = unets("as Stable Diffusion 1")
    joined = [m for m in plain.modules() if isinstance(m, Joined) and m.weight is not None]
    attentions = [m for m in plain.modules() if isinstance(m, Attention)]
    assert len(joined) == len(attentions) + 1  # and the time, for all residual layers
    for module in (plain, *attentions):
        whole = module.joined.weight.untyped_storage().data_ptr()
        assert {layer.weight.untyped_storage().data_ptr() for layer in module.asked()} == {whole}
    x, t, hidden = question(plain.config)
    products = []
    before = torch.nn.functional.linear
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.nn.functional, "linear",
                        lambda *args: products.append(1) or before(*args))  # fmt: skip
        plain(x, t, encoder_hidden_states=hidden)
        together = len(products)
        for module in joined:
            module.weight = None
        plain(x, t, encoder_hidden_states=hidden)
    saved = sum(len(module.asked()) - 1 for module in (plain, *attentions))
    assert len(products) - 2 * together == saved
