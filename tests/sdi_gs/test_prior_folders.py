# SPDX-License-Identifier: Apache-2.0
"""Folders and files as people have them: variants, pickles, the hub's cache, single files, LoRAs,
and models that cannot be priors."""

from __future__ import annotations

import json
import logging
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdi_gs.diffusion.base import Condition
from sdi_gs.diffusion.folder import ModelError
from sdi_gs.diffusion.latents import Prior
from sdi_gs.diffusion.load import load_prior
from sdi_gs.diffusion.source import How, not_needed

Folders = Callable[[str], Path]
SAFE = ".safetensors"


@pytest.fixture
def copied(prior_folders: Folders, tmp_path: Path) -> Folders:
    """A copy of a family's folder, to be changed."""

    def made(family: str) -> Path:
        return Path(shutil.copytree(prior_folders(family), tmp_path / family))

    return made


def rewrite(path: Path, **changed: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def answer(model: Prior) -> Tensor:
    """What a model makes of one picture and one sentence."""
    z = model.encode(torch.linspace(0, 1, 3 * 16 * 16).reshape(1, 3, 16, 16))
    words = model.embed(["a red mug"])
    loud = {k: 30.0 * p if p.is_floating_point() else p for k, p in words.parts.items()}
    return model.predict_noise(z, torch.tensor([500]), Condition(loud))


def alike(one: Tensor, other: Tensor) -> None:
    """Equal to the rounding that depends on where in memory weights lie."""
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*/*{SAFE}"))


# --- variants and pickles -------------------------------------------------------------------------


def halve(folder: Path, keep: bool = False) -> None:
    """Weights in half precision, under the names of the variant."""
    for path in weight_files(folder):
        half = {k: v.half() if v.is_floating_point() else v for k, v in load_file(path).items()}
        save_file(half, path.with_name(path.stem + ".fp16" + SAFE), metadata={"format": "pt"})
        if not keep:
            path.unlink()


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd35"])
def test_a_folder_of_half_precision_alone_is_found_by_itself(
    family: str, copied: Folders, prior_folders: Folders
) -> None:
    folder = copied(family)
    halve(folder)
    whole = answer(load_prior(prior_folders(family), How()))
    for variant in (None, "fp16"):
        half = answer(load_prior(folder, How(variant=variant)))
        assert 0.0 < float((half - whole).abs().max()) < 0.05 * float(whole.abs().max())
    with pytest.raises(ModelError, match=r"none of the variant 'bf16': write model.variant=fp16"):
        load_prior(folder, How(variant="bf16"))


def test_of_several_variants_the_plain_one_is_read_and_another_on_request(
    copied: Folders, prior_folders: Folders, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copied("sd15")
    halve(folder, keep=True)
    whole = answer(load_prior(prior_folders("sd15"), How()))
    alike(answer(load_prior(folder, How())), whole)
    assert float((answer(load_prior(folder, How(variant="fp16"))) - whole).abs().max()) > 1e-4
    (folder / "vae/diffusion_pytorch_model.fp16.safetensors").unlink()
    with caplog.at_level(logging.WARNING):
        load_prior(folder, How(variant="fp16"))
    assert "no weights of the variant 'fp16': the plain ones are read" in caplog.text
    for path in weight_files(folder):
        if "fp16" not in path.name:
            path.rename(path.with_name(path.stem + ".bf16" + SAFE))
    with pytest.raises(ModelError, match=r"of several variants: write model\.variant=bf16 or"):
        load_prior(folder, How())


def test_an_index_of_shards_that_were_not_copied_is_no_hindrance(
    copied: Folders, prior_folders: Folders
) -> None:
    folder = copied("sd15")
    halve(folder)
    index = {"weight_map": {"conv_in.weight": "diffusion_pytorch_model-00001-of-00002.safetensors"}}
    (folder / f"unet/diffusion_pytorch_model{SAFE}.index.json").write_text(json.dumps(index))
    load_prior(folder, How())


@pytest.mark.parametrize("engine", ["plain", "diffusers"])
def test_shards_are_read(copied: Folders, prior_folders: Folders, engine: Any) -> None:
    folder = copied("sd15")
    (path,) = (folder / "unet").glob(f"*{SAFE}")
    state = load_file(path)
    names = sorted(state)
    shards = [f"{path.stem}-0000{k}-of-00002{SAFE}" for k in (1, 2)]
    where = {name: shards[i % 2] for i, name in enumerate(names)}
    for shard in shards:
        part = {name: state[name] for name in names if where[name] == shard}
        save_file(part, path.with_name(shard), metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": where}
    path.with_name(path.name + ".index.json").write_text(json.dumps(index))
    path.unlink()
    whole = answer(load_prior(prior_folders("sd15"), How(engine=engine)))
    alike(answer(load_prior(folder, How(engine=engine))), whole)


def test_pickles_are_refused_with_the_command_that_converts_them(
    copied: Folders, prior_folders: Folders
) -> None:
    folder = copied("sd15")
    for part in ("text_encoder", "unet"):
        (path,) = (folder / part).glob(f"*{SAFE}")
        name = "pytorch_model.bin" if path.stem == "model" else f"{path.stem}.bin"
        torch.save(load_file(path), path.with_name(name))
        path.unlink()
    for _ in range(2):  # one after the other
        with pytest.raises(ModelError, match=r"\.bin is a pickle") as refused:
            load_prior(folder, How())
        command = shlex.split(str(refused.value).splitlines()[1])
        subprocess.run(command, check=True, timeout=100)
    whole = answer(load_prior(prior_folders("sd15"), How()))
    alike(answer(load_prior(folder, How())), whole)


# --- the hub --------------------------------------------------------------------------------------


def test_a_folder_of_the_hubs_cache_is_its_snapshot(prior_folders: Folders, tmp_path: Path) -> None:
    cache = tmp_path / "models--somebody--sd"
    for name in ("aaa", "bbb"):
        shutil.copytree(prior_folders("sd15"), cache / "snapshots" / name)
    with pytest.raises(ModelError, match=r"which of its snapshots is meant .*aaa.*bbb"):
        load_prior(cache, How())
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("bbb\n")
    (cache / "snapshots" / "aaa" / "unet" / "config.json").write_text("{")
    load_prior(cache, How())
    shutil.rmtree(cache / "refs")
    shutil.rmtree(cache / "snapshots" / "aaa")
    load_prior(cache, How())


def test_what_is_fetched_of_the_hub_is_one_variant() -> None:
    from fnmatch import fnmatch

    plain, half = (f"unet/diffusion_pytorch_model{v}{SAFE}" for v in ("", ".fp16"))
    other = "text_encoder/model.safetensors"

    def fetched(files: list[str], variant: str | None) -> set[str]:
        ignored = not_needed(files, variant)
        return {name for name in files if not any(fnmatch(name, p) for p in ignored)}

    assert fetched([plain, half, other, f"safety_checker/model{SAFE}"], None) == {plain, other}
    assert fetched([half, other], None) == {half, other}
    assert fetched([plain, half, other], "fp16") == {half, other}


# --- models that cannot be priors -----------------------------------------------------------------

REFUSED: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "a class of another kind": (
        "sd15", lambda f: rewrite(f / "model_index.json", _class_name="PixArtSigmaPipeline"),
        r"'PixArtSigmaPipeline', which is not known here: known are StableDiffusionPipeline, "
        r"StableDiffusionXLPipeline, StableDiffusion3Pipeline, IFPipeline",
    ),
    "no class": (
        "sd15", lambda f: (f / "model_index.json").write_text("{}") and None, "the class 'None'"
    ),
    "FLUX": (
        "sd15", lambda f: rewrite(f / "model_index.json", _class_name="FluxPipeline"),
        "holds a FluxPipeline: the network has learned guidance of its own",
    ),
    "a consistency model": (
        "sd15", lambda f: rewrite(f / "unet/config.json", time_cond_proj_dim=256),
        r"unet/config\.json has time_cond_proj_dim: the network has learned guidance",
    ),
    "inpainting": (
        "sd15", lambda f: rewrite(f / "unet/config.json", in_channels=9),
        "takes 9 channels, and its vae makes 4: it wants more than a noisy picture",
    ),
    "inpainting, XL": (
        "sdxl", lambda f: rewrite(f / "unet/config.json", in_channels=9), "takes 9 channels"
    ),
    "another text encoder": (
        "sd15", lambda f: rewrite(f / "unet/config.json", cross_attention_dim=24),
        "unet .*lacks 0 weights .*another shape",
    ),
    "an index of nothing": (
        "sd35", lambda f: rewrite(f / "scheduler/scheduler_config.json", use_dynamic_shifting=True),
        "use_dynamic_shifting=true",
    ),
    "a shift of zero": (
        "sd35", lambda f: rewrite(f / "scheduler/scheduler_config.json", shift=0.0), "shift=0.0"
    ),
    "no second encoder": (
        "sdxl", lambda f: shutil.rmtree(f / "text_encoder_2"), "it has no folder text_encoder_2"
    ),
    "no tokenizer.json": (
        "if", lambda f: (f / "tokenizer/tokenizer.json").unlink(), "pip install sentencepiece"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_a_prior_is_refused_by_name(name: str, copied: Folders) -> None:
    family, edit, told = REFUSED[name]
    folder = copied(family)
    edit(folder)
    with pytest.raises(ModelError, match=told) as refused:
        load_prior(folder, How())
    assert str(folder) in str(refused.value)


def test_parts_of_two_models_are_named(copied: Folders, prior_folders: Folders) -> None:
    """A text encoder of another width that is whole in itself."""
    folder = copied("sdxl")
    for name in ("text_encoder", "tokenizer"):
        shutil.rmtree(folder / name)
        shutil.copytree(prior_folders("sd15") / name, folder / name)
    with pytest.raises(ModelError, match=r"not of one model: unet has cross_attention_dim=24, and "
                       r"text_encoder and text_encoder_2 hidden_size together=32"):  # fmt: skip
        load_prior(folder, How())
    folder = copied("sd35")
    shutil.rmtree(folder / "text_encoder_2")
    shutil.copytree(prior_folders("sdxl") / "text_encoder_2", folder / "text_encoder_2")
    with pytest.raises(ModelError, match=r"pooled_projection_dim=14, and .* together=12"):
        load_prior(folder, How())


@pytest.mark.parametrize("how", ["name", "scheduler"])
def test_a_model_for_few_steps_is_warned_of(
    how: str, copied: Folders, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copied("sd15")
    if how == "name":
        folder = folder.rename(folder.with_name("sdxl-Turbo"))
    else:
        rewrite(folder / "scheduler/scheduler_config.json", _class_name="LCMScheduler")
    with caplog.at_level(logging.WARNING):
        load_prior(folder, How())
    assert "seems to be made for few steps" in caplog.text


def test_half_precision_spares_the_xl_autoencoder(copied: Folders) -> None:
    """Its activations go beyond half precision; folders whose VAE was mended say so."""
    folder = copied("sdxl")
    kinds = []
    for upcast in (True, False):
        rewrite(folder / "vae/config.json", force_upcast=upcast)
        model = load_prior(folder, How(dtype="float16"))
        kinds.append(next(model.vae.parameters()).dtype)
        assert model.encode(torch.rand(1, 3, 16, 16)).dtype == torch.float32
        assert next(model.network.parameters()).dtype == torch.float16
    assert kinds == [torch.float32, torch.float16]


# --- LoRA -----------------------------------------------------------------------------------------

ATTENDED = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


def pair(weight: Tensor, rank: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """up and down beside a weight."""
    rng = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, *weight.shape[1:], generator=rng)
    up = torch.randn(weight.shape[0], rank, *[1] * (weight.dim() - 2), generator=rng)
    return up, down


def product(up: Tensor, down: Tensor) -> Tensor:
    return torch.einsum("or,ri...->oi...", up.flatten(1), down)


FORMATS = {
    # how a program names the pair of a layer of the UNet, and of the text encoder
    "peft": lambda part, layer: (f"{part}.{layer}.lora_B.weight", f"{part}.{layer}.lora_A.weight"),
    "diffusers": lambda part, layer: (
        f"{part}.{layer}.lora.up.weight", f"{part}.{layer}.lora.down.weight"
    ),
    "kohya": lambda part, layer: tuple(
        f"{'lora_unet' if part == 'unet' else 'lora_te_text_model'}_{layer.replace('.', '_')}"
        f".lora_{way}.weight" for way in ("up", "down")
    ),
}  # fmt: skip


@pytest.mark.parametrize("engine", ["plain", "diffusers"])
@pytest.mark.parametrize("named", FORMATS)
def test_a_lora_is_added_to_the_weights(
    named: str, engine: Any, prior_folders: Folders, tmp_path: Path
) -> None:
    before = load_prior(prior_folders("sd15"), How(engine=engine))
    layers = {"unet": [ATTENDED, "down_blocks.1.resnets.0.conv1"],
              "text_encoder": ["encoder.layers.1.self_attn.v_proj"]}  # fmt: skip
    networks = {"unet": before.network, "text_encoder": before.readers[0]}
    state, expected = {}, {}
    for part, names in layers.items():
        for k, layer in enumerate(names):
            weight = networks[part].get_submodule(layer).weight
            up, down = pair(weight, seed=k)
            for name, tensor in zip(FORMATS[named](part, layer), (up, down), strict=True):
                state[name] = tensor.contiguous()
            alpha = 6.0 if named == "kohya" else 3.0
            if named == "kohya":
                state[FORMATS[named](part, layer)[0].replace("lora_up.weight", "alpha")] = (
                    torch.tensor(alpha)
                )
            expected[part, layer] = weight + 0.5 * alpha / 3 * product(up, down)
    path = tmp_path / "style.safetensors"
    save_file(state, path)
    how = How(engine=engine, lora=str(path), lora_scale=0.5)
    after = load_prior(prior_folders("sd15"), how)
    networks = {"unet": after.network, "text_encoder": after.readers[0]}
    for (part, layer), weight in expected.items():
        got = networks[part].get_submodule(layer).weight
        torch.testing.assert_close(got, weight, rtol=1e-5, atol=1e-6)
    assert float((answer(after) - answer(before)).abs().max()) > 1e-3


def test_a_lora_that_counts_blocks_as_the_first_stable_diffusion_did(
    prior_folders: Folders, tmp_path: Path
) -> None:
    layers = {
        # layers_per_block is 1: input blocks 1 and 3 are residual, 2 makes smaller
        "input_blocks_3_1_transformer_blocks_0_attn1_to_q": ATTENDED,
        "input_blocks_1_0_in_layers_2": "down_blocks.0.resnets.0.conv1",
        "input_blocks_2_0_op": "down_blocks.0.downsamplers.0.conv",
        "middle_block_0_out_layers_3": "mid_block.resnets.0.conv2",
        "middle_block_1_proj_in": "mid_block.attentions.0.proj_in",
        "middle_block_2_emb_layers_1": "mid_block.resnets.1.time_emb_proj",
        "output_blocks_1_1_transformer_blocks_0_ff_net_2":
            "up_blocks.0.attentions.1.transformer_blocks.0.ff.net.2",
        "output_blocks_1_2_conv": "up_blocks.0.upsamplers.0.conv",
        "output_blocks_3_0_skip_connection": "up_blocks.1.resnets.1.conv_shortcut",
    }  # fmt: skip
    before = load_prior(prior_folders("sdxl"), How())
    state, expected = {}, {}
    for k, (theirs, ours) in enumerate(layers.items()):
        weight = before.network.get_submodule(ours).weight
        up, down = pair(weight, seed=k)
        state[f"lora_unet_{theirs}.lora_up.weight"] = up
        state[f"lora_unet_{theirs}.lora_down.weight"] = down
        expected[ours] = weight + product(up, down)
    second = before.readers[1].get_submodule("text_model.encoder.layers.0.mlp.fc1").weight
    up, down = pair(second)
    state |= {f"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_{w}.weight": v
              for w, v in (("up", up), ("down", down))}  # fmt: skip
    save_file(state, tmp_path / "style.safetensors")
    after = load_prior(prior_folders("sdxl"), How(lora=str(tmp_path / "style.safetensors")))
    for name, weight in expected.items():
        got = after.network.get_submodule(name).weight
        torch.testing.assert_close(got, weight, rtol=1e-5, atol=1e-6, msg=name)
    got = after.readers[1].get_submodule("text_model.encoder.layers.0.mlp.fc1").weight
    torch.testing.assert_close(got, second + product(up, down), rtol=1e-5, atol=1e-6)


def test_a_lora_of_sd3_and_its_alpha_beside_the_weights(
    prior_folders: Folders, tmp_path: Path
) -> None:
    layer = "transformer_blocks.0.attn.add_k_proj"
    before = load_prior(prior_folders("sd35"), How())
    weight = before.network.get_submodule(layer).weight
    up, down = pair(weight)
    state = {f"transformer.{layer}.lora_B.weight": up, f"transformer.{layer}.lora_A.weight": down}
    told = json.dumps({"transformer.r": 3, "transformer.lora_alpha": 12})
    path = tmp_path / "style.safetensors"
    save_file(state, path, metadata={"lora_adapter_metadata": told})
    after = load_prior(prior_folders("sd35"), How(lora=str(path)))
    got = after.network.get_submodule(layer).weight
    torch.testing.assert_close(got, weight + 4.0 * product(up, down), rtol=1e-5, atol=1e-6)


def test_a_lora_that_does_not_fit_is_refused(prior_folders: Folders, tmp_path: Path) -> None:
    folder, path = prior_folders("sd15"), tmp_path / "style.safetensors"
    up, down = torch.zeros(16, 2), torch.zeros(2, 16)
    cases = {
        "of which 1 are not in this model": {
            "unet.nowhere.lora_A.weight": down, "unet.nowhere.lora_B.weight": up
        },
        r"unet: down_blocks_1.*_to_q, \.\.\.": {f"unet.{ATTENDED}.lora_A.weight": down},
        "LoHa, LoKr, DoRA": {f"lora_unet_{ATTENDED.replace('.', '_')}.hada_w1_a": up},
        r"it has \(7, 2\) x \(2, 16\) for a layer of": {
            f"unet.{ATTENDED}.lora_A.weight": down,
            f"unet.{ATTENDED}.lora_B.weight": torch.zeros(7, 2),
        },
        "holds no low-rank weights": {},
    }  # fmt: skip
    for told, state in cases.items():
        save_file(state, path)
        with pytest.raises(ModelError, match=told) as refused:
            load_prior(folder, How(lora=str(path)))
        assert str(path) in str(refused.value)
    for name, told in (("none.safetensors", "does not exist"), ("style.bin", "only .safetensors")):
        (tmp_path / "style.bin").touch()
        with pytest.raises(ModelError, match=told):
            load_prior(folder, How(lora=str(tmp_path / name)))


# --- one file -------------------------------------------------------------------------------------

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
          "norm2": "out_layers.0", "conv2": "out_layers.3",
          "conv_shortcut": "skip_connection"}  # fmt: skip
OUTSIDE = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
           "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
           "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
           "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv"}  # fmt: skip
BLOCKS = {"down_blocks.0.resnets.0": "input_blocks.1.0", "down_blocks.1.resnets.0":
          "input_blocks.3.0", "down_blocks.1.attentions.0": "input_blocks.3.1",
          "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
          "mid_block.resnets.1": "middle_block.2", "up_blocks.0.resnets.0": "output_blocks.0.0",
          "up_blocks.0.attentions.0": "output_blocks.0.1", "up_blocks.0.resnets.1":
          "output_blocks.1.0", "up_blocks.0.attentions.1": "output_blocks.1.1",
          "up_blocks.1.resnets.0": "output_blocks.2.0", "up_blocks.1.resnets.1":
          "output_blocks.3.0"}  # fmt: skip


def first_stable_diffusion(name: str) -> str:
    """The name that the tiny UNet's weight has in the first Stable Diffusion's code."""
    for ours, theirs in OUTSIDE.items():
        if name.startswith(ours + "."):
            return name.replace(ours, theirs, 1)
    for ours, theirs in BLOCKS.items():
        if name.startswith(ours + "."):
            rest = name.removeprefix(ours + ".")
            head, _, tail = rest.partition(".")
            return f"{theirs}.{RESNET.get(head, head) if 'resnets' in ours else head}.{tail}"
    raise AssertionError(name)


def first_autoencoder(name: str) -> str:
    name = re.sub(r"mid_block\.resnets\.0", "mid.block_1", name)
    name = re.sub(r"mid_block\.resnets\.1", "mid.block_2", name)
    for ours, theirs in (("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"),
                         ("to_out.0", "proj_out")):  # fmt: skip
        name = name.replace(f"mid_block.attentions.0.{ours}", f"mid.attn_1.{theirs}")
    name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{1 - int(m[1])}.block.{m[2]}",
                  name)  # fmt: skip
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{1 - int(m[1])}.upsample", name)
    return name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")


def single_file(folder: Path, path: Path) -> Path:
    state = {}
    for name, tensor in load_file(folder / f"unet/diffusion_pytorch_model{SAFE}").items():
        state["model.diffusion_model." + first_stable_diffusion(name)] = tensor
    for name, tensor in load_file(folder / f"vae/diffusion_pytorch_model{SAFE}").items():
        old = first_autoencoder(name)
        if "attn_1" in old and old.endswith("weight") and tensor.dim() == 2:
            tensor = tensor[:, :, None, None].contiguous()
        state["first_stage_model." + old] = tensor
    for name, tensor in load_file(folder / f"text_encoder/model{SAFE}").items():
        bare = name.removeprefix("text_model.")
        state["cond_stage_model.transformer.text_model." + bare] = tensor
    save_file(state, path)
    return path


@pytest.mark.parametrize("engine", ["auto", "diffusers"])
def test_a_model_in_one_file_is_the_same_model(
    copied: Folders, prior_folders: Folders, tmp_path: Path, engine: Any
) -> None:
    folder = prior_folders("sd15")
    path = single_file(folder, tmp_path / "v1.safetensors")
    layout = copied("sd15")
    for weights in weight_files(layout):
        weights.unlink()
    model = load_prior(path, How(layout=str(layout), engine=engine))
    whole = load_prior(folder, How(engine=engine))
    alike(answer(model), answer(whole))
    with pytest.raises(ModelError, match=r"name a folder .* with model\.layout=FOLDER"):
        load_prior(path, How())
    with pytest.raises(ModelError, match=r"layout=.* is for a model that is one"):
        load_prior(folder, How(layout=str(layout)))
    with pytest.raises(ModelError, match="a file of another kind"):
        load_prior(__file__, How(layout=str(layout)))


def test_python_names_the_same(prior_folders: Folders, tmp_path: Path) -> None:
    import sdi_gs

    folder = prior_folders("sd15")
    path = single_file(folder, tmp_path / "v1.safetensors")
    model: Any = sdi_gs.load_prior(path, layout=folder, device="cpu")
    alike(answer(model), answer(load_prior(folder, How())))
    with pytest.raises(sdi_gs.UserError, match=r"does not exist: give a \.safetensors file"):
        sdi_gs.load_prior(folder, lora=tmp_path / "none.safetensors", device="cpu")


def test_a_file_without_a_part_takes_it_from_the_folder_or_says_so(
    copied: Folders, prior_folders: Folders, tmp_path: Path
) -> None:
    whole = single_file(prior_folders("sd15"), tmp_path / "v1.safetensors")
    kept = {k: v for k, v in load_file(whole).items() if not k.startswith("cond_stage")}
    save_file(kept, tmp_path / "unet.safetensors")
    layout = copied("sd15")
    model = load_prior(tmp_path / "unet.safetensors", How(layout=str(layout)))
    alike(answer(model), answer(load_prior(prior_folders("sd15"), How())))
    (layout / f"text_encoder/model{SAFE}").unlink()
    with pytest.raises(ModelError, match=r"no model\.safetensors, and .*unet\.safetensors holds"):
        load_prior(tmp_path / "unet.safetensors", How(layout=str(layout)))
    lacking = {k: v for k, v in load_file(whole).items() if "out.2.bias" not in k}
    save_file(lacking, tmp_path / "lacking.safetensors")
    with pytest.raises(ModelError, match=r"lacks 1 weights .*conv_out\.bias"):
        load_prior(tmp_path / "lacking.safetensors", How(layout=str(prior_folders("sd15"))))
